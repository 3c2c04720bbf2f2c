"""Entitlements become weights that keep every reservation."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.promise import Promise
from kvmctl.policy.cpu import CpuClaim, Entitlement, entitlements, falls_short
from kvmctl.policy.weights import LEAST_WEIGHT, MOST_WEIGHT

pytestmark = pytest.mark.unit


def claim(
    name: str, shares: int = 1000, *, limit: float = math.inf, reservation: float = 0.0, vcpus: int = 2
) -> CpuClaim:
    return CpuClaim(name, Promise(shares, limit, reservation, 10, 0, sharing=True, swap=True), vcpus)


def by_name(found: tuple[Entitlement, ...]) -> dict[str, Entitlement]:
    return {one.name: one for one in found}


def weights(found: tuple[Entitlement, ...]) -> dict[str, int]:
    return {one.name: one.weight for one in found}


@st.composite
def hosts(draw: st.DrawFn, most_shares: int = 1_000_000) -> tuple[list[CpuClaim], float]:
    """Guests whose reservations leave at least a twentieth of the host, and the host's cores."""
    capacity = float(draw(st.integers(1, 64)))
    unit = st.floats(0, 1, allow_subnormal=False)
    parts = draw(st.lists(st.tuples(unit, unit, st.integers(1, most_shares), st.integers(1, 16)), max_size=12))
    total = math.fsum(part for part, *_ in parts)
    guests = []
    for number, (part, limit, shares, vcpus) in enumerate(parts):
        reservation = min(vcpus, 0.95 * capacity * part / max(1.0, total))
        cap = reservation + limit * (vcpus - reservation) + 0.01 if draw(st.booleans()) else math.inf
        guests.append(claim(f"g{number}", shares, limit=cap, reservation=reservation, vcpus=vcpus))
    return guests, capacity


@given(hosts())
def test_weights_are_whole_and_in_the_range_of_both_cgroup_versions(host: tuple[list[CpuClaim], float]) -> None:
    for one in entitlements(*host):
        assert type(one.weight) is int
        assert LEAST_WEIGHT <= one.weight <= MOST_WEIGHT


@given(hosts())
def test_a_dozen_guests_keep_their_reservations_within_a_hundredth(host: tuple[list[CpuClaim], float]) -> None:
    """Whatever the shares; what is missing is what the least weight gives away."""
    guests, capacity = host
    found = by_name(entitlements(guests, capacity))
    total = sum(one.weight for one in found.values())
    for guest in guests:
        assert found[guest.name].weight / total * capacity >= guest.floor * 0.99
        assert "reservation" not in found[guest.name].note


def test_a_reservation_that_weights_cannot_hold_is_said() -> None:
    """300 guests of least weight take 600 parts beside the largest weight there is."""
    crowd = [claim(f"g{number}", 1) for number in range(300)]
    found = by_name(entitlements([claim("big", 1, reservation=15.9, vcpus=16), *crowd], 16.0))
    assert found["big"].note == "weights up to 10000 keep 95% of its reservation"


@given(hosts(most_shares=5000), st.data())
def test_any_hungry_subset_keeps_its_reservations(host: tuple[list[CpuClaim], float], data: st.DataObject) -> None:
    guests, capacity = host
    found = by_name(entitlements(guests, capacity))
    hungry = [guest for guest in guests if data.draw(st.booleans())]
    total = sum(found[guest.name].weight for guest in hungry)
    for guest in hungry:
        if not any(one.note for one in found.values()):
            assert found[guest.name].weight / total * capacity >= guest.floor * (1 - 1e-8)


@given(hosts())
def test_proportions_are_those_of_the_entitlements(host: tuple[list[CpuClaim], float]) -> None:
    """Where nothing had to be raised for a reservation, within a hundredth or one step of the finest scale."""
    guests, capacity = host
    found = [one for one, guest in zip(entitlements(guests, capacity), guests, strict=True) if not guest.floor]
    if len(found) < len(guests) or any(one.note for one in found):
        return
    cores, total = math.fsum(one.cores for one in found), sum(one.weight for one in found)
    for one in found:
        assert one.weight / total == pytest.approx(one.cores / cores, rel=0.02, abs=1.5 / MOST_WEIGHT)


@given(st.lists(st.integers(LEAST_WEIGHT, MOST_WEIGHT), min_size=1, max_size=12))
def test_without_bounds_the_weight_is_the_shares(shares: list[int]) -> None:
    guests = [claim(f"g{number}", value, vcpus=64) for number, value in enumerate(shares)]
    assert [one.weight for one in entitlements(guests, 64.0)] == shares


