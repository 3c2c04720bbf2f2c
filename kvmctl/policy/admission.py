"""Whether reservations can be kept. What is reserved is never more than there is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvmctl.model.promise import Promise
from kvmctl.model.units import MIB, format_cores
from kvmctl.policy.reclaim import guests_memory, least_available


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

    A candidate of a running guest's name takes its place. Cores count in thousandths, as they are shown.
    """
    before = {name: promise.cpu_reservation for name, promise in running.items()}
    after = before | {name: promise.cpu_reservation for name, promise in candidates.items()}
    needed, spent = round(sum(after.values()), 3), round(sum(before.values()), 3)
    capacity = round(cores - reserve, 3)
    admitted = needed <= max(capacity, spent)
    kept = f" ({format_cores(cores)} of the host less {format_cores(cores - capacity)} that it keeps)"
    arithmetic = f"{_sum(after, needed, capacity, format_cores)} cores{kept if reserve else ''}"
    return Verdict(admitted, needed, capacity, arithmetic)


def admit_memory(
    running: Mapping[str, Promise], candidates: Mapping[str, Promise], total: int, room: int | None = None
) -> Verdict:
    """Whether a host with `total` bytes holds the memory reservations, of which `room` is for guests: as
    `policy.reclaim.guests_memory` where None is given.

    As `admit_cpu`.
    """
    before = {name: promise.memory_reservation for name, promise in running.items()}
    after = before | {name: promise.memory_reservation for name, promise in candidates.items()}
    capacity = guests_memory(total) if room is None else room
    needed = sum(after.values())
    admitted = needed <= max(capacity, sum(before.values()))
    kept = f"{_mib(total)} MiB of the host less {_mib(total - capacity)} that are not for guests"
    return Verdict(admitted, needed, capacity, f"{_sum(after, needed, capacity, _mib)} MiB ({kept})")


def admit_overcommit(
    running: Mapping[str, Promise], candidates: Mapping[str, Promise], room: int, ratio: float
) -> Verdict:
    """Whether the guests may grow to no more than `ratio` times the memory for guests, which is `room` bytes.

    As `admit_cpu`: what runs already is not refused for what it is.
    """
    before = {name: promise.memory_max for name, promise in running.items()}
    after = before | {name: promise.memory_max for name, promise in candidates.items()}
    capacity, needed = round(ratio * room), sum(after.values())
    admitted = needed <= max(capacity, sum(before.values()))
    kept = f"{ratio:.0%} of the {_mib(room)} MiB for guests"
    return Verdict(admitted, needed, capacity, f"{_sum(after, needed, capacity, _mib)} MiB ({kept})")


def admit_unshare(saved: int, ballooned: int, cover: float, available: int, swap_free: int, growth: int = 0) -> Verdict:
    """Whether free memory and swap cover the part `cover` of what would be needed back at once, were all that is
    merged written to and all balloons let go; and what is given back now, `growth`, whole. Bytes."""
    left = max(0, ballooned - growth)
    needed, capacity = round(cover * (saved + left)) + growth, available + swap_free
    relation = ">" if needed > capacity else "<="
    arithmetic = (
        f"{f'{_mib(growth)} more now + ' if growth else ''}{cover:.0%} of {_mib(saved)} merged + {_mib(left)} "
        f"ballooned away = {_mib(needed)} {relation} "
        f"{_mib(capacity)} MiB ({_mib(available)} available + {_mib(swap_free)} of swap)"
    )
    return Verdict(needed <= capacity, needed, capacity, arithmetic)


def admit_state(available: int, reserve: int, taken: int = 0, swap_free: int = 0) -> Verdict:
    """Whether the host, with so many bytes available, is not so short of memory that nothing more may be started; nor
    becomes so by what is going to be `taken` at once, half of which may go to swap while it is taken."""
    least, swapped = least_available(reserve), min(taken // 2, swap_free)
    left = available - taken + swapped
    begin = f" - {_mib(taken)} to begin with" if taken else ""
    swap = f" + {_mib(swapped)} to swap" if swapped else ""
    arithmetic = (
        f"{_mib(available)} MiB available{begin}{swap} {'<' if left < least else '>='} {_mib(least)}, "
        f"a part of the {_mib(reserve)} it keeps"
    )
    return Verdict(left >= least, least + taken - swapped, available, arithmetic)


def _sum(terms: Mapping[str, float], needed: float, capacity: float, show: Callable[[float], str]) -> str:
    shown = " + ".join(f"{name} {show(value)}" for name, value in terms.items() if value)
    return f"{shown or 'nothing'} = {show(needed)} {'>' if needed > capacity else '<='} {show(capacity)}"


def _mib(size: float) -> str:
    return f"{size / MIB:.0f}"
