"""Division of one resource by shares, between a floor and a ceiling for each claimant, some of whom may use a part
of it only."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

MOST_UNIONS = 255
"""Sets of CPUs that are looked at where cpusets overlap: all unions of eight."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimant: `shares` > 0, and 0 <= `floor` <= `ceiling`, in the unit of the capacity. Names are unique.
    `cpus` are those it may use together; none given are all."""

    name: str
    shares: int | Fraction
    floor: float | Fraction
    ceiling: float | Fraction
    cpus: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Portion:
    """What one claimant gets, and the level (what one share gets) at which the capacity it may use was full:
    infinite where it never was."""

    amount: Fraction
    level: Fraction | float


@dataclass(frozen=True, slots=True)
class _Pool:
    """The claimants of these cpusets, and what the CPUs in them give to all of them together."""

    sets: frozenset[frozenset[int]]
    capacity: Fraction | float


def waterfill(claims: Sequence[Claim], capacity: float, cpus: frozenset[int] = frozenset()) -> dict[str, float]:
    """Divide `capacity`: each claimant gets clamp(λ·shares, floor, ceiling), with λ such that the sum is `capacity`.

    This is weighted max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2) with lower bounds: the rule
    that ESXi and FusionCompute document for shares, reservation and limit. Two cases have no such λ. Where the
    ceilings do not reach the capacity, everybody gets the ceiling and the rest stays free. Where the floors exceed
    it, everybody gets floor·capacity/Σ floors: the shortage falls on all reservations alike.

    Claimants that may use some CPUs only stop at the λ at which those CPUs are full, while the others go on; there is
    a way to place all vCPUs on the CPUs they may use such that everybody gets its part (Hall's theorem). `cpus` are
    those that make up the capacity, each the same part of it; without them, each counts as 1. See `_unions` for
    how many different sets of CPUs this is exact for.

    The arithmetic is exact until the last step, so neither order nor rounding decides who gets what.
    """
    return {name: float(portion.amount) for name, portion in divide(claims, capacity, cpus).items()}


def divide(claims: Sequence[Claim], capacity: float, cpus: frozenset[int] = frozenset()) -> dict[str, Portion]:
    """As `waterfill`, with the level at which each claimant's part was found; in the order of the claims."""
    confined = _confined(claims, cpus)
    pools = _pools(confined.values(), capacity, cpus)
    exact = [replace(claim, floor=Fraction(claim.floor), cpus=confined[claim.name]) for claim in claims]
    floors = _sums(exact, [claim.floor for claim in exact])
    if any(_total(pool, floors) > pool.capacity for pool in pools):
        # Filling with the floors for shares: they grow alike, until one set of CPUs after the other is full.
        reserved = [Claim(c.name, Fraction(c.floor), 0, c.floor, c.cpus) for c in exact if c.floor]
        cut = {name: portion.amount for name, portion in _fill(reserved, pools).items()}
        exact = [replace(claim, floor=cut.get(claim.name, claim.floor)) for claim in exact]
    if len(pools) == 1:
        level = water_level(exact, capacity)
        return {claim.name: Portion(Fraction(_at(claim, level)), level) for claim in exact}
    return _fill(exact, pools)


def _at(claim: Claim, level: Fraction | float) -> Fraction | float:
    """What a claimant gets where one share gets `level`."""
    return min(max(level * claim.shares, claim.floor), claim.ceiling)


def _fill(claims: Sequence[Claim], pools: Sequence[_Pool]) -> dict[str, Portion]:
    """Progressive filling: raise the level for all; whoever is in a pool that is full stops, and the others go on."""
    found: dict[str, Portion] = {}
    rising = list(claims)
    while rising:
        level, full = _next_level(rising, pools)
        stopped = frozenset[frozenset[int]]().union(*(pool.sets for pool in full))
        done = [claim for claim in rising if claim.cpus in stopped or level == math.inf]
        portions = {claim.name: Portion(Fraction(_at(claim, level)), level) for claim in done}
        taken = _sums(done, [portion.amount for portion in portions.values()])
        rising = [claim for claim in rising if claim.name not in portions]
        found |= portions
        pools = [
            _Pool(pool.sets - stopped, pool.capacity - _total(pool, taken)) for pool in pools if pool.sets - stopped
        ]
    return {claim.name: found[claim.name] for claim in claims}


def _next_level(claims: Sequence[Claim], pools: Sequence[_Pool]) -> tuple[Fraction | float, list[_Pool]]:
    """The level at which the first pools are full, and these; infinite where all claims have their ceilings before."""
    level: Fraction | float = math.inf
    while True:
        sums = _sums(claims, [_at(claim, level) for claim in claims])
        excess = [_total(pool, sums) - pool.capacity for pool in pools]
        most = max(excess)
        if most <= 0:
            return level, [pool for pool, more in zip(pools, excess, strict=True) if more == 0]
        worst = pools[excess.index(most)]
        level = _level([claim for claim in claims if claim.cpus in worst.sets], worst.capacity)


def _sums(claims: Sequence[Claim], amounts: Sequence[Fraction | float]) -> dict[frozenset[int], Fraction | float]:
    """What the claims of each cpuset come to."""
    sums: dict[frozenset[int], Fraction | float] = {}
    for claim, amount in zip(claims, amounts, strict=True):
        # A float among Fractions would make a float of them.
        part = Fraction(amount) if math.isfinite(amount) else amount
        sums[claim.cpus] = sums.get(claim.cpus, 0) + part
    return sums


def _total(pool: _Pool, sums: Mapping[frozenset[int], Fraction | float]) -> Fraction | float:
    return sum((sums[ids] for ids in pool.sets if ids in sums), Fraction(0))


def water_level(claims: Sequence[Claim], capacity: float | Fraction) -> Fraction | float:
    """The λ of `waterfill`: what one share gets, where neither floor nor ceiling binds and all CPUs are for all.

    Infinite where the ceilings do not exceed the capacity, 0 where the floors use it up.
    """
    if math.fsum(claim.ceiling for claim in claims) <= capacity:
        return math.inf
    return _level(claims, capacity)


def _level(claims: Sequence[Claim], capacity: float | Fraction) -> Fraction | float:
    # Σ clamp(λ·shares, floor, ceiling) is linear in λ between the points where a claimant leaves its floor (the
    # slope grows by its shares) or reaches its ceiling (it falls by them).
    bends = [(Fraction(claim.floor) / claim.shares, claim.shares) for claim in claims]
    bends += [(Fraction(c.ceiling) / c.shares, -c.shares) for c in claims if math.isfinite(c.ceiling)]
    level, missing = Fraction(0), Fraction(capacity) - sum(Fraction(claim.floor) for claim in claims)
    slope = Fraction(0)
    for bend, change in sorted(bends):
        if missing <= slope * (bend - level):
            break
        missing -= slope * (bend - level)
        level, slope = bend, slope + change
    if missing <= 0:
        return level
    return level + missing / slope if slope else math.inf


def _confined(claims: Sequence[Claim], cpus: frozenset[int]) -> dict[str, frozenset[int]]:
    """The CPUs of each claimant, empty where it may use all. So may one that may use none of `cpus`: the kernel lets
    a thread run anywhere when the last of its CPUs goes off-line."""
    sets = {claim.name: claim.cpus & cpus if cpus else claim.cpus for claim in claims}
    return {name: frozenset() if ids == cpus else ids for name, ids in sets.items()}


def _pools(sets: Collection[frozenset[int]], capacity: float, cpus: frozenset[int]) -> list[_Pool]:
    """All claimants, and those confined to each union of cpusets."""
    confined = {ids for ids in sets if ids}
    each = Fraction(capacity) / len(cpus) if cpus else Fraction(1)
    pools = [_Pool(frozenset(sets), Fraction(capacity))]
    for union in _unions(confined):
        pools.append(_Pool(frozenset(ids for ids in confined if ids <= union), each * len(union)))
    return pools


def _unions(sets: set[frozenset[int]]) -> set[frozenset[int]]:
    """The sets of CPUs that may be full before the others: the unions of cpusets that overlap.

    Unions of sets without a common CPU say nothing that each of them does not say. A group of overlapping cpusets
    has at most `MOST_UNIONS` unions if it is made of eight different sets, and fewer where sets lie within each other.
    Where a group has more, only its own sets and all of it are looked at: nobody then gets more than its CPUs have,
    but several together might.
    """
    found: set[frozenset[int]] = set()
    for group in groups(sets):
        unions = set(group)
        waiting = list(group)
        while waiting and len(unions) <= MOST_UNIONS:
            union = waiting.pop()
            wider = {union | other for other in group if not union.isdisjoint(other)} - unions
            unions |= wider
            waiting += wider
        found |= unions if len(unions) <= MOST_UNIONS else {*group, frozenset[int]().union(*group)}
    return found


def groups(sets: Iterable[frozenset[int]]) -> list[list[frozenset[int]]]:
    """Sets of CPUs, those together that overlap or are linked by others that do."""
    found: dict[frozenset[int], list[frozenset[int]]] = {}
    for one in sets:
        touching = [union for union in found if not union.isdisjoint(one)]
        members = [one, *(member for union in touching for member in found.pop(union))]
        found[frozenset[int]().union(*members)] = members
    return list(found.values())
