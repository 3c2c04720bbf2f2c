"""What guests want at present, and where they may run, decide what they get; what they were promised stays theirs."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.promise import Promise
from kvmctl.policy.cpu import CpuClaim, Entitlement, demand, entitlements

pytestmark = pytest.mark.unit

CLOSE = 1e-9
Host = tuple[list[CpuClaim], float, frozenset[int]]


def claim(
    name: str,
    shares: int = 1000,
    *,
    limit: float = math.inf,
    reservation: float = 0.0,
    vcpus: int = 2,
    demand: float | None = None,
    cpus: tuple[int, ...] = (),
) -> CpuClaim:
    promise = Promise(shares, limit, reservation, 10, 0, sharing=True, swap=True)
    return CpuClaim(name, promise, vcpus, demand, frozenset(cpus))


def by_name(found: tuple[Entitlement, ...]) -> dict[str, Entitlement]:
    return {one.name: one for one in found}


def cores(*claims: CpuClaim, capacity: float = 2.0, cpus: int = 0) -> dict[str, float]:
    found = entitlements(claims, capacity, frozenset(range(cpus)))
    return {one.name: round(one.cores, 6) for one in found}


@st.composite
def hosts(draw: st.DrawFn, pinned: bool = False, least_shares: int = 1) -> Host:
    """Guests whose reservations leave a twentieth of each CPU, some of which want little."""
    count = draw(st.integers(1, 4))
    unit = st.floats(0, 1, allow_subnormal=False)
    guests = []
    for index in range(number := draw(st.integers(0, 8))):
        cpus = draw(st.frozensets(st.integers(0, count - 1), max_size=count)) if pinned else frozenset()
        vcpus = draw(st.integers(1, 4))
        # What all guests reserve together fits on any one CPU, wherever they may run.
        reservation = 0.95 * draw(unit) / number if draw(st.booleans()) else 0.0
        limit = reservation + 0.01 + draw(unit) * vcpus if draw(st.booleans()) else math.inf
        wants = draw(st.one_of(st.none(), st.just(0.0), st.floats(0, 4, allow_subnormal=False)))
        one = claim(
            f"g{index}", draw(st.integers(least_shares, 5000)), limit=limit, reservation=reservation, vcpus=vcpus
        )
        guests.append(replace(one, demand=wants, cpus=cpus))
    return guests, float(count), frozenset(range(count))


@given(hosts())
def test_what_is_divided_is_what_there_is_or_all_that_is_wanted(host: Host) -> None:
    guests, capacity, _cpus = host
    got = math.fsum(one.cores for one in entitlements(*host))
    assert got == pytest.approx(min(capacity, math.fsum(guest.wanted for guest in guests)))


@given(hosts(pinned=True))
def test_nobody_is_below_what_it_wants_of_its_reservation_nor_above_what_it_can_use(host: Host) -> None:
    for guest, one in zip(host[0], entitlements(*host), strict=True):
        assert min(guest.floor, guest.wanted) - CLOSE <= one.cores <= guest.wanted
        assert guest.floor - CLOSE <= one.hungry <= guest.ceiling


@given(hosts(pinned=True))
def test_unused_cpu_goes_to_the_hungry_by_shares(host: Host) -> None:
    """So where all CPUs are for all, those that only shares bind get the same per share; where not, nobody loses by
    what others do not want."""
    guests, _capacity, cpus = host
    found = entitlements(*host)
    rates = [one.cores / guest.shares for one, guest in zip(found, guests, strict=True) if one.bound == "shares"]
    assert not rates or max(rates) == pytest.approx(min(rates), rel=1e-9)
    if all(guest.cpus in (frozenset(), cpus) for guest in guests):
        assert all(one.cores >= min(one.hungry, guest.wanted) - CLOSE for one, guest in zip(found, guests, strict=True))


@given(hosts(pinned=True))
def test_unknown_demand_is_hunger_and_so_is_more_than_can_be_used(host: Host) -> None:
    guests, capacity, cpus = host
    unknown = entitlements([replace(guest, demand=None) for guest in guests], capacity, cpus)
    assert entitlements([replace(guest, demand=64.0) for guest in guests], capacity, cpus) == unknown
    assert [one.hungry for one in entitlements(*host)] == [one.cores for one in unknown]


@given(hosts(pinned=True), st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(host: Host, chance: random.Random) -> None:
    guests, capacity, cpus = host
    mixed = guests.copy()
    chance.shuffle(mixed)
    assert by_name(entitlements(mixed, capacity, cpus)) == by_name(entitlements(*host))


@given(hosts(pinned=True), st.integers(1, 5000), st.data())
def test_more_shares_never_mean_less(host: Host, more: int, data: st.DataObject) -> None:
    guests, capacity, cpus = host
    if not guests:
        return
    index = data.draw(st.integers(0, len(guests) - 1))
    promise = guests[index].promise
    richer = guests.copy()
    richer[index] = replace(guests[index], promise=replace(promise, cpu_shares=promise.cpu_shares + more))
    before, after = entitlements(*host)[index], entitlements(richer, capacity, cpus)[index]
    assert after.cores >= before.cores
    assert after.hungry >= before.hungry


@given(hosts(pinned=True), st.data())
def test_whoever_wakes_up_before_the_next_look_keeps_its_reservation(host: Host, data: st.DataObject) -> None:
    guests, capacity, _cpus = host
    found = by_name(entitlements(*host))
    awake = [guest for guest in guests if data.draw(st.booleans())]
    total = sum(found[guest.name].weight for guest in awake)
    for guest in awake:
        if not any(one.note for one in found.values()):
            assert found[guest.name].weight / total * capacity >= guest.floor * (1 - 1e-8)


def kernel(guests: list[CpuClaim], found: tuple[Entitlement, ...], capacity: float) -> dict[str, float]:
    """What a scheduler gives that divides by weights, and what one leaves by weights again."""
    got: dict[str, float] = {}
    weight = {guest.name: one.weight for guest, one in zip(guests, found, strict=True)}
    left = list(guests)
    while left:
        per_weight = (capacity - sum(got.values())) / sum(weight[guest.name] for guest in left)
        sated = [guest for guest in left if guest.wanted <= per_weight * weight[guest.name]]
        got |= {guest.name: guest.wanted for guest in sated}
        if not sated:
            return got | {guest.name: per_weight * weight[guest.name] for guest in left}
        left = [guest for guest in left if guest not in sated]
    return got


@given(hosts(least_shares=500))
def test_the_weights_give_what_was_decided(host: Host) -> None:
    """Where none is raised for a reservation beside guests that sleep; then the tick measures what that does."""
    guests, capacity, _cpus = host
    found = entitlements(*host)
    got = kernel(guests, found, capacity)
    exact = not any(guest.floor for guest in guests) and not any(one.note for one in found)
    for guest, one in zip(guests, found, strict=True):
        assert got[guest.name] >= min(guest.floor, guest.wanted) * (1 - 1e-8) - CLOSE
        assert not exact or got[guest.name] == pytest.approx(one.cores, rel=0.02, abs=0.005)


def test_fusioncomputes_example_while_its_reservation_is_not_used() -> None:
    """Shares of 1000, 2000 and 4000 on 2.8 GHz, 700 MHz reserved for the first."""
    first, others = claim("a", 1000, reservation=0.7), (claim("b", 2000), claim("c", 4000))
    assert cores(first, *others, capacity=2.8) == {"a": 0.7, "b": 0.7, "c": 1.4}
    assert cores(replace(first, demand=0.1), *others, capacity=2.8) == {"a": 0.1, "b": 0.9, "c": 1.8}
    assert cores(replace(first, demand=0.5), *others, capacity=2.8) == pytest.approx(
        {"a": 0.5, "b": 23 / 30, "c": 46 / 30}
    )
    found = entitlements([replace(first, demand=0.1), *others], 2.8)
    assert [one.bound for one in found] == ["demand", "shares", "shares"]
    assert [one.hungry for one in found] == pytest.approx([0.7, 0.7, 1.4])
    assert [one.weight for one in found] == [2000, 2000, 4000], "a quarter is the first one's should it wake up"


def test_nothing_scarce_leaves_the_weights_that_are_right_when_it_is() -> None:
    guests = [claim("a", vcpus=1), claim("b", 4000, vcpus=1), claim("c", demand=0.0)]
    found = entitlements(guests, 2.0)
    assert [one.cores for one in found] == [1, 1, 0]
    assert [one.weight for one in found] == [one.weight for one in entitlements([*guests[:2], claim("c")], 2.0)]


def test_reservations_that_fill_the_host_are_kept_for_those_that_sleep() -> None:
    """The third guest may use what the second leaves; the first keeps its half all the same."""
    found = entitlements([claim("a", reservation=1.0), claim("b", reservation=1.0, demand=0.0), claim("c")], 2.0)
    assert [one.cores for one in found] == [1, 0, 1]
    first, second, third = (one.weight for one in found)
    assert (first, third) == (second, 2)
    assert not any(one.note for one in found[:2])


def test_pinned_guests_share_their_cpu() -> None:
    guests = [claim("a", cpus=(0,)), claim("b", cpus=(0,)), claim("c")]
    found = by_name(entitlements(guests, 1.9, frozenset({0, 1})))
    assert {name: one.cores for name, one in found.items()} == pytest.approx({"a": 0.475, "b": 0.475, "c": 0.95})
    assert {name: one.bound for name, one in found.items()} == {"a": "pinning", "b": "pinning", "c": "shares"}


def test_two_vcpus_on_one_cpu_are_one_core() -> None:
    (one,) = entitlements([claim("a", cpus=(1,))], 4.0, frozenset(range(4)))
    assert (one.cores, one.bound) == (1.0, "pinning")
    (one,) = entitlements([claim("a", cpus=(1,), vcpus=1)], 4.0, frozenset(range(4)))
    assert (one.cores, one.bound) == (1.0, "vcpus")
    (one,) = entitlements([claim("a", cpus=(1,), limit=0.5)], 4.0, frozenset(range(4)))
    assert (one.cores, one.bound) == (0.5, "limit")


def test_a_reservation_that_does_not_fit_on_its_cpus() -> None:
    guests = [claim("a", reservation=0.8, cpus=(0,)), claim("b", reservation=0.4, cpus=(0,)), claim("c")]
    assert cores(*guests, cpus=2) == {"a": 0.666667, "b": 0.333333, "c": 1}


@pytest.mark.parametrize(
    ("used", "waited", "wanted"),
    [
        (0.2, 0.1, pytest.approx(0.3)), (0.0, 0.0, 0.0), (0.5, 0.5, None), (0.85, 0.05, None), (1.4, 0.2, None),
        (None, 0.1, None), (0.1, None, None), (None, None, None),
    ],
)  # fmt: skip
def test_demand_is_what_was_used_and_waited_for(used: float | None, waited: float | None, wanted: object) -> None:
    """Nine tenths of a core, of one that a guest can use, are as good as all of it."""
    assert demand(used, waited, 1.0) == wanted
