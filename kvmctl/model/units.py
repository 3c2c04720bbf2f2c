"""Quantities as people write them. Inside, memory is bytes (int) and CPU is cores (float)."""

import math
import re

from kvmctl.model.wording import quoted

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

_SIZE_UNITS = {
    "K": KIB, "KiB": KIB, "M": MIB, "MiB": MIB, "G": GIB, "GiB": GIB, "T": TIB, "TiB": TIB,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]+) ?([A-Za-z]*)", re.ASCII)
_CORES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(%|MHz|GHz)?", re.ASCII)

MAX_SIZE = 1 << 60
"""1 EiB: far beyond any host, far below where libvirt's 64-bit KiB counters overflow."""


def parse_size(text: str) -> int:
    """Read a size such as `512MiB` or `2GB` and return bytes.

    `K/KiB M/MiB G/GiB T/TiB` are powers of 1024, `KB MB GB TB` powers of 1000; integers only.
    Raises ValueError with a sentence for the user.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{quoted(text)} is not a size: write a whole number and a unit, such as 512MiB or 2GiB")
    digits, unit = match.groups()
    if not unit:
        raise ValueError(f"{quoted(text)} has no unit: write it as in 512MiB or 2GiB")
    if unit not in _SIZE_UNITS:
        raise ValueError(f"{quoted(text)} has an unknown unit {quoted(unit)}: known are {', '.join(_SIZE_UNITS)}")
    if len(digits) > 19 or int(digits) * _SIZE_UNITS[unit] > MAX_SIZE:
        raise ValueError(f"{quoted(text)} is larger than any host: the most is 1048576TiB")
    return int(digits) * _SIZE_UNITS[unit]


def format_size(size: int) -> str:
    """Write bytes exactly, in the largest binary unit that divides them: what `parse_size` reads back.

    A size that is not in whole KiB gets a fraction, which `parse_size` refuses rather than misreads.
    """
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return "0MiB" if size == 0 else f"{size // KIB}.{size % KIB * 10**10 // KIB:010}".rstrip("0") + "KiB"


_BITS = {"Kbit": 125, "Mbit": 125_000, "Gbit": 125_000_000}
_BIT_RATE = re.compile(r"([0-9]{1,12}) ?(Kbit|Mbit|Gbit)(?:/s)?", re.ASCII)


def parse_bits(text: str) -> int:
    """Read a speed of a network such as `100Mbit` and return bytes per second. Raises ValueError."""
    match = _BIT_RATE.fullmatch(text)
    if not match:
        raise ValueError(f"{quoted(text)} is not a speed: write a whole number and Kbit, Mbit or Gbit, as in 100Mbit")
    return int(match[1]) * _BITS[match[2]]


def format_bits(rate: int) -> str:
    """Write bytes per second, in whole kB, exactly: what `parse_bits` reads back."""
    unit = next((name for name in ("Gbit", "Mbit") if rate % _BITS[name] == 0), "Kbit")
    return f"{rate // _BITS[unit]}{unit}"


def parse_rate(text: str) -> int:
    """Read bytes per second, such as `50MiB/s`: a size, or whole bytes as in `1000001B/s`. Raises ValueError."""
    plain = text.removesuffix("/s")
    match = re.fullmatch(r"([0-9]{1,19}) ?B", plain, re.ASCII)
    return int(match[1]) if match else parse_size(plain)


def format_rate(rate: int) -> str:
    """Write bytes per second exactly, in the largest unit that divides them: what `parse_rate` reads back."""
    units = (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (10**9, "GB"), (10**6, "MB"), (KIB, "KiB"), (1000, "KB"), (1, "B")
    factor, unit = next(pair for pair in units if rate % pair[0] == 0)
    return f"{rate // factor}{unit}/s"


def human_size(size: int | None) -> str:
    """Write bytes for a table, in three or four figures: `1.5GiB`. None is `-`."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f}{unit}" if unit == "B" or abs(value) >= 100 else f"{_trim(value)}{unit}"
        value /= 1024
    return f"{_trim(value)}TiB"


def _trim(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def parse_cores(text: str, base_mhz: float | None = None) -> float:
    """Read CPU capacity such as `1.5`, `150%`, `2400MHz` or `2.4GHz` and return cores.

    `base_mhz` is this host's base clock, which MHz and GHz are divided by. Raises ValueError.
    """
    match = _CORES.fullmatch(text)
    if not match or len(text) > 20:
        raise ValueError(f"{quoted(text)} is not an amount of CPU: write cores (1.5), 150%, 2400MHz or 2.4GHz")
    value, unit = float(match[1]), match[2]
    if unit == "%":
        return value / 100
    if unit is None:
        return value
    if not base_mhz:
        raise ValueError(f"{quoted(text)}: this host's base clock is unknown, so write cores (1.5) or percent (150%)")
    return value * (1000 if unit == "GHz" else 1) / base_mhz


def format_cores(cores: float) -> str:
    """Write cores with at most three decimals: `0.5`, `2`, `unlimited` for infinity."""
    if math.isinf(cores):
        return "unlimited"
    return f"{cores:.3f}".rstrip("0").rstrip(".")
