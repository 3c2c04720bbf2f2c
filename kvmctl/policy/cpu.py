"""What each running guest is entitled to, and the weights that make the kernel keep it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kvmctl.model.promise import Promise
from kvmctl.policy.waterfill import Claim, water_level, waterfill

Bound = Literal["shares", "reservation", "limit", "vcpus"]

LEAST_WEIGHT, MOST_WEIGHT = 2, 10_000
"""What cgroup v1 (2..262144) and v2 (1..10000) both take, so that a guest may move between their hosts."""

TOLERANCE = Fraction(1, 100)
"""By which part whole numbers may miss the exact proportions before they count as missing them."""


@dataclass(frozen=True, slots=True)
class CpuClaim:
    """One running guest: what it was promised, and the vCPUs it has now."""

    name: str
    promise: Promise
    vcpus: int

    @property
    def ceiling(self) -> float:
        """Cores that the guest can use at most."""
        return min(self.promise.cpu_limit, self.vcpus)

    @property
    def floor(self) -> float:
        """Cores that are reserved for the guest and that it can use."""
        return min(self.promise.cpu_reservation, self.ceiling)

    @property
    def shares(self) -> int:
        """At least 1: libvirt lets a definition say 0."""
        return max(1, self.promise.cpu_shares)


@dataclass(frozen=True, slots=True)
class Entitlement:
    """`cores` is what the guest gets while every guest is hungry, `weight` what makes the kernel give it that,
    `bound` what decides it. `note` says where the weight cannot express the entitlement."""

    name: str
    cores: float
    weight: int
    bound: Bound
    note: str = ""


def entitlements(claims: Sequence[CpuClaim], capacity: float) -> tuple[Entitlement, ...]:
    """Divide `capacity` cores (more than 0) among the running guests; the result is in their order.

    Weights proportional to entitlements e keep every reservation r for any subset A of hungry guests, because
    e/Σ_A e >= e/Σ e >= r/capacity, and leave no core idle that somebody wants. So nothing has to watch the guests.
    """
    plain = [Claim(claim.name, claim.shares, claim.floor, claim.ceiling) for claim in claims]
    cores = waterfill(plain, capacity)
    level = water_level(plain, capacity)
    # Less a billionth, which floats may have added: equal guests that reserve everything get equal weights.
    kept = {c.name: Fraction(min(c.floor, cores[c.name]) / capacity * (1 - 1e-9)) for c in claims}
    found = weights(_exact_weights(plain, cores, level), kept)
    notes = _notes(found, cores, kept)
    return tuple(
        Entitlement(claim.name, cores[claim.name], found[claim.name], _bound(claim, level), notes.get(claim.name, ""))
        for claim in claims
    )


def _bound(claim: CpuClaim, level: Fraction | float) -> Bound:
    wanted = level * claim.shares
    if wanted < claim.floor:
        return "reservation"
    if wanted > claim.ceiling:
        return "limit" if claim.promise.cpu_limit < claim.vcpus else "vcpus"
    return "shares"


def _exact_weights(claims: Sequence[Claim], cores: Mapping[str, float], level: Fraction | float) -> dict[str, Fraction]:
    """Entitlements as multiples of what one share gets, so that the weight of an unbound guest is its shares.
    Where every guest is at a bound, the weights add up to the shares instead."""
    if not 0 < level < math.inf:
        level = sum(map(Fraction, cores.values())) / max(1, sum(claim.shares for claim in claims))
    return {claim.name: Fraction(cores[claim.name]) / (Fraction(level) or 1) for claim in claims}


def weights(exact: Mapping[str, Fraction], kept: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole numbers in the kernel's range that are proportional to `exact`.

    `kept` is the part of all CPU that each guest's reservation is: rounding takes nothing from it as long as the
    reservations together leave anything over. The weights are `exact` rounded where that is precise enough, else
    as fine as the range allows; an `exact` too small even for that becomes the least weight.
    """
    plain = _rounded(exact, kept)
    if plain is not None and _is_close(plain, exact):
        return plain
    # The tolerance is room for what has to be rounded up.
    scale = MOST_WEIGHT * (1 - TOLERANCE) / (max(exact.values()) or 1)
    scaled = {name: value * scale for name, value in exact.items()}
    finest = _rounded(scaled, kept)
    return finest if finest is not None and max(finest.values()) <= MOST_WEIGHT else _nearest(scaled)


def _is_close(found: Mapping[str, int], exact: Mapping[str, Fraction]) -> bool:
    return all(
        weight <= MOST_WEIGHT and abs(weight - exact[name]) <= exact[name] * TOLERANCE for name, weight in found.items()
    )


def _nearest(exact: Mapping[str, Fraction]) -> dict[str, int]:
    return {name: max(LEAST_WEIGHT, round(value)) for name, value in exact.items()}


def _rounded(exact: Mapping[str, Fraction], kept: Mapping[str, Fraction]) -> dict[str, int] | None:
    """The nearest whole numbers, raised where a reservation would suffer; None where nothing is left to take from.

    With R the reserved part of the guests to be raised, m their number and S the sum of all others' weights, a
    total of T = (S + m)/(1 - R) has room for each of them to round its part of T up, since S + R·T + m = T.
    """
    found = _nearest(exact)
    raised: set[str] = set()
    while short := _short(found, kept):
        raised |= short
        left = 1 - sum(kept[name] for name in raised)
        if left <= 0:
            return None
        room = (sum(weight for name, weight in found.items() if name not in raised) + len(raised)) / left
        found.update({name: math.ceil(kept[name] * room) for name in raised})
    return found


def _short(found: Mapping[str, int], kept: Mapping[str, Fraction]) -> set[str]:
    total = sum(found.values())
    return {name for name, part in kept.items() if found[name] < part * total}


def _notes(found: Mapping[str, int], cores: Mapping[str, float], kept: Mapping[str, Fraction]) -> dict[str, str]:
    """What to say of the weights that cannot express what their guests are entitled to."""
    notes: dict[str, str] = {}
    divided, total = sum(cores.values()), sum(found.values())
    for name, weight in found.items():
        part = Fraction(weight, total)
        if part < kept[name] * (1 - TOLERANCE):
            notes[name] = f"weights up to {MOST_WEIGHT} keep {float(part / kept[name]):.0%} of its reservation"
        elif weight == LEAST_WEIGHT and part * divided > cores[name] * (1 + TOLERANCE):
            notes[name] = (
                f"the least weight, {weight}, gives it {part * divided:.3g} instead of {cores[name]:.3g} cores"
            )
    return notes


def falls_short(reservation: float, used: float | None, waited: float | None) -> bool:
    """Whether a guest wanted its reservation and did not get it. Cores, measured over the same time; `waited` is
    what its vCPUs spent runnable but not running. A tenth is what a short sample may be off."""
    if used is None or waited is None:
        return False
    return used < 0.9 * reservation <= used + waited
