"""Claims that may use some CPUs only: what is divided can be run, and nobody can be given more but by taking from one
that has no more per share."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.policy.waterfill import MOST_UNIONS, Claim, divide, groups, waterfill

pytestmark = pytest.mark.unit

CPUS = 5
CLOSE = 1e-9


class Host(NamedTuple):
    claims: list[Claim]
    capacity: float
    cpus: frozenset[int]

    def waterfill(self) -> dict[str, float]:
        return waterfill(*self)

    def confined(self, claim: Claim) -> frozenset[int]:
        """Where a claim may run, as the host's CPUs are."""
        return claim.cpus & self.cpus or self.cpus

    def sets(self) -> Iterator[tuple[float, list[Claim]]]:
        """Every set of CPUs: its capacity, and who may run nowhere else."""
        for size in range(1, len(self.cpus) + 1):
            for some in combinations(sorted(self.cpus), size):
                members = [claim for claim in self.claims if self.confined(claim) <= set(some)]
                yield self.capacity * size / len(self.cpus), members


@st.composite
def hosts(draw: st.DrawFn, least: int = 0) -> Host:
    count = draw(st.integers(1, CPUS))
    capacity = count * draw(st.sampled_from([1.0, 0.95, 0.5]))
    cpusets = st.frozensets(st.integers(0, count - 1), max_size=count)
    amounts = st.one_of(st.floats(0, 2, allow_subnormal=False), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    shares = st.one_of(st.integers(1, 1_000_000), st.sampled_from([500, 1000, 2000]))
    claims = []
    for index in range(draw(st.integers(least, 9))):
        floor, ceiling = sorted((draw(amounts), draw(amounts)))
        wide = draw(st.booleans())
        floor = floor / 4 if draw(st.booleans()) else 0.0
        claims.append(Claim(f"g{index}", draw(shares), floor, math.inf if wide else ceiling, draw(cpusets)))
    return Host(claims, capacity, frozenset(range(count)))


def _fits(host: Host) -> bool:
    return all(math.fsum(claim.floor for claim in members) <= room + CLOSE for room, members in host.sets())


@given(hosts())
def test_every_set_of_cpus_holds_what_can_run_nowhere_else(host: Host) -> None:
    """Hall's condition: so there is a placement in which everybody gets its part."""
    got = host.waterfill()
    for room, members in host.sets():
        assert math.fsum(got[claim.name] for claim in members) <= room + CLOSE


@given(hosts())
def test_no_cpu_is_left_idle_that_somebody_could_use(host: Host) -> None:
    """The sum is the largest that any placement reaches (the least cut of the flow from claims to CPUs)."""
    most = math.fsum(claim.ceiling for claim in host.claims)
    for room, members in host.sets():
        most = min(most, room + math.fsum(claim.ceiling for claim in host.claims if claim not in members))
    assert math.fsum(host.waterfill().values()) == pytest.approx(most, abs=CLOSE)


@given(hosts())
def test_nobody_leaves_floor_and_ceiling(host: Host) -> None:
    got = host.waterfill()
    enough = _fits(host)
    for claim in host.claims:
        assert got[claim.name] <= claim.ceiling
        assert got[claim.name] >= claim.floor - CLOSE or not enough


@given(hosts())
def test_who_could_take_more_shares_full_cpus_with_guests_that_have_no_more(host: Host) -> None:
    """Max-min fairness: each claim below its ceiling has a set of CPUs that is full, where nobody has more per share,
    save by its floor. Where the floors do not fit, the same holds of floors instead of shares."""
    got = host.waterfill()
    enough = _fits(host)
    for claim in host.claims:
        mine = got[claim.name]
        if mine >= claim.ceiling - CLOSE or (not enough and mine >= claim.floor - CLOSE):
            continue

        def yields(other: Claim, claim: Claim = claim, mine: float = mine) -> bool:
            weight = other.shares / claim.shares if enough else other.floor / claim.floor
            fair = mine * float(weight)
            return got[other.name] <= max(other.floor if enough else 0, fair) * (1 + CLOSE) + CLOSE

        assert any(
            claim in members
            and math.fsum(got[one.name] for one in members) >= room - CLOSE
            and all(yields(one) for one in members)
            for room, members in host.sets()
        )


@given(hosts(), st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(host: Host, chance: random.Random) -> None:
    mixed = host.claims.copy()
    chance.shuffle(mixed)
    assert host._replace(claims=mixed).waterfill() == host.waterfill()


@given(hosts(least=1), st.integers(1, 1_000_000), st.data())
def test_more_shares_never_mean_less(host: Host, more: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(host.claims) - 1))
    one = host.claims[index]
    richer = host.claims.copy()
    richer[index] = replace(one, shares=one.shares + more)
    assert host._replace(claims=richer).waterfill()[one.name] >= host.waterfill()[one.name]


@given(hosts())
def test_all_cpus_named_are_none_named(host: Host) -> None:
    free = [replace(claim, cpus=frozenset()) for claim in host.claims]
    named = [replace(claim, cpus=host.cpus) for claim in host.claims]
    gone = [replace(claim, cpus=frozenset({CPUS + 1})) for claim in host.claims]
    expected = divide(free, host.capacity)
    for same in (free, named, gone):
        assert divide(same, host.capacity, host.cpus) == expected


def pinned(name: str, *cpus: int, shares: int = 1000, floor: float = 0.0, ceiling: float = 1.0) -> Claim:
    return Claim(name, shares, floor, ceiling, frozenset(cpus))


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([pinned("a", 0), pinned("b", 0), pinned("c")], [0.5, 0.5, 1]),
        ([pinned("a", 0), pinned("b", 0), pinned("c", 0), pinned("d", ceiling=2)], [1 / 3, 1 / 3, 1 / 3, 1]),
        ([pinned("a", 0, shares=3000), pinned("b", shares=1000, ceiling=2)], [1, 1]),
        ([pinned("a", 0), pinned("b", shares=3000, ceiling=2)], [0.5, 1.5]),
        ([pinned("a", 0, floor=0.9), pinned("b", 0, shares=9000), pinned("c", ceiling=2)], [0.9, 0.1, 1]),
        ([pinned("a", 0, floor=0.9), pinned("b", 0, floor=0.6), pinned("c", floor=1, ceiling=2)], [0.6, 0.4, 1]),
        ([pinned("a", 0, floor=1), pinned("b", 1, floor=1), pinned("c", 0, 1, floor=0.5)], [0.8, 0.8, 0.4]),
        ([pinned("a", 0, floor=1), pinned("b", 0, floor=1), pinned("c", 1)], [0.5, 0.5, 1]),
    ],
    ids=[
        "two on a CPU", "three on a CPU", "the CPU is the bound", "shares are", "a floor binds on its CPU",
        "floors that do not fit on their CPU", "floors that do not fit on both", "no room beside floors",
    ],
)  # fmt: skip
def test_two_cpus(claims: list[Claim], expected: list[float]) -> None:
    assert list(waterfill(claims, 2.0, frozenset({0, 1})).values()) == pytest.approx(expected)


