"""Whether reservations can be kept. What is reserved is never more than there is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvmctl.model.promise import Promise
from kvmctl.model.units import MIB, format_cores
from kvmctl.policy.memory import host_reserve


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


def admit_memory(running: Mapping[str, Promise], candidates: Mapping[str, Promise], total: int) -> Verdict:
    """Whether a host with `total` bytes holds the memory reservations, beside what it keeps for itself.

    As `admit_cpu`; what the host keeps is `policy.memory.host_reserve`.
    """
    before = {name: promise.memory_reservation for name, promise in running.items()}
    after = before | {name: promise.memory_reservation for name, promise in candidates.items()}
    capacity = max(0, total - host_reserve(total))
    needed = sum(after.values())
    admitted = needed <= max(capacity, sum(before.values()))
    kept = f"{_mib(total)} MiB of the host less {_mib(total - capacity)} that it keeps"
    return Verdict(admitted, needed, capacity, f"{_sum(after, needed, capacity, _mib)} MiB ({kept})")


def _sum(terms: Mapping[str, float], needed: float, capacity: float, show: Callable[[float], str]) -> str:
    shown = " + ".join(f"{name} {show(value)}" for name, value in terms.items() if value)
    return f"{shown or 'nothing'} = {show(needed)} {'>' if needed > capacity else '<='} {show(capacity)}"


def _mib(size: float) -> str:
    return f"{size / MIB:.0f}"
