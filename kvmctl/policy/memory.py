"""What is said of memory: what the host keeps for itself, which statistics are fresh, and how much is promised."""

from collections.abc import Iterable

from kvmctl.model.host_sample import ProcessSample
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import GIB, MIB

RESERVE_STEPS = ((4 * GIB, 6), (8 * GIB, 4), (16 * GIB, 2))
"""Amount of memory and the per cent of it that the host keeps; of what is beyond, 1 per cent."""

REPORT_SECONDS = 5
"""Between two reports of a balloon driver that nobody has told how often to report."""
STALE_PERIODS = 3
"""How many reporting periods a balloon driver may miss before what it last said is no longer believed."""


def host_reserve(total: int) -> int:
    """Bytes of a host's `total` that no guest may reserve, in whole MiB, rounded up.

    ESXi's Mem.MinFreePct on its sliding scale: 6 % of the first 4 GiB, 4 % of the next 8, 2 % of the next 16
    and 1 % of the rest, so 902 MiB at 28 GiB.
    """
    left, percents = total, 0
    for amount, percent in RESERVE_STEPS:
        percents += min(left, amount) * percent
        left -= min(left, amount)
    return -(-(percents + left) // (100 * MIB)) * MIB


def reserve_of(policy: MemoryPolicy, total: int) -> int:
    """Bytes that a host of `total` bytes keeps for itself."""
    return host_reserve(total) if policy.reserve is None else policy.reserve


def due_size(guest: GuestSample) -> int:
    """Bytes that a running guest is to have: what its definition says, which may have been raised beyond what it was
    started with, and no more than that."""
    most = guest.balloon.maximum
    size = guest.memory_size or most or guest.balloon.current or 0
    return min(size, most) if most else size


def is_fresh(balloon: BalloonSample, clock: float, period: int) -> bool:
    """Whether the guest's own statistics are to be believed at `clock`, in seconds since the epoch.

    `period` is how often the driver reports, in seconds; 0 is never. A `last_update` of 0 means that no driver
    has ever answered.
    """
    if not balloon.last_update or not period:
        return False
    return clock - balloon.last_update <= STALE_PERIODS * period


def kept_in_place(process: ProcessSample | None, size: int | None) -> str:
    """Why the memory of a guest of `size` bytes stays where it is, as the kernel has it now: somebody may have changed
    the running guest, or its definition since it was started. Empty where it can be taken."""
    if process is None or not size:
        return ""
    if (process.locked or 0) > size // 2:
        return "it is locked, as by a device that is passed through to it"
    return "it is on huge pages" if (process.hugetlb or 0) > size // 2 else ""


def used(balloon: BalloonSample) -> int | None:
    """Bytes that the guest cannot do without right now: all that its balloon leaves it, less what it calls usable.

    Not less than what it sees (`available`): of that a balloon takes nothing where it is let go when memory runs out.
    """
    if balloon.current is None or balloon.usable is None:
        return None
    return max(0, balloon.current - balloon.usable)


def overcommit_ratio(configured: Iterable[int | None], total: int) -> float | None:
    """Memory that running guests may grow to, as a multiple of the host's; None where a guest's is not known."""
    sizes = list(configured)
    if None in sizes or total <= 0:
        return None
    return sum(size for size in sizes if size is not None) / total
