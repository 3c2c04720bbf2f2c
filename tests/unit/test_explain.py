"""The account of a guest's cores adds up, and what one pays another gets."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.model.promise import Promise
from kvmctl.policy.cpu import CpuClaim, entitlements
from kvmctl.policy.explain import Explanation, explain

pytestmark = pytest.mark.unit

CLOSE = 1e-6


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


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[CpuClaim], float, frozenset[int]]:
    """Any guests at all, promised too much or not."""
    count = draw(st.integers(1, 4))
    unit = st.floats(0, 1, allow_subnormal=False)
    guests = []
    for index in range(draw(st.integers(1, 7))):
        one = claim(
            f"g{index}",
            draw(st.integers(1, 5000)),
            limit=draw(st.one_of(st.just(math.inf), st.floats(0.01, 2))),
            reservation=draw(st.one_of(st.just(0.0), unit)),
            vcpus=draw(st.integers(0, 4)),
            demand=draw(st.one_of(st.none(), unit)),
        )
        guests.append(replace(one, cpus=draw(st.frozensets(st.integers(0, count - 1), max_size=count))))
    return guests, draw(st.sampled_from([1.0, 0.95])) * count, frozenset(range(count))


def explained(guests: list[CpuClaim], capacity: float, cpus: frozenset[int] = frozenset()) -> dict[str, Explanation]:
    return {guest.name: explain(guests, capacity, guest.name, cpus) for guest in guests}


@settings(max_examples=50)
@given(hosts())
def test_the_account_adds_up_to_the_entitlement(host: tuple[list[CpuClaim], float, frozenset[int]]) -> None:
    for found, one in zip(explained(*host).values(), entitlements(*host), strict=True):
        assert found.by_shares + math.fsum(move.cores for move in found.transfers) == pytest.approx(
            one.cores, abs=CLOSE
        )
        assert (found.cores, found.hungry, found.bound, found.weight, found.note) == (
            one.cores, one.hungry, one.bound, one.weight, one.note,
        )  # fmt: skip
        assert found.why
        assert not any(move.why.startswith("0 ") for move in found.transfers)


@settings(max_examples=50)
@given(hosts())
def test_what_one_pays_another_gets(host: tuple[list[CpuClaim], float, frozenset[int]]) -> None:
    found = explained(*host)
    for one in found.values():
        for other in {move.guest for move in one.transfers} - {None}:
            assert other is not None
            mine = [round(move.cores, 6) for move in one.transfers if move.guest == other]
            theirs = [-round(move.cores, 6) for move in found[other].transfers if move.guest == one.name]
            assert sorted(mine) == pytest.approx(sorted(theirs), abs=1.1e-6)


@given(hosts(), st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(
    host: tuple[list[CpuClaim], float, frozenset[int]], chance: random.Random
) -> None:
    guests, capacity, cpus = host
    mixed = guests.copy()
    chance.shuffle(mixed)
    one, other = (explain(order, capacity, guests[0].name, cpus) for order in (guests, mixed))
    assert (one.cores, one.why, one.hungry_bound) == (other.cores, other.why, other.hungry_bound)
    assert [move.guest for move in one.transfers] == [move.guest for move in other.transfers] or [
        move.cores for move in one.transfers
    ] == pytest.approx([move.cores for move in other.transfers])


def account(found: Explanation) -> list[tuple[float, str | None, str]]:
    return [(round(move.cores, 4), move.guest, move.why) for move in found.transfers]


def test_who_pays_for_a_reservation_that_binds() -> None:
    """FusionCompute's example: 700 of 2800 MHz are reserved for the guest whose shares are worth 400."""
    guests = [claim("a", 1000, reservation=0.7), claim("b", 2000), claim("c", 4000)]
    found = explained(guests, 2.8)
    assert found["a"].by_shares == pytest.approx(0.4)
    assert account(found["a"]) == [(0.2, "c", "0.7 are reserved for a"), (0.1, "b", "0.7 are reserved for a")]
    assert found["a"].why == "its reservation is 0.7 cores, and its shares are worth 0.35"
    assert account(found["c"]) == [(-0.2, "a", "0.7 are reserved for a")]
    assert found["c"].why == "1000 shares are worth 0.35 cores, and it has 4000"
    assert (found["a"].bound, found["b"].bound) == ("reservation", "shares")


