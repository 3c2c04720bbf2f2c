"""How far a guest's balloon driver is to be believed: what it says has to be possible, and what it is told has to
come about."""

from __future__ import annotations

from dataclasses import replace

from kvmctl.model.reclaim import ReclaimGuest
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import MIB
from kvmctl.policy.memory import is_fresh

STUCK_SECONDS = 20.0
"""For how long a balloon that is to be filled may take nothing more. A driver fills it by the MiB and tries again five
times a second where it finds no memory, so that one that has taken nothing by then has nothing to give, or hangs."""

AGAIN_SECONDS = 300.0
"""After how long such a balloon is tried again."""


def left_alone(guest: GuestSample, clock: float) -> str:
    """Why a guest's balloon is not moved at `clock`, in seconds since the epoch; empty where it may be."""
    stats = guest.balloon
    if guest.promise is not None and not guest.promise.rebalance:
        return "it opted out (rebalance: false)"
    if guest.memory_fixed:
        return guest.memory_fixed
    if not stats.last_update or stats.current is None:
        return "no balloon driver in the guest has reported"
    if not is_fresh(stats, clock, guest.stats_period):
        return f"what its balloon driver last said is {clock - stats.last_update:.0f} s old"
    if stats.usable is None:
        return "its balloon driver does not say how much memory is usable"
    return impossible(stats)


def impossible(stats: BalloonSample) -> str:
    """Why what the driver said cannot be so now; empty where it can."""
    if stats.usable is None or stats.current is None:
        return ""
    if stats.maximum is not None and stats.current > stats.maximum:
        # A guest writes how much its balloon holds, and QEMU takes any number.
        return "its balloon driver says that it has more memory than it was started with"
    if stats.usable > stats.current:
        # Also for a moment after the balloon was filled: what was said before that says nothing of what is left.
        return "what its balloon driver last said is usable is more than its balloon leaves it"
    if stats.available is not None and stats.usable > stats.available:
        return "its balloon driver says that more is usable than there is"
    return ""


def followed(memory: ReclaimGuest, actual: int, taken: int) -> ReclaimGuest:
    """What is remembered of a guest whose balloon leaves it `actual` bytes now, at `taken`."""
    arrived = memory.target is None or actual - memory.target < MIB
    if arrived or taken - memory.moved > AGAIN_SECONDS * 1e9:
        return replace(memory, target=None, actual=actual, moved=taken)
    # What a guest at its limit lets its balloon take and takes back again and again is no progress.
    moved = memory.actual is None or memory.actual - actual >= MIB
    return replace(memory, actual=actual, moved=taken) if moved else memory


def told(memory: ReclaimGuest, target: int, taken: int) -> ReclaimGuest:
    """What is remembered once its balloon was told to leave it `target` bytes. To be told again, or more, while it
    stands still is no new beginning."""
    return replace(memory, target=target, moved=taken if memory.target is None else memory.moved)


def is_stuck(memory: ReclaimGuest, taken: int) -> bool:
    """Whether the guest's balloon was told to take memory, and has taken none for long."""
    return memory.target is not None and taken - memory.moved > STUCK_SECONDS * 1e9
