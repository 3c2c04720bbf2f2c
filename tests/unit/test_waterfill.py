"""The laws of the division, and the numbers that ESXi and FusionCompute document."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.policy.waterfill import Claim, water_level, waterfill

pytestmark = pytest.mark.unit

amounts = st.one_of(st.floats(0, 64, allow_subnormal=False), st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]))
shares = st.one_of(st.integers(1, 1_000_000), st.sampled_from([1, 500, 1000, 2000]))
capacities = st.one_of(st.floats(0, 256, allow_subnormal=False), st.sampled_from([0.0, 1.0, 2.0, 2.8]))


@st.composite
def claims(draw: st.DrawFn, least: int = 0) -> list[Claim]:
    count = draw(st.integers(least, 12))
    return [_claim(draw, f"g{index}") for index in range(count)]


def _claim(draw: st.DrawFn, name: str) -> Claim:
    floor, ceiling = sorted((draw(amounts), draw(amounts)))
    return Claim(name, draw(shares), floor, ceiling if draw(st.booleans()) else math.inf)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)


@given(claims(), capacities)
def test_a_division_conserves_its_total(guests: list[Claim], capacity: float) -> None:
    got = math.fsum(waterfill(guests, capacity).values())
    assert _close(got, min(capacity, math.fsum(claim.ceiling for claim in guests)))


@given(claims(), capacities)
def test_nobody_leaves_floor_and_ceiling(guests: list[Claim], capacity: float) -> None:
    got = waterfill(guests, capacity)
    enough = math.fsum(claim.floor for claim in guests) <= capacity
    for claim in guests:
        assert got[claim.name] <= claim.ceiling
        assert got[claim.name] >= claim.floor or not enough


@given(claims(), capacities)
def test_too_many_floors_are_short_by_the_same_part(guests: list[Claim], capacity: float) -> None:
    floors = math.fsum(claim.floor for claim in guests)
    if floors <= capacity:
        return
    for name, cores in waterfill(guests, capacity).items():
        floor = next(claim.floor for claim in guests if claim.name == name)
        assert _close(cores, floor * capacity / floors)


@given(claims(), capacities, st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(guests: list[Claim], capacity: float, chance: random.Random) -> None:
    mixed = guests.copy()
    chance.shuffle(mixed)
    assert waterfill(mixed, capacity) == waterfill(guests, capacity)


@given(claims(least=1), capacities, st.integers(1, 1_000_000), st.data())
def test_more_shares_never_mean_less(guests: list[Claim], capacity: float, more: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(guests) - 1))
    one = guests[index]
    richer = guests.copy()
    richer[index] = Claim(one.name, one.shares + more, one.floor, one.ceiling)
    assert waterfill(richer, capacity)[one.name] >= waterfill(guests, capacity)[one.name]


@given(claims(), capacities, st.floats(0, 64))
def test_more_capacity_takes_from_nobody(guests: list[Claim], capacity: float, more: float) -> None:
    before, after = waterfill(guests, capacity), waterfill(guests, capacity + more)
    for name, cores in before.items():
        assert after[name] >= cores or _close(after[name], cores)


@given(claims(), capacities)
def test_one_level_explains_every_entitlement(guests: list[Claim], capacity: float) -> None:
    if math.fsum(claim.floor for claim in guests) > capacity:
        return
    level, got = water_level(guests, capacity), waterfill(guests, capacity)
    for claim in guests:
        assert got[claim.name] == float(min(max(level * claim.shares, claim.floor), claim.ceiling))


@given(claims(), capacities)
def test_nobody_below_the_level_while_another_is_above_its_floor(guests: list[Claim], capacity: float) -> None:
    """Max-min fairness itself: to give one guest more per share, take from a guest that has less per share."""
    got = waterfill(guests, capacity)
    if math.fsum(claim.floor for claim in guests) > capacity:
        return
    growing = [got[claim.name] / claim.shares for claim in guests if got[claim.name] < claim.ceiling]
    giving = [got[claim.name] / claim.shares for claim in guests if got[claim.name] > claim.floor]
    if growing and giving:
        assert min(growing) >= max(giving) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("reserved", "expected"), [(0, (400, 800, 1600)), (700, (700, 700, 1400))], ids=["shares", "reservation"]
)
def test_documented_example_of_fusioncompute(reserved: float, expected: tuple[float, ...]) -> None:
    """Three guests with one vCPU each on one core of 2800 MHz."""
    guests = [Claim("a", 1000, reserved, 2800), Claim("b", 2000, 0, 2800), Claim("c", 4000, 0, 2800)]
    assert tuple(waterfill(guests, 2800).values()) == expected


@pytest.mark.parametrize(
    ("guests", "capacity", "expected"),
    [
        ([], 2.0, []),
        ([Claim("a", 1, 0, 1)], 2.0, [1]),
        ([Claim("a", 1, 0, 1), Claim("b", 1, 0, 1)], 2.0, [1, 1]),
        ([Claim("a", 1, 1, 2), Claim("b", 1, 1, 2)], 2.0, [1, 1]),
        ([Claim("a", 1, 3, 4), Claim("b", 9, 1, 4)], 2.0, [1.5, 0.5]),
        ([Claim("a", 1, 0, 2), Claim("b", 1, 0, 2)], 0.0, [0, 0]),
        ([Claim("a", 1, 0, 0.5), Claim("b", 1, 0, 0.5), Claim("c", 1, 0, 2)], 2.0, [0.5, 0.5, 1]),
        ([Claim("a", 1, 0, math.inf), Claim("b", 3, 0, math.inf)], 2.0, [0.5, 1.5]),
    ],
    ids=["nobody", "ceilings", "ceilings exactly", "floors exactly", "floors above", "nothing", "ties", "no ceilings"],
)
def test_edges(guests: list[Claim], capacity: float, expected: list[float]) -> None:
    assert list(waterfill(guests, capacity).values()) == expected


def test_a_huge_ratio_of_shares_is_exact() -> None:
    got = waterfill([Claim("a", 1, 0, 2), Claim("b", 10**15, 0, 2)], 2.0)
    assert got["a"] == pytest.approx(2 / (10**15 + 1), rel=1e-15)
    assert got["b"] == pytest.approx(2.0, abs=1e-14)
