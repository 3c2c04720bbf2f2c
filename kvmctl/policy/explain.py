"""Why a guest is entitled to what it is, and at whose cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kvmctl.model.cpuset import format_cpuset
from kvmctl.model.units import format_cores
from kvmctl.policy.cpu import Bound, CpuClaim, bounds_of, divided, entitlements, most_bound
from kvmctl.policy.waterfill import Claim, Portion, groups, waterfill

_Reason = Callable[[CpuClaim, CpuClaim | None], tuple[Bound, str] | None]
"""Says why cores go from one guest to another, or to nobody; None where that is not for a bound of theirs."""

LEAST = 1e-9
"""Cores that float arithmetic may have made."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """`cores` that a guest gets from another, or where negative leaves to it, because of `bound`, which is the one's
    or the other's. `guest` is None for what nobody can use."""

    guest: str | None
    cores: float
    bound: Bound
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The account of one guest's cores: `by_shares` and all transfers add up to `cores`."""

    name: str
    shares: int
    all_shares: int
    by_shares: float
    """What its shares alone are worth: their part of the capacity."""
    transfers: tuple[Transfer, ...]
    """Those of pinning, then of what guests can use and want, then of reservations; of each the largest first."""
    cores: float
    bound: Bound
    why: str
    hungry: float
    """Its cores while every guest wants all it can use."""
    hungry_bound: Bound
    weight: int
    note: str
    """What its weight cannot express; mostly empty."""


def explain(claims: Sequence[CpuClaim], capacity: float, name: str, cpus: frozenset[int] = frozenset()) -> Explanation:
    """Account for what `entitlements` gives the guest called `name`, which is one of the claims.

    Three steps lead from shares alone to what each guest gets: where guests may run; what they can use and want; what
    is reserved. What some lose by a step goes to those that gain by it, in proportion: who pays is a matter of sums,
    since no cycle of a CPU belongs to anybody. Guests that are confined to other CPUs pay each other nothing.
    """
    by_name = {claim.name: claim for claim in claims}
    one = by_name[name]
    now, sure = (divided(claims, capacity, cpus, by_demand) for by_demand in (True, False))
    all_shares = sum(claim.shares for claim in claims)
    free = [Claim(claim.name, claim.shares, 0, math.inf, claim.cpus) for claim in claims]
    capped = [replace(claim, ceiling=by_name[claim.name].wanted) for claim in free]
    by_shares = {claim.name: capacity * claim.shares / all_shares for claim in claims}
    placed, usable = (waterfill(plain, capacity, cpus) for plain in (free, capped))
    given = {name: float(portion.amount) for name, portion in now.items()}
    linked = _linked(claims, name, cpus)
    steps = (
        (_place, _moved(name, by_shares, placed, set(by_name))),
        (partial(_use, usable), _moved(name, placed, usable, linked)),
        (partial(_reserve, given), _moved(name, usable, given, linked)),
    )
    entitled = next(found for found in entitlements(claims, capacity, cpus) if found.name == name)
    return Explanation(
        name=name,
        shares=one.shares,
        all_shares=all_shares,
        by_shares=by_shares[name],
        transfers=tuple(
            _transfer(reason, one, by_name[other] if other else None, cores)
            for reason, moves in steps
            for other, cores in moves
        ),
        cores=entitled.cores,
        bound=entitled.bound,
        why=_why(one, entitled.bound, now),
        hungry=entitled.hungry,
        hungry_bound=bounds_of([replace(claim, demand=None) for claim in claims], sure)[name],
        weight=entitled.weight,
        note=entitled.note,
    )


def _linked(claims: Sequence[CpuClaim], name: str, cpus: frozenset[int]) -> set[str]:
    """The guests that compete with this one, if only through others."""
    everywhere = cpus or frozenset[int]().union(*(claim.cpus for claim in claims))
    sets = {claim.name: claim.cpus & everywhere or everywhere for claim in claims}
    group = next((group for group in groups(set(sets.values())) if sets[name] in group), [])
    return {other for other, ids in sets.items() if ids in group}


