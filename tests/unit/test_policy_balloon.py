"""The laws of dividing memory by balloons."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.units import GIB, MIB
from kvmctl.policy import balloon
from kvmctl.policy.balloon import BalloonClaim

pytestmark = pytest.mark.unit


def claim(
    name: str, actual: int, need: int, *, shares: int = 1000, size: int | None = None, floor: int = 0
) -> BalloonClaim:
    return BalloonClaim(name, shares, max(floor, need), actual, actual if size is None else size, need)


@st.composite
def claims(draw: st.DrawFn) -> list[BalloonClaim]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.integers(64, 4096)) * MIB
        actual = draw(st.integers(32 * MIB, size))
        need = draw(st.integers(0, actual))
        floor = draw(st.integers(need, 2 * size))
        found.append(BalloonClaim(f"g{number}", draw(st.integers(1, 10_000)), floor, actual, size, need))
    return found


@given(claims(), st.integers(0, 16 * GIB))
def test_what_is_taken_leaves_every_guest_its_floor_and_at_most_a_fifth_is_taken(
    guests: list[BalloonClaim], amount: int
) -> None:
    targets = balloon.shrunk(guests, amount)
    for one in guests:
        assert targets[one.name] <= one.actual
        assert targets[one.name] >= min(one.floor, one.actual)
        assert one.actual - targets[one.name] <= one.size // balloon.STEP_PART + 1


@given(claims(), st.integers(0, 16 * GIB))
def test_no_more_is_taken_or_given_than_was_asked(guests: list[BalloonClaim], amount: int) -> None:
    before = sum(one.actual for one in guests)
    rounding = len(guests)
    assert before - sum(balloon.shrunk(guests, amount).values()) <= amount + rounding
    assert sum(balloon.grown(guests, amount).values()) - before <= amount + rounding


@given(claims(), st.integers(0, 16 * GIB))
def test_what_is_given_takes_nothing_from_anybody_and_passes_nobodys_size(
    guests: list[BalloonClaim], amount: int
) -> None:
    targets = balloon.grown(guests, amount)
    for one in guests:
        assert one.actual <= targets[one.name] <= max(one.actual, one.size)


@given(claims(), st.integers(0, 16 * GIB), st.randoms())
def test_the_order_of_the_guests_does_not_matter(guests: list[BalloonClaim], amount: int, random: object) -> None:
    other = list(reversed(guests))
    assert balloon.shrunk(guests, amount) == balloon.shrunk(other, amount)


@given(claims(), st.integers(0, 16 * GIB))
def test_a_little_of_each_of_many_is_taken_whole_from_some(guests: list[BalloonClaim], amount: int) -> None:
    fine = balloon.shrunk(guests, amount)
    found = balloon.coarse(guests, fine)
    taken = {one.name: one.actual - found[one.name] for one in guests}
    assert all(not step or step >= balloon.FINEST for step in taken.values())
    for one in guests:
        assert found[one.name] >= min(one.floor, one.actual)
        assert taken[one.name] <= one.size // balloon.STEP_PART + 1
    assert sum(taken.values()) < sum(one.actual - fine[one.name] for one in guests) + balloon.FINEST
    assert balloon.coarse(list(reversed(guests)), fine) == found


def test_a_hundred_guests_that_owe_a_mib_each_are_not_let_off() -> None:
    guests = [claim(f"g{number}", 512 * MIB, 64 * MIB) for number in range(100)]
    found = balloon.coarse(guests, balloon.shrunk(guests, 100 * MIB))
    moved = [one.name for one in guests if found[one.name] < one.actual]
    assert len(moved) == 13
    assert all(found[name] == 512 * MIB - balloon.FINEST for name in moved)


def test_the_idle_guest_pays_before_the_busy_one() -> None:
    idle, busy = claim("idle", 1 * GIB, 100 * MIB), claim("busy", 1 * GIB, 900 * MIB)
    targets = balloon.shrunk([idle, busy], 150 * MIB)
    assert targets["busy"] == busy.actual
    assert targets["idle"] == idle.actual - 150 * MIB


def test_who_has_more_shares_keeps_more() -> None:
    poor, rich = claim("poor", 1 * GIB, 100 * MIB, shares=1000), claim("rich", 1 * GIB, 100 * MIB, shares=4000)
    targets = balloon.shrunk([poor, rich], 150 * MIB)
    assert targets == {"poor": poor.actual - 150 * MIB, "rich": rich.actual}


def test_an_idle_page_costs_four_times_a_used_one() -> None:
    # price = S / (P·(f + k·(1 - f))): with nothing used, P counts k times.
    assert balloon.price(claim("used", 100, 100)) == 4 * balloon.price(claim("idle", 100, 0))


def test_a_guest_is_pressed_when_little_is_usable_or_it_reads_back_what_it_dropped() -> None:
    size = 512 * MIB
    assert not balloon.is_pressed(size, balloon.margin(size), 0.0)
    assert balloon.is_pressed(size, balloon.least_usable(size) - 1, 0.0)
    assert not balloon.is_pressed(size, balloon.margin(size, lean=True), 0.0), "who was made so small is left so"
    assert balloon.is_pressed(size, size, balloon.MOST_FAULTS + 1)
    assert not balloon.is_pressed(size, size, None)


def test_calm_grows_to_its_most() -> None:
    found, seconds = [], 0.0
    for _ in range(7):
        seconds = balloon.calm(seconds)
        found.append(seconds)
    assert found == [30, 60, 120, 240, 480, 600, 600]


def test_half_of_the_page_cache_counts_as_used_while_there_is_time() -> None:
    assert balloon.need(500 * MIB, 300 * MIB, 100 * MIB, keep_cache=True) == 250 * MIB
    assert balloon.need(500 * MIB, 300 * MIB, 100 * MIB, keep_cache=False) == 200 * MIB


def test_a_guest_boots_with_half_where_memory_is_short_but_not_with_less_than_is_reserved() -> None:
    assert balloon.first_target(2 * GIB, 0) == GIB
    assert balloon.first_target(2 * GIB, 3 * GIB // 2) == 3 * GIB // 2
    assert balloon.first_target(256 * MIB, 0) == balloon.LEAST_FIRST
    assert balloon.first_target(128 * MIB, 0) is None
