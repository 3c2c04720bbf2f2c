"""What goes wrong with drivers, guests, swap and limits, played through from snapshots of a booted guest.

The snapshots are of a host with a Linux guest of 384 MiB, of which 160 are reserved, and one with no system and so no
balloon driver: while the former is squeezed, with its driver silent for a while, after its kernel has crashed, and
after its QEMU was killed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.control.snapshot import Saved, load
from kvmctl.model.host_sample import HostSample, Snapshot
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.reclaim import ReclaimMemory, ReclaimPlan
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import GIB, MIB
from kvmctl.policy import driver, swapping
from kvmctl.policy.memory_tick import decide

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parent / "snapshots"
RESERVED = 160 * MIB
LINUX, EMPTY = "kvmctl-test-linux", "kvmctl-test-nodriver"
SECOND = 10**9


def saved(name: str) -> Saved:
    return load(name, (FOLDER / f"{name}.json").read_text())


SQUEEZED = saved("squeezed")
POLICY = SQUEEZED.policy.memory


def of(now: Snapshot, name: str = LINUX) -> GuestSample:
    return next(guest for guest in now.guests if guest.name == name)


def with_guest(now: Snapshot, changed: GuestSample) -> Snapshot:
    return replace(now, guests=tuple(changed if guest.name == changed.name else guest for guest in now.guests))


def with_balloon(now: Snapshot, **fields: int | None) -> Snapshot:
    guest = of(now)
    return with_guest(now, replace(guest, balloon=replace(guest.balloon, **fields)))


def with_host(now: Snapshot, **fields: int | None) -> Snapshot:
    assert now.host is not None
    return replace(now, host=replace(now.host, **fields))  # type: ignore[arg-type]


def later(now: Snapshot, seconds: float) -> Snapshot:
    """The same seen later, with everything that was reported as fresh as it was."""
    guests = tuple(
        replace(guest, balloon=replace(guest.balloon, last_update=guest.balloon.last_update + round(seconds)))
        if guest.balloon.last_update
        else guest
        for guest in now.guests
    )
    return replace(now, taken=now.taken + round(seconds * SECOND), clock=now.clock + seconds, guests=guests)


def planned(now: Snapshot, before: ReclaimMemory | None = None, policy: MemoryPolicy = POLICY) -> ReclaimPlan:
    """The plan, in which nothing is lost and no guest ends below what is reserved for it."""
    plan = decide(now, before, policy)
    assert now.host is not None
    for change in plan.balloons:
        guest, new = of(now, change.guest), int(str(change.new))
        assert guest.promise is not None
        assert guest.balloon.current is not None
        assert guest.state == "running"
        size = guest.memory_size or 0
        assert new <= max(size, guest.balloon.current)
        if new < guest.balloon.current:
            assert new >= min(guest.promise.memory_reservation, guest.balloon.current)
            assert new >= guest.balloon.current - (guest.balloon.usable or 0), "what it uses is left to it"
    for out in plan.pageouts:
        guest = of(now, out.guest)
        assert guest.promise is not None
        assert guest.process is not None
        reserved = guest.promise.memory_reservation
        assert (guest.process.rss or 0) - (guest.process.overhead or 0) - out.amount >= reserved
        assert guest.process.overhead is not None or not reserved
        assert guest.promise.swap
    room = now.host.swap_free - round(swapping.KEPT * now.host.swap_total)
    assert sum(out.amount for out in plan.pageouts) <= max(0, room)
    return plan


def targets(plan: ReclaimPlan) -> dict[str, object]:
    return {change.guest: change.new for change in plan.balloons}


def notes(plan: ReclaimPlan, name: str) -> str:
    return "; ".join(note for note in plan.notes if note.startswith(f"{name}: "))


SHORT = with_host(SQUEEZED.snapshot, memory_available=0)
ROOMY = with_host(SQUEEZED.snapshot, memory_available=64 * GIB, memory_total=64 * GIB)


def test_the_recorded_guest_is_squeezed_and_gives_more_where_more_is_missing() -> None:
    guest = of(SHORT)
    assert guest.balloon_moved
    assert guest.balloon.current is not None
    assert guest.balloon.current < (guest.memory_size or 0)
    new = targets(planned(SHORT))[LINUX]
    assert isinstance(new, int)
    assert new < guest.balloon.current


def test_a_guest_with_no_driver_is_left_counted_whole_and_named() -> None:
    plan = planned(SHORT)
    assert EMPTY not in targets(plan)
    assert "no balloon driver in the guest has reported" in notes(plan, EMPTY)


@pytest.mark.parametrize(
    ("name", "why"), [("silent", " s old"), ("hung", " s old")], ids=["no reports", "its kernel crashed"]
)
def test_a_driver_that_reports_no_more_is_left_where_it_is(name: str, why: str) -> None:
    found = saved(name)
    before = found.memory.reclaim if found.memory else None
    plan = planned(with_host(found.snapshot, memory_available=0), before)
    assert LINUX not in targets(plan)
    assert why in notes(plan, LINUX)


def test_the_balloon_of_a_crashed_kernel_was_seen_to_stand_still() -> None:
    found = saved("hung")
    assert found.memory is not None
    assert found.memory.reclaim is not None
    seen = found.memory.reclaim.guests[of(found.snapshot).uuid]
    assert seen.target == RESERVED
    assert (seen.actual or 0) > RESERVED
    assert driver.is_stuck(seen, found.snapshot.taken)


def test_a_guest_that_died_is_forgotten() -> None:
    found = saved("crashed")
    assert [guest.name for guest in found.snapshot.guests] == [EMPTY]
    assert found.memory is not None
    uuid = of(SHORT).uuid
    plan = planned(with_host(found.snapshot, memory_available=0), decide(SHORT, None, POLICY).memory)
    assert plan.memory is not None
    assert uuid not in plan.memory.guests


def test_a_guest_that_crashed_and_is_still_there_is_not_touched() -> None:
    plan = planned(with_guest(SHORT, replace(of(SHORT), state="crashed")))
    assert LINUX not in targets(plan)
    assert LINUX not in {out.guest for out in plan.pageouts}


@pytest.mark.parametrize(
    "lie",
    [
        lambda now: with_balloon(now, usable=(of(now).balloon.current or 0) + 1),
        lambda now: with_balloon(now, usable=16 * GIB),
        lambda now: with_balloon(now, available=1),
        lambda now: with_balloon(now, current=0),
        lambda now: with_balloon(now, current=(of(now).balloon.maximum or 0) + 1),
        lambda now: with_balloon(now, current=(1 << 64) - (1 << 20)),
        lambda now: with_balloon(now, usable=None),
    ],
)
def test_a_driver_that_says_what_cannot_be_is_left_and_named(lie: Callable[[Snapshot], Snapshot]) -> None:
    plan = planned(lie(SHORT))
    assert LINUX not in targets(plan)
    assert "its memory counts whole" in notes(plan, LINUX)


def test_a_driver_that_plays_poor_gets_what_it_is_to_have_and_no_more() -> None:
    now = with_balloon(with_host(SQUEEZED.snapshot, memory_available=64 * GIB), usable=0)
    assert targets(planned(now))[LINUX] == of(now).memory_size


SMALL = replace(POLICY, reserve=128 * MIB)
"""A policy by which a little is missing with this much available, which the recorded guest could give."""
LITTLE = with_host(SQUEEZED.snapshot, memory_available=127 * MIB, swap_total=4 * GIB, swap_free=4 * GIB)


def test_a_balloon_that_does_not_follow_frees_nothing_so_that_memory_is_swapped() -> None:
    memory: ReclaimMemory | None = None
    told, swapped, plan = [], [], None
    for step in range(8):
        plan = planned(later(LITTLE, 5 * step), memory, SMALL)
        memory = plan.memory
        told.append(LINUX in targets(plan))
        swapped.append(bool(plan.pageouts))
    # It is told until it has stood still for too long; only what it was told counts as freed, and no longer.
    assert told == [5 * step <= driver.STUCK_SECONDS for step in range(8)]
    assert swapped == [not one for one in told]
    assert plan is not None
    assert "does not follow" in notes(plan, LINUX)


def test_a_balloon_that_follows_is_no_reason_to_swap() -> None:
    now, memory = LITTLE, None
    for step in range(8):
        plan = planned(later(now, 5 * step), memory, SMALL)
        memory = plan.memory
        assert not plan.pageouts
        if new := targets(plan).get(LINUX):
            assert isinstance(new, int)
            balloon = of(now).balloon
            gone = (balloon.current or 0) - new
            now = with_balloon(now, current=new, usable=(balloon.usable or 0) - gone)
            now = with_host(now, memory_available=127 * MIB + gone)


@pytest.mark.parametrize("swap", [0, 4 * GIB], ids=["no swap", "swap that is full"])
def test_without_room_in_swap_nothing_is_swapped_and_what_is_missing_is_said(swap: int) -> None:
    plan = planned(with_host(SHORT, swap_total=swap, swap_free=0))
    assert plan.pageouts == ()
    assert LINUX in targets(plan), "balloons are filled all the same"
    assert any("kvmctl swap enable" in note for note in plan.notes)


def test_swap_that_somebody_has_switched_off_between_two_ticks_is_not_counted_on() -> None:
    now = with_host(SHORT, swap_total=4 * GIB, swap_free=4 * GIB)
    first = planned(now)
    assert first.pageouts
    assert planned(later(with_host(now, swap_total=0, swap_free=0), 5), first.memory).pageouts == ()


def test_a_limit_that_is_lowered_is_a_shortage_though_the_host_has_plenty() -> None:
    assert targets(planned(ROOMY)) == {LINUX: of(ROOMY).memory_size}
    plan = planned(with_host(ROOMY, guests_limit=GIB, guests_available=0))
    assert plan.state == "low"
    new = targets(plan)[LINUX]
    assert isinstance(new, int)
    assert new < (of(ROOMY).balloon.current or 0)


def test_a_controller_that_remembers_nothing_still_knows_whose_balloons_it_filled() -> None:
    assert targets(planned(ROOMY, before=None)) == {LINUX: of(ROOMY).memory_size}
    theirs = with_guest(ROOMY, replace(of(ROOMY), balloon_moved=False))
    assert targets(planned(theirs)) == {}


def crowd(now: Snapshot, count: int) -> Snapshot:
    """So many guests like the recorded one."""
    one = of(now)
    many = (replace(one, name=f"{LINUX}{number}", uuid=f"{one.uuid}{number}") for number in range(count))
    return replace(now, guests=tuple(many))


@pytest.mark.parametrize("available", [0, 64 * MIB, 512 * MIB])
def test_a_hundred_times_as_much_as_there_is_ends_no_guest_below_its_promise(available: int) -> None:
    size = of(SHORT).memory_size or 0
    policy = replace(POLICY, reserve=2 * size, overcommit=100.0)
    now = with_host(crowd(SHORT, 200), memory_total=3 * size, memory_available=available, swap_total=GIB, swap_free=GIB)
    memory: ReclaimMemory | None = None
    for step in range(5):
        plan = planned(later(now, 5 * step), memory, policy)
        memory = plan.memory
        freed = sum(int(str(change.old)) - int(str(change.new)) for change in plan.balloons)
        assert step or freed >= 2 * size * 5 // 4 - available, "all that is missing is asked for"
        moved = {change.guest: int(str(change.new)) for change in plan.balloons}
        guests = tuple(replace(guest, balloon=_filled(guest.balloon, moved.get(guest.name))) for guest in now.guests)
        now = replace(now, guests=guests)
    assert all(RESERVED <= (guest.balloon.current or 0) < size for guest in now.guests)


def _filled(balloon: BalloonSample, target: int | None) -> BalloonSample:
    """What a driver that follows says next."""
    if target is None:
        return balloon
    gone = (balloon.current or 0) - target
    return replace(balloon, current=target, usable=max(0, (balloon.usable or 0) - gone))


_FIGURE = st.one_of(st.none(), st.integers(0, 1 << 40))
_SAID = ("current", "available", "usable", "disk_caches", "swap_in", "major_fault", "last_update")
_OWN = st.one_of(st.none(), st.integers(0, 512 * MIB))
_HOST = ("memory_available", "swap_total", "swap_free", "guests_available")


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(_SAID, _FIGURE)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(_HOST, st.integers(0, 1 << 36))),
    st.sampled_from(["running", "paused", "crashed"]),
    st.booleans(),
    _OWN,
)
def test_whatever_a_driver_says_no_guest_ends_below_its_promise(
    said: dict[str, int | None], host: dict[str, int | None], state: str, remembers: bool, own: int | None
) -> None:
    before = SQUEEZED.memory.reclaim if remembers and SQUEEZED.memory else None
    now = with_host(with_balloon(SQUEEZED.snapshot, **said), **host)
    assert isinstance(now.host, HostSample)
    process = of(now).process
    assert process is not None
    changed = replace(of(now), state=state, process=replace(process, overhead=own))
    plan = planned(with_guest(now, changed), before)
    assert state == "running" or (LINUX not in targets(plan) and LINUX not in {out.guest for out in plan.pageouts})
