"""Division of one resource by shares, between a floor and a ceiling for each claimant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimant: `shares` > 0, and 0 <= `floor` <= `ceiling`, in the unit of the capacity. Names are unique."""

    name: str
    shares: int
    floor: float
    ceiling: float


def waterfill(claims: Sequence[Claim], capacity: float) -> dict[str, float]:
    """Divide `capacity`: each claimant gets clamp(λ·shares, floor, ceiling), with λ such that the sum is `capacity`.

    This is weighted max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2) with lower bounds: the rule
    that ESXi and FusionCompute document for shares, reservation and limit. Two cases have no such λ. Where the
    ceilings do not reach the capacity, everybody gets the ceiling and the rest stays free. Where the floors exceed
    it, everybody gets floor·capacity/Σ floors: the shortage falls on all reservations alike.

    The arithmetic is exact until the last step, so neither order nor rounding decides who gets what.
    """
    floors = sum(Fraction(claim.floor) for claim in claims)
    if floors > capacity:
        part = Fraction(capacity) / floors
        return {claim.name: float(Fraction(claim.floor) * part) for claim in claims}
    level = water_level(claims, capacity)
    return {claim.name: float(min(max(level * claim.shares, claim.floor), claim.ceiling)) for claim in claims}


def water_level(claims: Sequence[Claim], capacity: float) -> Fraction | float:
    """The λ of `waterfill`: what one share gets, where neither floor nor ceiling binds.

    Infinite where the ceilings do not exceed the capacity, 0 where the floors use it up.
    """
    if math.fsum(claim.ceiling for claim in claims) <= capacity:
        return math.inf
    # Σ clamp(λ·shares, floor, ceiling) is linear in λ between the points where a claimant leaves its floor (the
    # slope grows by its shares) or reaches its ceiling (it falls by them).
    bends = [(Fraction(claim.floor) / claim.shares, claim.shares) for claim in claims]
    bends += [(Fraction(c.ceiling) / c.shares, -c.shares) for c in claims if math.isfinite(c.ceiling)]
    level, slope, missing = Fraction(0), 0, Fraction(capacity) - sum(Fraction(claim.floor) for claim in claims)
    for bend, change in sorted(bends):
        if missing <= slope * (bend - level):
            break
        missing -= slope * (bend - level)
        level, slope = bend, slope + change
    return level + missing / slope if missing > 0 else level
