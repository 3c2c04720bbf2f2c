"""Whose memory is swapped where balloons do not suffice, and why none is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvmctl.model.host_sample import HostSample
from kvmctl.model.reclaim import PageOut
from kvmctl.model.sample import GuestSample
from kvmctl.model.units import MIB, human_size

STEP: Mapping[str, int] = {"soft": 64 * MIB, "hard": 192 * MIB, "low": 384 * MIB}
"""Bytes that one tick swaps at most, in each state of the host."""
MOST_STALLED = 0.2
"""The part of the time some task waited for memory from which nothing more is swapped: it is being read back."""
KEPT = 0.05
"""The part of swap that is left free for the kernel's own need."""
LOOKED, LEAST_LOOKED = 0.1, 2 * MIB
"""What is swapped besides to find out what is cold: that part of what is wanted, and bytes at least."""


@dataclass(frozen=True, slots=True)
class Swapping:
    """What to swap; and where that is nothing, why, for the user."""

    pageouts: tuple[PageOut, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running guest. One that `thrashes` reads back what was swapped; `filling` are bytes that its balloon is still
    to take. One that is `unmerged` is spared until KSM has seen it, if that can wait."""

    guest: GuestSample
    thrashes: bool = False
    filling: int = 0
    unmerged: bool = False


def decide(
    candidates: Sequence[Candidate], state: str, why: str, host: HostSample, missing: int, stalled: float | None
) -> Swapping:
    """What to swap of `missing` bytes in a host that is as short as the `state` says: of the guests with the lowest
    claim first. `stalled` is the part of the time for which some task waited for memory, None where it is not known."""
    if missing <= 0 or state not in STEP:
        return Swapping()
    room = host.swap_free - round(KEPT * host.swap_total)
    if room < MIB:
        return Swapping(why_not="swap is full" if host.swap_total else "there is no swap")
    if stalled is not None and stalled > MOST_STALLED:
        return Swapping(why_not="what was swapped is being read back")
    left = min(missing, STEP[state], room)
    found: list[PageOut] = []
    for one in sorted(candidates, key=_order):
        amount = 0 if one.unmerged and state != "low" else min(left, _swappable(one))
        if amount >= MIB:
            reason = f"{why}, and balloons leave {human_size(missing)} missing"
            found.append(_page_out(one.guest, amount, state, reason))
            left -= amount
    if found or any(one.unmerged or _is_open(one.guest) for one in candidates):
        return Swapping(tuple(found))
    return Swapping(why_not="no guest has memory that may be swapped now")


def _page_out(guest: GuestSample, amount: int, state: str, reason: str) -> PageOut:
    process = guest.process
    assert process is not None
    return PageOut(
        guest=guest.name,
        pid=process.pid,
        amount=amount,
        haste=state == "low",
        merged=process.ksm_merging_pages != 0,
        size=guest.balloon.maximum or 0,
        swapped=process.swapped or 0,
        reason=reason,
    )


def _order(one: Candidate) -> tuple[float, str]:
    assert one.guest.promise is not None
    held = one.guest.process.rss if one.guest.process else None
    return (one.guest.promise.memory_shares / max(1, held or 1), one.guest.name)


def may_swap(guest: GuestSample) -> bool:
    """Whether any of its memory may be swapped."""
    promise = guest.promise
    return promise is not None and promise.swap and promise.rebalance and not guest.memory_fixed


def _is_open(guest: GuestSample) -> bool:
    """Whether it is to be found out yet what of a guest's process is its reserved memory."""
    return may_swap(guest) and guest.process is not None and _unknown(guest)


def _unknown(guest: GuestSample) -> bool:
    assert guest.promise is not None
    return guest.promise.memory_reservation > 0 and (guest.process is None or guest.process.overhead is None)


def _swappable(one: Candidate) -> int:
    """Bytes; what QEMU itself takes is none of what is reserved for the guest."""
    promise, process = one.guest.promise, one.guest.process
    if promise is None or process is None or process.rss is None or one.thrashes or not may_swap(one.guest):
        return 0
    if not promise.memory_reservation:
        return process.rss
    if process.overhead is None:
        return 0
    # All that its balloon is about to take may be in memory now.
    over = process.rss - process.overhead - one.filling - promise.memory_reservation
    return max(0, min(round(over * (1 - LOOKED)), over - LEAST_LOOKED))
