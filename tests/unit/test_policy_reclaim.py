"""The host's state, and what one tick does about memory."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.host_sample import HostSample, KsmSample, ProcessSample, Snapshot
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.promise import Promise
from kvmctl.model.reclaim import ReclaimGuest, ReclaimMemory
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import GIB, MIB
from kvmctl.policy import balloon, memory_tick, reclaim, swapping
from kvmctl.policy.memory import REPORT_SECONDS
from kvmctl.policy.memory_tick import decide

pytestmark = pytest.mark.unit

CLOCK = 1_000_000.0
SECOND = 10**9
RESERVE = 200 * MIB
POLICY = MemoryPolicy(reserve=RESERVE, overcommit=4.0)


def ksm(run: int = 0, sharing: int = 0, unshared: int = 0, scans: int = 0) -> KsmSample:
    return KsmSample(run, 100, 20, 1, scans, sharing // 10, sharing, unshared, 0, None, None, None, None, None)


def guest(
    name: str,
    used: int,
    *,
    actual: int = 512 * MIB,
    size: int = 512 * MIB,
    reservation: int = 0,
    swap: bool = True,
    rebalance: bool = True,
    age: float = 2.0,
    fixed: str = "",
    faults: int = 0,
    host_faults: int = 0,
    moved: bool = True,
    overhead: int | None = None,
) -> GuestSample:
    stats = BalloonSample(
        current=actual,
        maximum=size,
        available=actual,
        usable=actual - used,
        disk_caches=0,
        major_fault=faults,
        swap_in=0,
        last_update=round(CLOCK - age),
    )
    promise = Promise(1000, math.inf, 0.0, 5120, reservation, sharing=True, swap=swap, rebalance=rebalance)
    process = ProcessSample(1, rss=actual, swapped=0, major_faults=host_faults, overhead=overhead)
    return GuestSample(
        name=name,
        uuid=name,
        state="running",
        vcpus=1,
        vcpus_max=1,
        balloon=stats,
        run=1,
        promise=promise,
        process=process,
        memory_size=size,
        memory_fixed=fixed,
        balloon_moved=moved,
        stats_period=5,
    )


def snapshot(available: int, *guests: GuestSample, swap: int = 0, taken: int = 100 * SECOND) -> Snapshot:
    host = HostSample(2, None, 4 * GIB, available, swap, swap, 1, ksm=ksm(), memory_stalled=0.0)
    return Snapshot("qemu:///system", taken, CLOCK, "boot", guests, host)


def targets(now: Snapshot, before: ReclaimMemory | None = None) -> dict[str, int]:
    return {change.guest: int(str(change.new)) for change in decide(now, before, POLICY).balloons}


def test_states_follow_the_thresholds() -> None:
    found = [reclaim.state(part * RESERVE // 100, RESERVE) for part in (500, 400, 399, 100, 99, 64, 63, 32, 31, 0)]
    assert found == ["high", "high", "clear", "clear", "soft", "soft", "hard", "hard", "low", "low"]


def test_a_better_state_is_entered_only_beyond_its_threshold() -> None:
    assert reclaim.state(RESERVE, RESERVE, "soft") == "soft"
    assert reclaim.state(round(1.11 * RESERVE), RESERVE, "soft") == "clear"
    assert reclaim.state(round(0.7 * RESERVE), RESERVE, "low") == "hard"
    assert reclaim.state(RESERVE - 1, RESERVE, "clear") == "soft"


@given(st.integers(0, 8 * GIB), st.sampled_from([None, "high", "clear", "soft", "hard", "low"]))
def test_the_same_again_changes_no_state(available: int, before: reclaim.State | None) -> None:
    found = reclaim.state(available, RESERVE, before)
    assert reclaim.state(available, RESERVE, found) == found


def test_memory_for_guests_is_the_least_of_what_bounds_it() -> None:
    assert reclaim.guests_memory(4 * GIB, GIB) == 3 * GIB
    assert reclaim.guests_memory(4 * GIB, GIB, limit=2 * GIB) == 2 * GIB
    assert reclaim.guests_memory(4 * GIB, GIB, limit=2 * GIB, parent=GIB) == GIB
    assert reclaim.guests_memory(4 * GIB, 5 * GIB) == 0


def test_with_enough_memory_nothing_is_taken_and_all_is_given_back() -> None:
    now = snapshot(4 * RESERVE, guest("squeezed", 100 * MIB, actual=300 * MIB), guest("whole", 100 * MIB))
    assert targets(now) == {"squeezed": 512 * MIB}


def test_a_balloon_that_somebody_else_has_filled_is_left_until_the_guest_is_short() -> None:
    theirs = guest("g", 100 * MIB, actual=300 * MIB, moved=False)
    assert targets(snapshot(4 * RESERVE, theirs)) == {}
    assert targets(snapshot(4 * RESERVE, guest("g", 297 * MIB, actual=300 * MIB, moved=False))) == {"g": 512 * MIB}


def test_a_short_host_takes_from_the_idle_and_leaves_need_and_margin() -> None:
    idle, busy = guest("idle", 64 * MIB), guest("busy", 480 * MIB)
    found = targets(snapshot(150 * MIB, idle, busy))
    assert set(found) == {"idle"}
    assert found["idle"] >= 64 * MIB + balloon.margin(512 * MIB)


def quiet(name: str = "g", *, fixed: str = "", rebalance: bool = True) -> GuestSample:
    """One whose driver nobody has told to report."""
    silent = replace(guest(name, 0, fixed=fixed, rebalance=rebalance), stats_period=0, has_balloon=True)
    return replace(silent, balloon=BalloonSample(current=512 * MIB, maximum=512 * MIB, last_update=0))


def test_a_driver_that_nobody_has_told_to_report_is_told() -> None:
    plan = decide(snapshot(4 * GIB, quiet()), None, POLICY)
    assert [(one.field, one.old, one.new) for one in plan.reports] == [("memory.reports", 0, REPORT_SECONDS)]
    assert memory_tick.guest_changes(plan)[0] == plan.reports[0]
    assert plan.balloons == (), "it has not answered yet"


@pytest.mark.parametrize(
    "left",
    [
        quiet(rebalance=False),
        quiet(fixed="it is locked"),
        replace(quiet(), has_balloon=False),
        replace(quiet(), stats_period=10),
        replace(quiet(), state="paused"),
        replace(quiet(), promise=None),
    ],
)
def test_no_other_driver_is_told_to_report(left: GuestSample) -> None:
    assert decide(snapshot(100 * MIB, left), None, POLICY).reports == ()


def test_where_balloons_are_to_be_left_no_driver_is_told_to_report() -> None:
    assert decide(snapshot(100 * MIB, quiet()), None, replace(POLICY, balloon="leave")).reports == ()


def test_nothing_goes_below_a_reservation() -> None:
    found = targets(snapshot(0, guest("g", 64 * MIB, reservation=500 * MIB)))
    assert found["g"] == 500 * MIB


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (guest("g", 64 * MIB, age=60.0), "60 s old"),
        (guest("g", 64 * MIB, fixed="it is locked"), "locked"),
        (guest("g", 64 * MIB, rebalance=False), "opted out"),
        (replace(guest("g", 64 * MIB), balloon=BalloonSample(current=512 * MIB, last_update=0)), "no balloon driver"),
    ],
)
def test_what_cannot_be_told_about_is_left_alone_and_named(left: GuestSample, why: str) -> None:
    plan = decide(snapshot(100 * MIB, left), None, POLICY)
    assert plan.balloons == ()
    assert [note for note in plan.notes if note.startswith("g: ") and why in note]


def test_a_guest_under_pressure_gets_all_back_at_once_and_is_left_alone_a_growing_while() -> None:
    pressed = guest("g", 297 * MIB, actual=300 * MIB)
    plan = decide(snapshot(3 * RESERVE, pressed), None, POLICY)
    assert [(change.guest, change.new) for change in plan.balloons] == [("g", 512 * MIB)]
    assert plan.memory is not None
    first = plan.memory.guests["g"]
    assert first.calm == balloon.FIRST_CALM
    short = snapshot(100 * MIB, guest("g", 64 * MIB), taken=110 * SECOND)
    assert decide(short, plan.memory, POLICY).balloons == ()
    later = replace(short, taken=first.calm_until + 1)
    assert decide(later, plan.memory, POLICY).balloons != ()
    again = decide(replace(snapshot(3 * RESERVE, pressed), taken=first.calm_until + 1), plan.memory, POLICY)
    assert again.memory is not None
    assert again.memory.guests["g"].calm == 2 * balloon.FIRST_CALM


def test_what_a_pressed_guest_lacks_is_taken_from_the_idle() -> None:
    pressed, idle = guest("pressed", 297 * MIB, actual=300 * MIB), guest("idle", 64 * MIB)
    found = targets(snapshot(100 * MIB, pressed, idle))
    assert found["pressed"] > 300 * MIB
    assert found["idle"] < 512 * MIB


def test_a_target_is_no_freed_memory() -> None:
    # The balloon has not moved: the same is still missing, and no more is asked for than that.
    now = snapshot(150 * MIB, guest("a", 64 * MIB), guest("b", 64 * MIB))
    assert targets(now) == targets(now, decide(now, None, POLICY).memory)


def test_ksm_runs_where_memory_is_short_or_promised_twice() -> None:
    roomy = snapshot(4 * GIB, guest("g", 64 * MIB))
    assert decide(roomy, None, POLICY).ksm is None
    many = snapshot(4 * GIB, *(guest(f"g{n}", 64 * MIB) for n in range(8)))
    aim = decide(many, None, POLICY).ksm
    assert aim is not None
    assert aim.run
    short = decide(snapshot(100 * MIB, guest("g", 64 * MIB)), None, POLICY).ksm
    assert short is not None
    assert short.scan_seconds < aim.scan_seconds


def test_ksm_rests_where_it_costs_more_than_it_saves() -> None:
    now = snapshot(RESERVE, guest("g", 64 * MIB))
    assert now.host is not None
    wasteful = replace(now, host=replace(now.host, ksm=ksm(run=1, sharing=10, unshared=100_000, scans=3)))
    known = {"g": ReclaimGuest(1)}
    plan = decide(wasteful, ReclaimMemory(now.taken - SECOND, "boot", grown_scan=1, guests=known), POLICY)
    assert plan.ksm is not None
    assert not plan.ksm.run
    soon = decide(replace(now, taken=now.taken + 60 * SECOND), plan.memory, POLICY).ksm
    assert soon is not None
    assert not soon.run
    later = decide(replace(now, taken=now.taken + 601 * SECOND), plan.memory, POLICY).ksm
    assert later is not None
    assert later.run


def test_what_is_to_be_left_alone_is() -> None:
    policy = MemoryPolicy(reserve=RESERVE, sharing="leave", balloon="leave", swap="leave")
    plan = decide(snapshot(0, guest("g", 64 * MIB), swap=GIB), None, policy)
    assert (plan.balloons, plan.ksm, plan.pageouts) == ((), None, ())


@given(
    st.integers(0, GIB),
    st.lists(st.tuples(st.integers(0, 512), st.integers(64, 512), st.integers(0, 512)), min_size=1, max_size=5),
    st.sampled_from([0, GIB]),
)
def test_whatever_is_seen_no_target_is_below_need_or_reservation_or_above_the_size(
    available: int, figures: list[tuple[int, int, int]], swap: int
) -> None:
    guests = [
        guest(f"g{number}", min(used, actual) * MIB, actual=actual * MIB, reservation=reservation * MIB)
        for number, (used, actual, reservation) in enumerate(figures)
    ]
    plan = decide(snapshot(available, *guests, swap=swap), None, POLICY)
    by_name = {one.name: one for one in guests}
    for change in plan.balloons:
        one, new = by_name[change.guest], int(str(change.new))
        assert one.promise is not None
        assert one.balloon.current is not None
        assert one.balloon.usable is not None
        assert new <= 512 * MIB
        if new < one.balloon.current:
            assert new >= max(one.promise.memory_reservation, one.balloon.current - one.balloon.usable)
    for out in plan.pageouts:
        one = by_name[out.guest]
        assert one.promise is not None
        assert one.process is not None
        assert one.process.rss is not None
        assert one.process.rss - out.amount >= one.promise.memory_reservation
    assert sum(out.amount for out in plan.pageouts) <= max(swapping.STEP.values())


def test_a_host_that_is_not_this_machine_has_no_plan() -> None:
    now = replace(snapshot(0, guest("g", 64 * MIB)), host=None)
    plan = decide(now, None, POLICY)
    assert (plan.balloons, plan.ksm, plan.pageouts, plan.memory) == ((), None, (), None)


def test_memory_of_another_boot_is_not_believed() -> None:
    now = snapshot(150 * MIB, guest("g", 64 * MIB))
    old = ReclaimMemory(taken=0, boot="another", state="low", guests={})
    plan = decide(now, old, POLICY)
    assert plan.state == "soft"


def test_page_cache_goes_only_where_nothing_else_suffices() -> None:
    cached = [replace(one, balloon=replace(one.balloon, disk_caches=200 * MIB)) for one in [guest("g", 200 * MIB)]]
    lightly, heavily = snapshot(190 * MIB, *cached), snapshot(70 * MIB, *cached)
    margin = balloon.margin(512 * MIB)
    assert targets(lightly)["g"] >= 300 * MIB + margin, "half of the cache is kept"
    assert end(130 * MIB, *cached) == pytest.approx(200 * MIB + margin, abs=balloon.FINEST)
    assert targets(heavily)["g"] <= 512 * MIB - 512 * MIB // balloon.STEP_PART + 1


def test_most_of_the_margin_goes_only_where_the_host_is_short_even_so() -> None:
    lean = balloon.margin(512 * MIB, lean=True)
    assert end(70 * MIB, guest("g", 200 * MIB)) == pytest.approx(200 * MIB + lean, abs=balloon.FINEST)
    # With as much to be taken, but in no such haste.
    full = balloon.margin(512 * MIB)
    assert end(130 * MIB, guest("g", 200 * MIB)) == pytest.approx(200 * MIB + full, abs=balloon.FINEST)


def end(available: int, *guests: GuestSample) -> int:
    """What the balloon of the first of these guests leaves it after some ticks on such a host."""
    steps = list(guests)
    for _tick in range(8):
        found = targets(snapshot(available, *steps))
        if not found:
            break
        actual = found["g"]
        cache = min(steps[0].balloon.disk_caches or 0, actual - 200 * MIB)
        stats = replace(steps[0].balloon, current=actual, usable=actual - 200 * MIB, disk_caches=cache)
        steps = [replace(steps[0], balloon=stats)]
    return steps[0].balloon.current or 0


def test_room_that_is_asked_for_is_made_as_if_the_host_were_short_already() -> None:
    idle = guest("idle", 64 * MIB)
    calm = snapshot(3 * RESERVE, idle)
    assert targets(calm) == {}
    assert calm.host is not None
    asked = replace(calm, host=replace(calm.host, room_asked=500 * MIB))
    plan = decide(asked, None, POLICY)
    assert plan.state == "clear", "it is not short yet"
    assert [change.guest for change in plan.balloons] == ["idle"]
    assert "about to start" in plan.balloons[0].reason
    assert plan.alert


@given(st.integers(0, 4 * GIB), st.integers(0, 4 * GIB))
def test_room_never_makes_for_more_haste_than_there_is_need(available: int, asked: int) -> None:
    found = reclaim.state(available, RESERVE)
    acting = reclaim.with_room(found, available, asked, RESERVE)
    order = ["high", "clear", "soft", "hard", "low"]
    assert order.index(acting) >= order.index(found)
    assert acting != "low" or found == "low"


def test_a_host_that_stays_short_takes_more_each_time() -> None:
    idle = guest("idle", 64 * MIB, actual=4 * GIB, size=4 * GIB)
    now = snapshot(RESERVE, idle)
    now = replace(now, host=replace(now.host, memory_available=RESERVE - MIB)) if now.host else now
    before, taken = None, []
    for number in range(6):
        plan = decide(replace(now, taken=now.taken + number * 2 * SECOND), before, POLICY)
        before = plan.memory
        taken.append(4 * GIB - int(str(plan.balloons[0].new)))
    assert taken[0] == pytest.approx(2 * reclaim.deficit(RESERVE - MIB, RESERVE), rel=0.01)
    assert taken == pytest.approx([taken[0] * 2 ** min(n, memory_tick.MOST_DOUBLED) for n in range(6)], rel=0.01)
    assert not plan.pageouts


def test_what_a_guest_said_before_its_balloon_was_filled_does_not_make_its_need_smaller() -> None:
    busy = guest("busy", 300 * MIB, age=2.0)
    first = decide(snapshot(RESERVE - MIB, busy), None, POLICY)
    assert int(str(first.balloons[0].new)) >= 300 * MIB
    assert busy.balloon.usable == 212 * MIB
    filled = replace(busy, balloon=replace(busy.balloon, current=412 * MIB))
    later = replace(snapshot(RESERVE - MIB, filled), taken=102 * SECOND)
    assert targets(later, first.memory).get("busy", 412 * MIB) >= 300 * MIB + balloon.margin(512 * MIB)
    said = replace(filled, balloon=replace(filled.balloon, usable=112 * MIB, last_update=round(CLOCK)))
    fresh = replace(snapshot(RESERVE - 300 * MIB + 100 * MIB, said), taken=102 * SECOND)
    lean = balloon.margin(512 * MIB, lean=True)
    assert targets(fresh, first.memory)["busy"] == pytest.approx(300 * MIB + lean, abs=2 * MIB)


def test_a_guest_is_not_swapped_before_ksm_has_seen_it_unless_that_cannot_wait() -> None:
    new = replace(guest("new", 480 * MIB), has_balloon=True)

    def swapped(available: int, before: ReclaimMemory | None, *, scans: int, seconds: int, run: int = 1) -> bool:
        now = snapshot(available, new, swap=4 * GIB, taken=(100 + seconds) * SECOND)
        assert now.host is not None
        found = replace(ksm(), run=run, full_scans=scans)
        plan = decide(replace(now, host=replace(now.host, ksm=found)), before, POLICY)
        assert plan.memory is not None
        known.append(plan.memory)
        return bool(plan.pageouts)

    hard, low = 80 * MIB, 20 * MIB
    known: list[ReclaimMemory] = []
    assert not swapped(hard, None, scans=7, seconds=0)
    assert swapped(low, None, scans=7, seconds=0)
    assert swapped(hard, None, scans=7, seconds=0, run=0), "nobody merges anything"
    first = known[0]
    assert not swapped(hard, first, scans=8, seconds=20)
    assert swapped(hard, first, scans=9, seconds=40)
    assert not swapped(hard, known[3], scans=8, seconds=110)
    assert swapped(hard, known[5], scans=8, seconds=121), "a pass takes long on a large host"
