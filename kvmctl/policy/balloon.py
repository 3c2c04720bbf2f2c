"""How much memory each guest's balloon leaves it.

Memory is taken from whoever has the lowest claim on what it holds: shares per page, where a page that is not used
counts `IDLE_COST` times (the idle memory tax of Waldspurger, Memory Resource Management in VMware ESX Server, OSDI
2002: price = S / (P·(f + k·(1 - f))), k = 1/(1 - tax)). It is taken slowly and given back at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from kvmctl.model.units import MIB
from kvmctl.policy.waterfill import Claim, waterfill

IDLE_TAX = 0.75
IDLE_COST = 1 / (1 - IDLE_TAX)
"""What an idle page costs where a used one costs 1."""

LEAST_MARGIN, MOST_MARGIN, MARGIN_PART = 32 * MIB, 256 * MIB, 16
"""Bytes, and the part of its size, that a guest is left beyond what it needs. A guest without margin lives on
`autodeflate`: it gains nothing and risks everything."""
LEAN_PART = 2
"""One part of so many of its margin is left to a guest of a host in the state `hard`, where nothing else suffices."""
CACHE_PART = 0.5
"""The part of its page cache that a guest keeps until the host is in the state `hard`."""
STEP_PART = 5
"""A guest is made smaller by a fifth of its size in one tick at most: a third takes two."""
FIRST_PART, LEAST_FIRST = 2, 192 * MIB
"""The part of its size that a guest boots with where memory is short, and how many bytes at least."""
FINEST = 8 * MIB
"""Targets that differ by less are left: moving a balloon costs the guest something each time."""
FIRST_CALM, MOST_CALM = 30.0, 600.0
"""Seconds for which a guest is left alone after it was under pressure; twice as long each time, up to the latter."""
MOST_FAULTS = 200.0
"""Major faults a second, or pages swapped in, from which a guest is short of memory."""


@dataclass(frozen=True, slots=True)
class BalloonClaim:
    """One running guest. Bytes, except `shares`."""

    name: str
    shares: int
    floor: int
    """It is never made smaller than this: its reservation, and what it really uses with a margin."""
    actual: int
    """What its balloon leaves it now."""
    size: int
    """What it is to have where memory suffices."""
    need: int
    """What it uses and cannot give up."""


def margin(size: int, lean: bool = False) -> int:
    """Bytes beyond its need that a guest of this size is left; `lean` as `LEAN_PART` says."""
    return max(LEAST_MARGIN, min(MOST_MARGIN, size // MARGIN_PART)) // (LEAN_PART if lean else 1)


def least_usable(size: int) -> int:
    """Usable bytes below which a guest of this size is short of memory: three quarters of a lean margin. What Linux
    calls available hardly falls below 9 MiB before its balloon deflates by itself."""
    return margin(size, lean=True) * 3 // 4


def first_target(size: int, reservation: int) -> int | None:
    """Bytes that a guest of this size is to boot with where memory is short; None is all of them."""
    target = max(reservation, size // FIRST_PART, LEAST_FIRST) // MIB * MIB
    return target if target < size else None


def need(actual: int, usable: int, cache: int, keep_cache: bool) -> int:
    """Bytes a guest uses: what its balloon leaves it less what it calls usable. With `keep_cache` half of the page
    cache counts as used: a guest reads from its disk what it has no cache for."""
    used = actual - usable
    return max(0, used + (round(CACHE_PART * min(cache, usable)) if keep_cache else 0))


def is_pressed(size: int, usable: int, faults: float | None) -> bool:
    """Whether a guest is short of memory: little is usable, or it reads back from its disk what it just dropped.
    `faults` are major faults and pages swapped in a second, together; None is unknown."""
    return usable < least_usable(size) or (faults is not None and faults > MOST_FAULTS)


def calm(before: float) -> float:
    """Seconds for which a guest is left alone, after it was left alone for `before` the last time."""
    return FIRST_CALM if before <= 0 else min(MOST_CALM, 2 * before)


def price(claim: BalloonClaim) -> float:
    """Shares for each byte that the guest holds, taxed for those it does not use: whoever has the lowest pays first."""
    return claim.shares / float(_cost(claim) * max(1, claim.actual))


def _cost(claim: BalloonClaim) -> Fraction:
    used = min(Fraction(1), Fraction(claim.need, max(1, claim.actual)))
    return used + Fraction(IDLE_COST) * (1 - used)


def shrunk(claims: Sequence[BalloonClaim], amount: int) -> dict[str, int]:
    """Targets by name, with which `amount` bytes are taken from these guests as far as their floors and steps allow.

    The portions P of what they hold together are such that all prices are equal where no bound binds: P = λ·S/(f +
    k·(1 - f)). Nobody's target is above what it has.
    """
    lows = {claim.name: _low(claim) for claim in claims}
    total = sum(claim.actual for claim in claims)
    return _divided(claims, lows, {claim.name: claim.actual for claim in claims}, total - amount)


def _low(claim: BalloonClaim) -> int:
    """What it may be made in one tick."""
    return min(claim.actual, max(claim.floor, claim.actual - claim.size // STEP_PART))


def coarse(claims: Sequence[BalloonClaim], targets: Mapping[str, int]) -> dict[str, int]:
    """As much taken as with these targets, and less than `FINEST` more, but from nobody less than that: a little of
    each of many would be worth no move, so that some give it all, the lowest prices first. Who cannot is left."""
    found = dict(targets)
    fine = [claim for claim in claims if 0 < claim.actual - targets[claim.name] < FINEST]
    left = sum(claim.actual - targets[claim.name] for claim in fine)
    for claim in sorted(fine, key=lambda claim: (price(claim), claim.name)):
        step = FINEST if left > 0 and claim.actual - _low(claim) >= FINEST else 0
        found[claim.name] = claim.actual - step
        left -= step
    return found


def grown(claims: Sequence[BalloonClaim], amount: int) -> dict[str, int]:
    """Targets by name, with which `amount` bytes are given back to these guests, to the highest prices first. Nobody's
    target is below what it has, or above its size."""
    highs = {claim.name: max(claim.actual, claim.size) for claim in claims}
    total = sum(claim.actual for claim in claims)
    return _divided(claims, {claim.name: claim.actual for claim in claims}, highs, total + amount)


def _divided(
    claims: Sequence[BalloonClaim], lows: Mapping[str, int], highs: Mapping[str, int], capacity: int
) -> dict[str, int]:
    if not claims:
        return {}
    least = sum(lows.values())
    if capacity <= least:
        return dict(lows)
    parts = [Claim(c.name, Fraction(max(1, c.shares)) / _cost(c), lows[c.name], highs[c.name]) for c in claims]
    return {name: round(amount) for name, amount in waterfill(parts, float(capacity)).items()}
