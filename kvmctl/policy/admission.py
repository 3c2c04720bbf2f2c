"""Whether reservations can be kept. What is reserved is never more than there is.

All is counted as it is shown, so that every refusal adds up: cores in thousandths, memory in whole MiB, what is needed
rounded up and what there is rounded down.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from kvmctl.model.promise import Promise
from kvmctl.model.units import MIB, format_cores
from kvmctl.policy.reclaim import LEAST_PART, guests_memory, least_available

MOST_NAMED = 6
"""Guests that a refusal names; what the others have stands in one sum."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sum` and `capacity` are cores or bytes; `arithmetic` shows how they come about, for the refusal."""

    admitted: bool
    sum: float
    capacity: float
    arithmetic: str


def admit_cpu(
    running: Mapping[str, Promise], candidates: Mapping[str, Promise], cores: float, reserve: float = 0.0
) -> Verdict:
    """Whether a host of so many cores, of which it keeps `reserve`, holds the CPU reservations of the running guests
    and the candidates, by name.

    A candidate of a running guest's name takes its place.
    """
    before = {name: round(1000 * promise.cpu_reservation) for name, promise in running.items()}
    asked = {name: round(1000 * promise.cpu_reservation) for name, promise in candidates.items()}
    capacity = round(1000 * (cores - reserve))
    kept = f" ({format_cores(cores)} of the host less {format_cores(cores - capacity / 1000)} that it keeps)"
    found = _verdict(before, asked, capacity, "cores", _cores, kept if reserve else "")
    return replace(found, sum=found.sum / 1000, capacity=found.capacity / 1000)


def admit_memory(
    running: Mapping[str, Promise], candidates: Mapping[str, Promise], total: int, room: int | None = None
) -> Verdict:
    """Whether a host with `total` bytes, of which `room` is for guests, holds what guests keep of their memory, by
    reservation or pinned. None of `room` is as `policy.reclaim.guests_memory` says.

    As `admit_cpu`.
    """
    before = {name: _up(promise.memory_kept) for name, promise in running.items()}
    asked = {name: _up(promise.memory_kept) for name, promise in candidates.items()}
    there, capacity = _down(total), _down(guests_memory(total) if room is None else room)
    kept = f" ({there} MiB of the host less {there - capacity} that are not for guests)"
    return _in_bytes(_verdict(before, asked, capacity, "MiB", str, kept))


def admit_overcommit(
    running: Mapping[str, Promise], candidates: Mapping[str, Promise], room: int, ratio: float
) -> Verdict:
    """Whether the guests may grow to no more than `ratio` times the memory for guests, which is `room` bytes.

    As `admit_cpu`: what runs already is not refused for what it is.
    """
    before = {name: _up(promise.memory_max) for name, promise in running.items()}
    asked = {name: _up(promise.memory_max) for name, promise in candidates.items()}
    kept = f" ({_percent(ratio)} of the {_down(room)} MiB for guests)"
    # Per cent have two decimals at most, which a product of floats would blur.
    capacity = round(10_000 * ratio) * _down(room) // 10_000
    return _in_bytes(_verdict(before, asked, capacity, "MiB", str, kept))


def admit_unshare(saved: int, ballooned: int, cover: float, available: int, swap_free: int, growth: int = 0) -> Verdict:
    """Whether free memory and swap cover the part `cover` of what would be needed back at once, were all that is
    merged written to and all balloons let go; and what is given back now, `growth`, whole. Bytes."""
    now, merged, left = _up(growth), _up(saved), _up(max(0, ballooned - growth))
    needed = now - round(10_000 * cover) * (merged + left) // -10_000
    free, swap = _down(available), _down(swap_free)
    relation = ">" if needed > free + swap else "<="
    arithmetic = (
        f"{f'{now} to be given back now + ' if growth else ''}{_percent(cover)} of ({merged} merged + {left} ballooned "
        f"away) = {needed} {relation} {free + swap} MiB ({free} available + {swap} of swap)"
    )
    return _in_bytes(Verdict(needed <= free + swap, needed, free + swap, arithmetic))


def admit_state(available: int, reserve: int, taken: int = 0, swap_free: int = 0) -> Verdict:
    """Whether the host, with so many bytes available, is not so short of memory that nothing more may be started; nor
    becomes so by what is going to be `taken` at once, half of which may go to swap while it is taken."""
    there, begun, least = _down(available), _up(taken), _up(least_available(reserve))
    swapped = min(begun // 2, _down(swap_free))
    left = there - begun + swapped
    begin = f" - {begun} to begin with" if begun else ""
    swap = f" + {swapped} to swap" if swapped else ""
    arithmetic = (
        f"{there}{begin}{swap}{f' = {left}' if begun else ''} MiB available {'<' if left < least else '>='} {least}, "
        f"{_percent(LEAST_PART)} of the {_up(reserve)} that the host keeps"
    )
    return _in_bytes(Verdict(left >= least, least + begun - swapped, there, arithmetic))


def _verdict(
    before: Mapping[str, int],
    asked: Mapping[str, int],
    capacity: int,
    unit: str,
    show: Callable[[int], str],
    kept: str,
) -> Verdict:
    """What makes it no worse is admitted, also where more was promised than there is."""
    after = {**before, **asked}
    needed = sum(after.values())
    relation = ">" if needed > capacity else "<="
    arithmetic = f"{_terms(after, asked, show)} = {show(needed)} {relation} {show(capacity)} {unit}{kept}"
    return Verdict(needed <= max(capacity, sum(before.values())), needed, capacity, arithmetic)


def _terms(after: Mapping[str, int], asked: Collection[str], show: Callable[[int], str]) -> str:
    """The sum's terms, by name: of many, those who are asked about and whoever has most."""
    some = {name: value for name, value in after.items() if value}
    first = sorted(some, key=lambda name: (name not in asked, -some[name]))
    named = set(first if len(some) <= MOST_NAMED + 1 else first[:MOST_NAMED])
    others = [value for name, value in some.items() if name not in named]
    terms = [f"{name} {show(value)}" for name, value in some.items() if name in named]
    if others:
        terms.insert(0, f"{len(others)} guests {show(sum(others))}")
    return " + ".join(terms) or "nothing"


def _in_bytes(verdict: Verdict) -> Verdict:
    return replace(verdict, sum=verdict.sum * MIB, capacity=verdict.capacity * MIB)


def _up(size: int) -> int:
    return -(-size // MIB)


def _down(size: int) -> int:
    return size // MIB


def _cores(thousandths: int) -> str:
    return format_cores(thousandths / 1000)


def _percent(part: float) -> str:
    return f"{round(100 * part, 2):g}%"
