"""Whose memory is swapped, how much of it, and what is said where none is."""

import itertools
from dataclasses import replace

import pytest

from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.reclaim import SHORT
from kvmctl.model.units import GIB, MIB
from kvmctl.policy import memory_tick, swapping
from kvmctl.policy.memory_tick import decide
from tests.unit.test_policy_reclaim import POLICY, SECOND, guest, snapshot

pytestmark = pytest.mark.unit


def test_swapping_begins_where_balloons_do_not_suffice() -> None:
    full = guest("g", 490 * MIB)
    assert decide(snapshot(150 * MIB, full), None, POLICY).pageouts == ()
    plan = decide(snapshot(150 * MIB, full, swap=GIB), None, POLICY)
    assert [one.guest for one in plan.pageouts] == ["g"]
    idle = decide(snapshot(150 * MIB, guest("g", 64 * MIB), guest("h", 64 * MIB), swap=GIB), None, POLICY)
    assert idle.pageouts == ()


def test_no_guest_is_swapped_that_forbids_it_or_below_its_reservation() -> None:
    plan = decide(snapshot(0, guest("g", 500 * MIB, swap=False), swap=GIB), None, POLICY)
    assert plan.pageouts == ()
    reserved = guest("g", 500 * MIB, reservation=400 * MIB, overhead=72 * MIB)
    plan = decide(snapshot(0, reserved, swap=GIB), None, POLICY)
    # What QEMU takes of the 512 MiB is not the guest's, and a tenth more goes to find out what is cold.
    assert [one.amount for one in plan.pageouts] == [36 * MIB]
    full = guest("g", 500 * MIB, reservation=480 * MIB, overhead=32 * MIB)
    assert decide(snapshot(0, full, swap=GIB), None, POLICY).pageouts == ()


def test_of_a_guest_with_memory_reserved_nothing_is_swapped_before_it_is_known_what_is_its_own() -> None:
    plan = decide(snapshot(0, guest("g", 500 * MIB, reservation=MIB), swap=GIB), None, POLICY)
    assert plan.pageouts == ()
    assert plan.notes == (), "the next tick knows"


@pytest.mark.parametrize(
    ("free", "policy", "swaps", "why"),
    [
        (0, POLICY, True, "swap is full: kvmctl swap enable --file PATH SIZE, or stop or move a guest"),
        (GIB // 20, POLICY, True, "swap is full: "),
        (GIB, replace(POLICY, swap="leave"), True, "the host's policy has swap: leave: stop or move a guest"),
        (GIB, POLICY, False, "no guest has memory that may be swapped now: stop or move a guest"),
    ],
)
def test_what_keeps_memory_from_being_swapped_is_said(free: int, policy: MemoryPolicy, swaps: bool, why: str) -> None:
    now = snapshot(0, guest("g", 500 * MIB, swap=swaps), swap=GIB)
    assert now.host is not None
    plan = decide(replace(now, host=replace(now.host, swap_free=free)), None, policy)
    assert plan.pageouts == ()
    (note,) = plan.notes
    assert note.startswith("the host is in the state low and 250MiB are missing beyond what balloons give, and ")
    assert why in note


def test_what_is_being_read_back_is_said_and_no_more_is_swapped() -> None:
    now = snapshot(0, guest("g", 500 * MIB), swap=GIB)
    assert now.host is not None
    memory = decide(now, None, POLICY).memory
    stalled = replace(now, taken=now.taken + 5 * SECOND, host=replace(now.host, memory_stalled=2.0))
    (note,) = decide(stalled, memory, POLICY).notes
    assert "what was swapped is being read back: stop or move a guest" in note


def test_swapping_stops_where_what_was_swapped_is_read_back() -> None:
    now = snapshot(0, guest("g", 500 * MIB), swap=GIB)
    before = decide(now, None, POLICY).memory
    later = replace(now, taken=now.taken + 5 * SECOND)
    assert later.host is not None
    assert decide(later, before, POLICY).pageouts
    stalled = replace(later, host=replace(later.host, memory_stalled=5 * swapping.MOST_STALLED + 0.1))
    assert decide(stalled, before, POLICY).pageouts == ()
    faults = round(5 * memory_tick.MOST_HOST_FAULTS) + 5
    thrashing = replace(later, guests=(guest("g", 500 * MIB, host_faults=faults),))
    assert decide(thrashing, before, POLICY).pageouts == ()


def test_the_steps_of_swapping_grow_with_the_need() -> None:
    steps = [swapping.STEP[name] for name in SHORT]
    assert all(less < more for less, more in itertools.pairwise(steps))


def test_what_a_balloon_is_about_to_take_is_not_swapped_as_well() -> None:
    # Its balloon gives a fifth of its size in this tick; both at once would end below what is reserved.
    idle = guest("g", 64 * MIB, reservation=300 * MIB, overhead=0)
    plan = decide(snapshot(0, idle, swap=GIB), None, POLICY)
    (told,) = plan.balloons
    left = 512 * MIB - int(str(told.old)) + int(str(told.new))
    assert sum(one.amount for one in plan.pageouts) <= 0.9 * (left - 300 * MIB)
    # And so as long as the balloon has not arrived there.
    later = snapshot(0, idle, swap=GIB, taken=102 * SECOND)
    again = decide(later, plan.memory, replace(POLICY, balloon="leave"))
    assert sum(one.amount for one in again.pageouts) <= 0.9 * (left - 300 * MIB)


def test_page_cache_that_is_not_spared_does_not_count_as_used() -> None:
    stats = replace(guest("g", 64 * MIB).balloon, disk_caches=200 * MIB)
    cached = replace(guest("g", 64 * MIB), balloon=stats)
    assert "it uses 64MiB" in decide(snapshot(0, cached), None, POLICY).balloons[0].reason
    assert "it uses 164MiB" in decide(snapshot(150 * MIB, cached), None, POLICY).balloons[0].reason