def _moved(
    name: str, before: Mapping[str, float], after: Mapping[str, float], among: set[str]
) -> list[tuple[str | None, float]]:
    """What the guest gets from each other (negative: leaves to it) by a step, the largest first; None is nobody."""
    change = {other: after[other] - before[other] for other in among}
    mine = change[name]
    lost, gained = -sum(min(0.0, cores) for cores in change.values()), sum(max(0.0, cores) for cores in change.values())
    moves: list[tuple[str | None, float]] = [
        (other, mine * abs(cores) / max(lost, gained)) for other, cores in change.items() if mine * cores < 0
    ]
    if mine:
        # What cannot be used, where not all that is lost is gained.
        most, least = (gained, lost) if mine > 0 else (lost, gained)
        moves.append((None, mine * max(0.0, most - least) / most))
    return sorted((move for move in moves if abs(move[1]) > LEAST), key=lambda move: (-abs(move[1]), move[0] or ""))


def _place(giver: CpuClaim, _taker: CpuClaim | None) -> tuple[Bound, str]:
    return "pinning", f"{giver.name} may run on {_cpus(giver)} only"


def _use(usable: Mapping[str, float], giver: CpuClaim, taker: CpuClaim | None) -> tuple[Bound, str] | None:
    if usable[giver.name] < giver.wanted - LEAST:
        return None
    bound = most_bound(giver)
    match bound:
        case "demand":
            unused = f" of the {format_cores(giver.floor)} reserved for it" if giver.wanted < giver.floor else ""
            return bound, f"{giver.name} wants {format_cores(giver.wanted)}{unused}"
        case "limit":
            return bound, f"{giver.name} is limited to {format_cores(giver.promise.cpu_limit)}"
        case "vcpus":
            return bound, f"{giver.name} has {_count(giver.vcpus, 'vCPU')}"
    return _place(giver, taker)


def _reserve(given: Mapping[str, float], _giver: CpuClaim, taker: CpuClaim | None) -> tuple[Bound, str] | None:
    if taker is None or given[taker.name] > taker.floor + LEAST:
        return None
    return "reservation", f"{format_cores(taker.floor)} are reserved for {taker.name}"


def _transfer(reason: _Reason, one: CpuClaim, other: CpuClaim | None, cores: float) -> Transfer:
    giver, taker = (one, other) if cores < 0 else (other, one)
    found = reason(giver, taker) if giver else None
    # Where cpusets overlap, a guest that is pressed on some of its CPUs presses others elsewhere.
    bound, why = found or ("pinning", "they share CPUs with those that gain or lose")
    return Transfer(other.name if other else None, cores, bound, why)


def _why(claim: CpuClaim, bound: Bound, portions: Mapping[str, Portion]) -> str:
    amount, level = portions[claim.name].amount, portions[claim.name].level
    top = max(portion.level for portion in portions.values())
    worth = format_cores(float(level * claim.shares))
    beyond = "" if level == math.inf else f", less than the {worth} that its shares are worth"
    match bound:
        case "reservation" if amount < claim.floor * (1 - LEAST):
            text = "more is reserved than there is, so all reservations fall short alike: "
            text += f"it gets {format_cores(float(amount))} of {in_cores(claim.floor)}"
        case "reservation":
            text = f"its reservation is {in_cores(claim.floor)}, and its shares are worth {worth}"
        case "demand":
            text = f"it wants {in_cores(claim.wanted)} at present{beyond}"
        case "limit":
            text = f"its limit is {in_cores(claim.promise.cpu_limit)}{beyond}"
        case "vcpus":
            text = f"its {_count(claim.vcpus, 'vCPU')} can use {_count(claim.vcpus, 'core')}{beyond}"
        case "pinning" if level < top:
            text = f"it may run on {_cpus(claim)} only, where its shares are worth {worth}, and elsewhere more"
        case "pinning":
            text = f"its {_count(claim.vcpus, 'vCPU')} may run on {_cpus(claim)} only{beyond}"
        case "shares":
            text = f"1000 shares are worth {in_cores(float(level * 1000))}, and it has {claim.shares}"
    return text


def in_cores(amount: float) -> str:
    """An amount of CPU with its unit."""
    text = format_cores(amount)
    return f"{text} core{'' if text == '1' else 's'}"


def _cpus(claim: CpuClaim) -> str:
    return f"CPU{'s' if len(claim.cpus) > 1 else ''} {format_cpuset(claim.cpus)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
