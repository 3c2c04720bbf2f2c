"""The host's CPUs: model, topology, base clock, NUMA, mitigations."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host.files import read_int, read_permitted
from kvmctl.model.cpuset import parse_cpuset

_ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock that MHz and GHz are divided by, and where it was read."""

    mhz: float
    source: str


@dataclass(frozen=True, slots=True)
class Cpu:
    """The host's CPUs. `online` counts those that run tasks (hardware threads)."""

    architecture: str
    model: str | None
    online: int
    sockets: int | None
    cores: int | None
    """Physical cores of all sockets."""
    flags: frozenset[str]


def read(root: Path = _ROOT) -> Cpu:
    """The CPUs as the kernel describes them."""
    info = _cpuinfo(root)
    online = _ids(root / _CPUS / "online")
    places = {(_topology(root, cpu, "physical_package_id"), _topology(root, cpu, "core_id")) for cpu in online}
    known = places if None not in {part for place in places for part in place} else set()
    return Cpu(
        architecture=platform.machine(),
        model=info.get("model name") or info.get("Model") or None,
        online=len(online),
        sockets=len({socket for socket, _core in known}) or None,
        cores=len(known) or None,
        flags=frozenset((info.get("flags") or info.get("Features") or "").split()),
    )


def _ids(path: Path) -> tuple[int, ...]:
    """A kernel's list such as `0-3,8`; empty where the file is absent or empty."""
    text = (read_permitted(path) or "").strip()
    return tuple(sorted(parse_cpuset(text))) if text else ()


def online(root: Path = _ROOT) -> frozenset[int]:
    """The CPUs that run tasks."""
    return frozenset(_ids(root / _CPUS / "online"))


def busy(root: Path = _ROOT) -> int | None:
    """Nanoseconds that all CPUs together have worked since boot, guests included; what a hypervisor below took
    away is not work. None where the kernel does not tell."""
    first = (read_permitted(root / "proc/stat") or "").partition("\n")[0].split()
    if len(first) < 8 or first[0] != "cpu":
        return None
    # user, nice and system, then interrupts; guests' time is in user and nice.
    ticks = sum(map(int, (*first[1:4], *first[6:8])))
    return ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def _topology(root: Path, cpu: int, name: str) -> int | None:
    return read_int(root / _CPUS / f"cpu{cpu}/topology/{name}")


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first CPU's lines of /proc/cpuinfo."""
    first = (read_permitted(root / "proc/cpuinfo") or "").partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def base_clock(tsc_hz: int | None = None, root: Path = _ROOT) -> Clock | None:
    """The base clock, from the best source there is; None where no source tells it.

    `tsc_hz` is the time stamp counter's frequency, which libvirt's capabilities know. A CPU's
    present speed is no source: an amount of CPU must not mean something else tomorrow.
    """
    frequency = root / _CPUS / "cpu0/cpufreq"
    if khz := read_int(frequency / "base_frequency"):
        return Clock(khz / 1000, "cpufreq/base_frequency")
    if mhz := read_int(root / _CPUS / "cpu0/acpi_cppc/nominal_freq"):
        return Clock(float(mhz), "acpi_cppc/nominal_freq")
    if khz := read_int(frequency / "cpuinfo_max_freq"):
        return Clock(khz / 1000, "cpufreq/cpuinfo_max_freq")
    if tsc_hz:
        return Clock(tsc_hz / 1e6, "time stamp counter")
    return _constant_clock(_cpuinfo(root))


def _constant_clock(info: dict[str, str]) -> Clock | None:
    """Without `aperfmperf` the kernel cannot measure speed, and shows the clock found at boot."""
    match = re.match(r"\d+(\.\d+)?", info.get("cpu MHz", ""))
    if not match or not float(match[0]) or "aperfmperf" in info.get("flags", "").split():
        return None
    return Clock(float(match[0]), "/proc/cpuinfo")


def base_mhz(root: Path = _ROOT) -> float | None:
    """The base clock in MHz as far as this machine's own files tell it."""
    clock = base_clock(root=root)
    return clock.mhz if clock else None


def numa_nodes(root: Path = _ROOT) -> tuple[int, ...]:
    """The NUMA nodes that have memory or CPUs; empty where the kernel knows none."""
    return _ids(root / _NODES / "online")


def mitigations(root: Path = _ROOT) -> dict[str, str]:
    """Each known CPU vulnerability and what the kernel says of it, such as `Mitigation: …`."""
    folder = root / _CPUS / "vulnerabilities"
    if not folder.is_dir():
        return {}
    return {path.name: (read_permitted(path) or "").strip() for path in sorted(folder.iterdir())}