@given(hosts(), st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(host: tuple[list[CpuClaim], float], chance: random.Random) -> None:
    guests, capacity = host
    mixed = guests.copy()
    chance.shuffle(mixed)
    assert by_name(entitlements(mixed, capacity)) == by_name(entitlements(guests, capacity))


def test_an_unbound_guest_keeps_its_shares_beside_bound_ones() -> None:
    guests = [
        claim("reserved", 1000, reservation=0.7),
        claim("limited", 4000, limit=0.25),
        claim("small", 9000, vcpus=1, limit=2.0),
        claim("free", 1500),
    ]
    found = by_name(entitlements(guests, 2.8))
    assert {name: one.bound for name, one in found.items()} == {
        "reserved": "reservation", "limited": "limit", "small": "vcpus", "free": "shares",
    }  # fmt: skip
    assert {name: one.cores for name, one in found.items()} == pytest.approx(
        {"reserved": 0.7, "limited": 0.25, "small": 1.0, "free": 0.85}
    )
    assert found["free"].weight == 1500
    assert found["reserved"].weight == math.ceil(1500 * 0.7 / 0.85)


def test_documented_example_of_fusioncompute() -> None:
    guests = [claim("a", 1000, reservation=0.7), claim("b", 2000), claim("c", 4000)]
    found = by_name(entitlements(guests, 2.8))
    assert weights(tuple(found.values())) == {"a": 2000, "b": 2000, "c": 4000}
    assert [one.bound for one in found.values()] == ["reservation", "shares", "shares"]


def test_a_lone_guest_at_its_limit_keeps_its_shares() -> None:
    assert weights(entitlements([claim("a", 700, limit=0.5)], 4.0)) == {"a": 700}


def test_a_guest_that_can_use_the_whole_host_is_bound_by_its_vcpus() -> None:
    (one,) = entitlements([claim("a", vcpus=2)], 2.0)
    assert (one.cores, one.bound) == (2.0, "vcpus")


def test_nobody_runs() -> None:
    assert entitlements([], 4.0) == ()


def test_shares_beyond_the_range_are_scaled_together() -> None:
    found = entitlements([claim("a", 100_000), claim("b", 300_000)], 2.0)
    assert weights(found) == {"a": 3300, "b": 9900}
    assert not any(one.note for one in found)


def test_a_ratio_beyond_the_range_is_said() -> None:
    found = by_name(entitlements([claim("a", 1), claim("b", 1_000_000)], 2.0))
    assert found["a"].weight == LEAST_WEIGHT
    assert "the least weight, 2," in found["a"].note
    assert not found["b"].note


def test_reservations_that_fill_the_host_exactly() -> None:
    found = entitlements([claim("a", 100, reservation=0.5), claim("b", 100, reservation=1.5)], 2.0)
    assert [one.weight for one in found] == [50, 150]
    assert [one.bound for one in found] == ["reservation", "reservation"]


def test_ten_equal_guests_that_reserve_everything_are_not_disturbed_by_floats() -> None:
    found = entitlements([claim(f"g{number}", reservation=0.2) for number in range(10)], 2.0)
    assert {one.weight for one in found} == {1000}


def test_too_many_reservations_fall_short_alike() -> None:
    found = by_name(entitlements([claim("a", reservation=2.0), claim("b", reservation=1.0), claim("c")], 2.0))
    assert {name: round(one.cores, 6) for name, one in found.items()} == {"a": 1.333333, "b": 0.666667, "c": 0}
    assert found["c"].weight == LEAST_WEIGHT


def test_a_reservation_above_the_vcpus_counts_only_as_far_as_they_go() -> None:
    found = by_name(entitlements([claim("a", reservation=2.0, vcpus=1), claim("b", 3000)], 2.0))
    assert found["a"].cores == found["b"].cores == 1.0


def test_a_guest_without_vcpus_or_shares_breaks_nothing() -> None:
    found = by_name(entitlements([claim("a", 0), claim("b", vcpus=0), claim("c")], 2.0))
    assert found["b"].cores == 0
    assert found["a"].cores == pytest.approx(2 / 1001)


@pytest.mark.parametrize(
    ("used", "waited", "short"),
    [
        (0.5, 0.6, True),
        (0.5, 0.3, False),
        (0.95, 2.0, False),
        (0.0, 0.0, False),
        (0.0, 1.0, True),
        (None, 1.0, False),
        (0.5, None, False),
    ],
)
def test_a_guest_that_gets_less_than_its_reserved_core(used: float | None, waited: float | None, short: bool) -> None:
    """Only one that wants it: an idle guest, or an unknown one, is not short of anything."""
    assert falls_short(1.0, used, waited) is short
    assert not falls_short(0.0, used, waited)
