"""What a guest from which memory was taken is owed, and when it has it back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.reclaim import ReclaimGuest, ReclaimMemory
from kvmctl.model.sample import BalloonSample
from kvmctl.model.units import GIB, MIB
from kvmctl.policy.memory_tick import decide
from tests.unit.test_policy_reclaim import CLOCK, POLICY, RESERVE, SECOND, guest, snapshot, targets

pytestmark = pytest.mark.unit

ROOMY = 5 * RESERVE


def remembered(target: int | None = None, *, taken: int = 98 * SECOND, calm_until: int = 0) -> ReclaimMemory:
    known = ReclaimGuest(1, target=target, actual=400 * MIB, moved=taken, calm_until=calm_until)
    return ReclaimMemory(taken, "boot", "clear", guests={"g": known})


def test_a_definition_that_was_raised_beyond_what_it_was_started_with_waits_for_the_next_start() -> None:
    raised = replace(guest("g", 100 * MIB, actual=300 * MIB), memory_size=8 * GIB)
    assert targets(snapshot(ROOMY, raised)) == {"g": 512 * MIB}
    whole = replace(guest("g", 510 * MIB), memory_size=8 * GIB)
    idle = guest("idle", 64 * MIB)
    plan = decide(snapshot(RESERVE * 3 // 2, whole, idle), None, POLICY)
    assert plan.balloons == (), "nothing is taken for what it cannot have"
    assert not plan.alert


def test_where_nothing_can_be_told_about_it_any_more_it_has_all_back() -> None:
    silent = replace(guest("g", 0), balloon=BalloonSample(current=256 * MIB, maximum=512 * MIB, last_update=0))
    assert targets(snapshot(ROOMY, silent)) == {"g": 512 * MIB}
    assert targets(snapshot(ROOMY, guest("g", 64 * MIB, actual=256 * MIB, age=90.0))) == {"g": 512 * MIB}
    assert targets(snapshot(ROOMY, guest("g", 64 * MIB, actual=256 * MIB, rebalance=False))) == {"g": 512 * MIB}
    assert targets(snapshot(ROOMY, replace(silent, balloon_moved=False))) == {}, "somebody else has taken it"
    assert targets(snapshot(RESERVE - MIB, silent)) == {}
    lying = replace(silent, balloon=replace(silent.balloon, current=9 * GIB))
    assert targets(snapshot(ROOMY, lying)) == {}


def test_who_was_short_a_while_ago_has_all_back_as_soon_as_there_is_enough() -> None:
    calm = remembered(calm_until=700 * SECOND)
    assert targets(snapshot(ROOMY, guest("g", 64 * MIB, actual=300 * MIB)), calm) == {"g": 512 * MIB}


def test_a_guest_on_its_way_below_a_reservation_that_was_raised_is_told_to_stay() -> None:
    here = guest("g", 64 * MIB, actual=400 * MIB, reservation=400 * MIB)
    assert targets(snapshot(RESERVE * 3 // 2, here), remembered(200 * MIB)) == {"g": 400 * MIB}
    assert targets(snapshot(0, here), remembered(200 * MIB)) == {"g": 400 * MIB}
    assert targets(snapshot(RESERVE * 3 // 2, here), remembered()) == {}


@pytest.mark.parametrize("available", [RESERVE - MIB, RESERVE * 3 // 2])
def test_a_guest_below_a_reservation_that_was_raised_is_lifted_to_it(available: int) -> None:
    below = guest("g", 64 * MIB, actual=200 * MIB, reservation=250 * MIB)
    plan = decide(snapshot(available, below, guest("idle", 64 * MIB)), None, POLICY)
    lifted = {change.guest: change for change in plan.balloons}["g"]
    assert lifted.new == 250 * MIB
    assert "reserved" in lifted.reason
    theirs = replace(below, balloon_moved=False)
    assert "g" not in targets(snapshot(available, theirs, guest("idle", 64 * MIB))), "somebody else has taken it"


def test_a_guest_that_is_short_while_it_gives_is_told_to_stay_where_nothing_is_left() -> None:
    pressed = guest("g", 398 * MIB, actual=400 * MIB)
    assert targets(snapshot(0, pressed), remembered(200 * MIB)) == {"g": 400 * MIB}


@given(
    st.integers(0, GIB),
    st.integers(64, 512),
    st.integers(0, 512),
    st.integers(0, 512),
    st.one_of(st.none(), st.integers(64, 512)),
)
def test_whatever_it_was_told_it_ends_at_its_reservation_at_least(
    available: int, actual: int, used: int, reserved: int, told: int | None
) -> None:
    one = guest("g", min(used, actual) * MIB, actual=actual * MIB, reservation=reserved * MIB)
    # What has been there for long enough has been lifted as far as there was memory.
    before = remembered(None if told is None else told * MIB)
    new = targets(snapshot(available, one), before).get("g")
    ends = new if new is not None else actual * MIB if told is None else min(actual, told) * MIB
    assert ends >= min(reserved, actual) * MIB


def test_a_report_that_stays_away_does_not_make_the_need_smaller_with_each_look() -> None:
    size = 4 * GIB
    one = guest("g", 2560 * MIB, actual=size, size=size, age=1.0)
    before, actual = None, size
    for number in range(6):
        stats = replace(one.balloon, current=actual)
        now = replace(snapshot(MIB, replace(one, balloon=stats)), taken=(100 + 2 * number) * SECOND)
        plan = decide(replace(now, clock=CLOCK + 2 * number), before, POLICY)
        before = plan.memory
        actual = next((int(str(change.new)) for change in plan.balloons), actual)
        assert actual >= 2560 * MIB
