"""What a window of the CPU bench says of the promises, and the tables of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.measure import Window
from tests.bench.scenarios import BenchGuest, entitled, expected


@dataclass(frozen=True, slots=True)
class GuestFigures:
    """One guest in one window; amounts are cores, the others parts of 1. None: there is no such promise."""

    name: str
    shares: int
    used: float
    expected: float
    error: float
    """By which part its share of what all guests had differs from the one it ought to have had."""
    shortfall: float | None
    """The part of its reservation that is missing, of a guest that wants all it can get."""
    overshoot: float | None
    """By which part of its limit it exceeded that."""
    late: float | None
    """Of a guest that sleeps now and then: the part that is missing of what it would have got by its entitlement if
    all others had been awake whenever it was."""
    wanted: float
    """The part of the time that its vCPUs ran or waited for a CPU."""
    weights: tuple[int, int]
    """As in the kernel's file, at the two ends of the window."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One window. `key` is scenario, what else the host does, and column; amounts are cores, the others parts of 1."""

    key: tuple[str, str, str]
    guests: tuple[GuestFigures, ...]
    used: float
    """By all guests."""
    process: float
    """By the busy processes of the host."""
    others: float
    """By everything else on the host, the tick included."""
    steal: float
    """Taken from this host by what it runs on itself."""
    tick: float | None
    parent_weights: tuple[int, int]
    seconds: float

    @property
    def error(self) -> float:
        return max(guest.error for guest in self.guests)

    @property
    def shortfall(self) -> float | None:
        return largest(guest.shortfall for guest in self.guests)

    @property
    def overshoot(self) -> float | None:
        return largest(guest.overshoot for guest in self.guests)

    @property
    def late(self) -> float | None:
        return largest(guest.late for guest in self.guests)

    @property
    def total(self) -> float:
        """Cores that guests and busy processes used together."""
        return self.used + self.process


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of what is known."""
    return max((value for value in values if value is not None), default=None)


def figures(key: tuple[str, str, str], guests: Sequence[BenchGuest], window: Window, tick: float | None) -> Figures:
    """What the window says. `tick` is the CPU that the tick took, in cores."""
    used = math.fsum(window.used.values())
    due, full = expected(guests, window.used), entitled(guests, used)
    return Figures(
        key=key,
        guests=tuple(_guest(guest, window, due, full[guest.name]) for guest in guests),
        used=used,
        process=window.process,
        others=window.host - used - window.process,
        steal=window.steal,
        tick=tick,
        parent_weights=window.parent_weights,
        seconds=window.seconds,
    )


def _guest(guest: BenchGuest, window: Window, due: Mapping[str, float], full: float) -> GuestFigures:
    used, name = window.used[guest.name], guest.name
    ran, waited = window.threads[name]
    # Short turns at housekeeping, while it sleeps, have it wait too.
    awake = min((ran + waited) / guest.vcpus, guest.duty)
    return GuestFigures(
        name=name,
        shares=guest.shares,
        used=used,
        expected=due[name],
        error=error(used / math.fsum(window.used.values()), due[name] / math.fsum(due.values())),
        shortfall=missing(used, guest.reservation) if guest.reservation and not guest.nap else None,
        overshoot=max(0.0, used / guest.limit - 1) if math.isfinite(guest.limit) else None,
        late=missing(ran, awake * full) if guest.nap else None,
        wanted=(ran + waited) / guest.vcpus,
        weights=window.weights[name],
    )


def error(found: float, due: float) -> float:
    """By which part of `due` the two differ."""
    return abs(found / due - 1)


def missing(found: float, due: float) -> float:
    """The part of `due` that is missing."""
    return max(0.0, 1 - found / due)


HEAD = (
    "scenario", "host", "weights", "error", "shortfall", "overshoot", "late", "guests", "total", "of raw", "tick"
)  # fmt: skip
WIDTHS = (11, 5, 7, 7, 9, 9, 7, 6, 5, 7, 6)


def summary(rounds: Sequence[Figures], raw: Sequence[Figures]) -> tuple[str, ...]:
    """One line of the table: the worst of all rounds, and means of cores used. `raw` are the same with raw weights."""
    return (
        *rounds[0].key,
        percent(max(one.error for one in rounds)),
        percent(largest(one.shortfall for one in rounds)),
        percent(largest(one.overshoot for one in rounds)),
        percent(largest(one.late for one in rounds)),
        f"{mean(one.used for one in rounds):.3f}",
        f"{mean(one.total for one in rounds):.3f}",
        percent(mean(one.total for one in rounds) / mean(one.total for one in raw) if raw else None),
        percent(largest(one.tick for one in rounds)),
    )


def as_data(one: Figures) -> dict[str, Any]:
    """Everything a window says, for JSON."""
    scenario, host, column = one.key
    return asdict(one) | {
        "key": {"scenario": scenario, "host": host, "weights": column},
        "error": one.error,
        "shortfall": one.shortfall,
        "overshoot": one.overshoot,
        "late": one.late,
        "total": one.total,
    }


def guest_lines(one: Figures) -> list[str]:
    """The guests of one window, a line each."""
    return [
        f"  {guest.name:<22} shares {guest.shares:<5} used {guest.used:.4f} of {guest.expected:.4f}"
        f"  error {percent(guest.error):>6}  wanted {percent(guest.wanted):>6}"
        f"  weight {'→'.join(map(str, dict.fromkeys(guest.weights)))}"
        for guest in one.guests
    ] + [
        f"  parent weight {'→'.join(map(str, dict.fromkeys(one.parent_weights)))}"
        f"  everything else {one.others:.3f} cores  steal {one.steal:.3f} cores"
    ]


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + " |"


def head() -> str:
    """The first two lines of the table."""
    return f"{row(HEAD)}\n|{'|'.join('-' * (width + 2) for width in WIDTHS)}|"


def percent(part: float | None) -> str:
    """A part of 1 in per cent."""
    return "-" if part is None else f"{100 * part:.1f} %"


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    found = list(values)
    return math.fsum(found) / len(found)