def test_from_whom_a_guest_has_more_than_its_part() -> None:
    """Of parts of 0.25, 0.5, 0.25 and 1 core, 0.4 and 0.15 are left; a fifth of that for each thousand shares."""
    idle, limited = claim("idle", 2000, reservation=0.5, demand=0.1), claim("limited", limit=0.1)
    found = explained([claim("a"), idle, limited, claim("b", 4000)], 2.0)
    assert account(found["a"]) == [
        (0.08, "idle", "idle wants 0.1 of the 0.5 reserved for it"), (0.03, "limited", "limited is limited to 0.1"),
    ]  # fmt: skip
    assert account(found["limited"]) == [
        (-0.12, "b", "limited is limited to 0.1"),
        (-0.03, "a", "limited is limited to 0.1"),
    ]
    assert found["limited"].why == "its limit is 0.1 cores, less than the 0.36 that its shares are worth"
    assert found["idle"].why == "it wants 0.1 cores at present, less than the 0.72 that its shares are worth"
    assert (found["idle"].cores, round(found["idle"].hungry, 4)) == (0.1, 0.5429)
    assert (found["idle"].bound, found["idle"].hungry_bound) == ("demand", "shares")


def test_what_nobody_can_use_goes_to_nobody() -> None:
    found = explain([claim("a", vcpus=1), claim("b", limit=0.5)], 4.0, "a")
    assert account(found) == [(-1.0, None, "a has 1 vCPU")]
    assert (found.cores, found.why) == (1.0, "its 1 vCPU can use 1 core")


def test_pinned_guests_leave_what_is_elsewhere() -> None:
    guests = [claim("a", cpus=(0,)), claim("b", cpus=(0,)), claim("c")]
    found = explained(guests, 2.0, frozenset({0, 1}))
    assert account(found["a"]) == [(-0.1667, "c", "a may run on CPU 0 only")]
    assert account(found["c"]) == [(0.1667, "a", "a may run on CPU 0 only"), (0.1667, "b", "b may run on CPU 0 only")]
    assert found["a"].why == "it may run on CPU 0 only, where its shares are worth 0.5, and elsewhere more"


def test_guests_on_other_cpus_pay_nothing() -> None:
    guests = [
        claim("a", cpus=(0,)), claim("b", cpus=(0,), reservation=0.8), claim("c", cpus=(1,)),
        claim("d", cpus=(1,), limit=0.1),
    ]  # fmt: skip
    found = explained(guests, 2.0, frozenset({0, 1}))
    assert account(found["a"]) == [(-0.3, "b", "0.8 are reserved for b")]
    assert account(found["c"]) == [(0.4, "d", "d is limited to 0.1")]


def test_two_vcpus_on_one_cpu() -> None:
    found = explain([claim("a", 3000, cpus=(0,)), claim("b", cpus=(1,))], 2.0, "a", frozenset({0, 1}))
    assert (found.bound, found.why) == ("pinning", "its 2 vCPUs may run on CPU 0 only")


def test_more_reserved_than_there_is() -> None:
    found = explain([claim("a", reservation=2.0), claim("b", reservation=1.0)], 2.0, "b")
    assert found.why == (
        "more is reserved than there is, so all reservations fall short alike: it gets 0.667 of 1 core"
    )
    assert account(found) == [(-0.3333, "a", "2 are reserved for a")]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_an_account_adds_up_where_more_cpusets_overlap_than_are_looked_at(chance: random.Random) -> None:
    guests = []
    for number in range(25):
        one = claim(f"g{number}", chance.randint(1, 9), reservation=chance.random() / 4, demand=chance.random())
        guests.append(replace(one, cpus=frozenset(chance.sample(range(10), 3))))
    for found in explained(guests, 4.0, frozenset(range(10))).values():
        total = found.by_shares + math.fsum(move.cores for move in found.transfers)
        assert total == pytest.approx(found.cores, abs=CLOSE)
