"""What each running guest is entitled to, and the weights that make the kernel keep it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from kvmctl.model.promise import Promise
from kvmctl.policy.waterfill import Claim, Portion, divide
from kvmctl.policy.weights import notes, weights

Bound = Literal["shares", "reservation", "limit", "vcpus", "demand", "pinning"]

OFF = 0.1
"""The part by which a short sample may be off."""


@dataclass(frozen=True, slots=True)
class CpuClaim:
    """One running guest: what it was promised, and the vCPUs it has now.

    `demand` is the cores that it wants at present; None is unknown, and counts as all that it can use. `cpus` are
    the host's CPUs that its vCPUs may use together; none are all.
    """

    name: str
    promise: Promise
    vcpus: int
    demand: float | None = None
    cpus: frozenset[int] = frozenset()

    @property
    def ceiling(self) -> float:
        """Cores that the guest can use at most."""
        return min(self.promise.cpu_limit, self.vcpus, len(self.cpus) or math.inf)

    @property
    def floor(self) -> float:
        """Cores that are reserved for the guest and that it can use."""
        return min(self.promise.cpu_reservation, self.ceiling)

    @property
    def wanted(self) -> float:
        """Cores that the guest can use and wants."""
        return self.ceiling if self.demand is None else min(self.ceiling, self.demand)

    @property
    def shares(self) -> int:
        """At least 1: libvirt lets a definition say 0."""
        return max(1, self.promise.cpu_shares)


@dataclass(frozen=True, slots=True)
class Entitlement:
    """`cores` is what the guest is to get at present, `bound` what decides that, `weight` what makes the kernel give
    it. `hungry` is what it is sure of: its cores while every guest wants all it can use. `note` says where the
    weight cannot express the entitlement."""

    name: str
    cores: float
    hungry: float
    weight: int
    bound: Bound
    note: str = ""


def entitlements(
    claims: Sequence[CpuClaim], capacity: float, cpus: frozenset[int] = frozenset()
) -> tuple[Entitlement, ...]:
    """Divide `capacity` cores (more than 0) among the running guests; the result is in their order.

    `cpus` are the host's CPUs, which have to be known where a guest may use some of them only.

    What a guest does not want, of its reservation too, goes to those that want more, by shares. Weights proportional
    to entitlements e keep every reservation r for any subset A of hungry guests, because e/Σ_A e >= e/Σ e >=
    r/capacity, and leave no core idle that somebody wants. So nothing has to watch the guests: one that wants
    little has the weight it would have if all were hungry, and any weight is raised until that holds for its
    reservation. Weights count on each CPU by itself: those of guests that are pinned may need correction.
    """
    sure = divided(claims, capacity, cpus)
    now = sure if all(claim.demand is None for claim in claims) else divided(claims, capacity, cpus, by_demand=True)
    bounds = bounds_of(claims, now)
    # Where nothing is scarce at present, nobody gains by other weights than those that are right when it is.
    scarce = any(portion.level < math.inf for portion in now.values())
    hungry = {name for name, what in bounds.items() if scarce and what != "demand"}
    aimed = {claim.name: float((now if claim.name in hungry else sure)[claim.name].amount) for claim in claims}
    sure_unit = _level(sure) or _mean(claims, sure)
    unit = _level(now) or sure_unit
    exact = {name: Fraction(cores) / (unit if name in hungry else sure_unit) for name, cores in aimed.items()}
    # Less a billionth, which floats may have added: equal guests that reserve everything get equal weights.
    kept = {c.name: Fraction(min(c.floor, float(sure[c.name].amount)) / capacity * (1 - 1e-9)) for c in claims}
    found = _weights(tuple(exact.items()), tuple(kept.items()))
    said = notes(found, aimed, kept)
    return tuple(
        Entitlement(
            name=claim.name,
            cores=float(now[claim.name].amount),
            hungry=float(sure[claim.name].amount),
            weight=found[claim.name],
            bound=bounds[claim.name],
            note=said.get(claim.name, ""),
        )
        for claim in claims
    )


@lru_cache(maxsize=4)
def _weights(exact: tuple[tuple[str, Fraction], ...], kept: tuple[tuple[str, Fraction], ...]) -> dict[str, int]:
    # As long as no CPU is scarce these are the same at every tick. Nobody changes what is returned.
    return weights(dict(exact), dict(kept))


def _level(portions: Mapping[str, Portion]) -> Fraction | None:
    """Cores that one share gets, so that the weight of an unbound guest is its shares. None where every guest is at
    a bound."""
    found = [portion.level for portion in portions.values() if isinstance(portion.level, Fraction)]
    return max(found, default=None) or None


def _mean(claims: Sequence[CpuClaim], portions: Mapping[str, Portion]) -> Fraction:
    """Cores that one share gets on average, so that the weights add up to the shares."""
    cores = sum((Fraction(float(portion.amount)) for portion in portions.values()), Fraction(0))
    return cores / max(1, sum(claim.shares for claim in claims)) or Fraction(1)


def divided(
    claims: Sequence[CpuClaim], capacity: float, cpus: frozenset[int], by_demand: bool = False
) -> dict[str, Portion]:
    """What each guest gets while all are hungry, or, `by_demand`, while they want what they do now."""
    ceilings = {claim.name: claim.wanted if by_demand else claim.ceiling for claim in claims}
    plain = [
        Claim(claim.name, claim.shares, min(claim.floor, ceilings[claim.name]), ceilings[claim.name], claim.cpus)
        for claim in claims
    ]
    return _divide(tuple(plain), capacity, cpus)


@lru_cache(maxsize=4)
def _divide(claims: tuple[Claim, ...], capacity: float, cpus: frozenset[int]) -> dict[str, Portion]:
    # What guests are sure of is the same at every tick, until one comes or goes. Nobody changes what is returned.
    return divide(claims, capacity, cpus)


def bounds_of(claims: Sequence[CpuClaim], portions: Mapping[str, Portion]) -> dict[str, Bound]:
    """What decides that each guest gets its portion, and neither more nor less."""
    top = max((portion.level for portion in portions.values()), default=math.inf)
    return {claim.name: _bound(claim, portions[claim.name], top) for claim in claims}


def _bound(claim: CpuClaim, portion: Portion, top: Fraction | float) -> Bound:
    by_shares = portion.level * claim.shares
    if portion.amount >= claim.wanted < claim.ceiling:
        return "demand"
    if by_shares < claim.floor:
        return "reservation"
    if by_shares > claim.ceiling:
        return most_bound(claim)
    return "pinning" if portion.level < top else "shares"


def most_bound(claim: CpuClaim) -> Bound:
    """What decides how much a guest can use and wants."""
    if claim.wanted < claim.ceiling:
        return "demand"
    places = len(claim.cpus) or math.inf
    if claim.promise.cpu_limit < min(claim.vcpus, places):
        return "limit"
    return "pinning" if places < claim.vcpus else "vcpus"


def demand(used: float | None, waited: float | None, ceiling: float) -> float | None:
    """Cores that a guest wants, from what it used and waited for over the same time. None where that is unknown, or
    so near to all it can use that a short sample cannot tell it from a guest that wants more."""
    if used is None or waited is None or used + waited >= (1 - OFF) * ceiling:
        return None
    return used + waited


def falls_short(reservation: float, used: float | None, waited: float | None) -> bool:
    """Whether a guest wanted its reservation and did not get it. Cores, measured over the same time; `waited` is
    what its vCPUs spent runnable but not running."""
    if used is None or waited is None:
        return False
    return used < (1 - OFF) * reservation <= used + waited