def test_what_the_host_keeps_is_kept_on_every_cpu_alike() -> None:
    got = waterfill([pinned("a", 0), pinned("b", ceiling=2)], 1.9, frozenset({0, 1}))
    assert got == pytest.approx({"a": 0.95, "b": 0.95})


def test_cpus_that_are_not_known_count_as_one_each() -> None:
    got = waterfill([pinned("a", 0), pinned("b", 0), pinned("c", ceiling=4)], 4.0)
    assert got == pytest.approx({"a": 0.5, "b": 0.5, "c": 3})


@settings(max_examples=30, deadline=None)
@given(st.integers(9, 40), st.randoms(use_true_random=False))
def test_more_sets_than_can_be_looked_at_still_hold_each_what_they_can(count: int, chance: random.Random) -> None:
    """Sets of three out of ten CPUs make more unions than are looked at."""
    cpus = frozenset(range(10))
    claims = [Claim(f"g{i}", chance.randint(1, 9), 0, 2, frozenset(chance.sample(range(10), 3))) for i in range(count)]
    got = waterfill(claims, 9.0, cpus)
    assert math.fsum(got.values()) <= 9.0 + CLOSE
    for claim in claims:
        here = [one.name for one in claims if one.cpus <= claim.cpus]
        assert math.fsum(got[name] for name in here) <= 2.7 + CLOSE


@pytest.mark.parametrize("count", [8, 40])
def test_nested_sets_are_exact_however_many_there_are(count: int) -> None:
    """A NUMA node's CPUs, and each of them: twenty guests on each CPU of one node, one that may use all of it."""
    node = frozenset(range(count))
    claims = [Claim(f"c{cpu}-{n}", 1, 0, 1, frozenset({cpu})) for cpu in range(count) for n in range(20)]
    claims.append(Claim("wide", 10**6, 0, count, node))
    assert 2**count > MOST_UNIONS
    got = waterfill(claims, 2.0 * count, frozenset(range(2 * count)))
    assert math.fsum(got.values()) == pytest.approx(count)
    assert got["c0-0"] == got[f"c{count - 1}-19"] == pytest.approx(count / (10**6 + 20 * count))


def test_groups_are_linked_by_overlaps() -> None:
    sets = [frozenset(ids) for ids in ({0}, {1, 2}, {3}, {2, 4}, {4, 5}, {6})]
    found = {frozenset[int]().union(*group) for group in groups(sets)}
    assert found == {frozenset(ids) for ids in ({0}, {1, 2, 4, 5}, {3}, {6})}
