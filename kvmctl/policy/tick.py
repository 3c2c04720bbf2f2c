"""One tick's decision: from what was observed to the changes that keep the promises. Pure, so that a saved snapshot
gives the same plan anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvmctl.model.change import Change
from kvmctl.model.host_sample import Snapshot
from kvmctl.model.hostpolicy import HostPolicy, cpu_reserve
from kvmctl.model.plan import GuestMemory, Memory, Plan
from kvmctl.model.promise import Promise
from kvmctl.model.sample import ACTIVE, GuestSample
from kvmctl.model.units import format_cores
from kvmctl.policy import drift
from kvmctl.policy.cpu import OFF, CpuClaim, Entitlement, divided, entitlements
from kvmctl.policy.parent import cores_used
from kvmctl.policy.weights import LEAST_WEIGHT, MOST_WEIGHT

SHORTEST, LONGEST = 0.2, 300.0
"""Seconds between two looks at the counters. A shorter window measures nothing; over a longer one, whatever the
guests wanted at its beginning says nothing about now."""
LAG = 0.1
"""Seconds by which a waiting thread's account may be behind: the kernel adds up what it waited when it runs again."""
FALL = 0.5
"""The part of a guest's former demand that remains in the next window's: a demand rises at once and falls slowly."""
IDLE_HAND = 1.25
"""A guest that wants little is given room to want a quarter more before anybody looks again."""
NOTICED = 0.005
"""The part by which a weight has to be off to be set again."""

_WORDS = {
    "shares": "by its shares",
    "reservation": "its reservation binds",
    "limit": "its limit binds",
    "vcpus": "all its vCPUs can use",
    "demand": "all it wants",
    "pinning": "on the CPUs it is pinned to",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One guest over the window since the last tick. Cores; `demand` None is all it can use, or unknown. `hungry` is
    whether it, or one of its vCPUs, wanted a CPU all the time."""

    used: float
    demand: float | None
    hungry: bool


def decide(now: Snapshot, before: Memory | None, policy: HostPolicy) -> Plan:
    """What has to be done so that every running guest gets what it is entitled to, and no more than that.

    Where a counter is unknown, or the last look is too long ago, a guest counts as hungry and what was remembered
    of its drift stays: the second of two decisions on the same snapshot changes nothing.
    """
    guests = [guest for guest in now.guests if guest.state in ACTIVE]
    known = [guest for guest in guests if guest.promise is not None]
    seconds = window(now, before)
    measured = {g.name: found for g in known if before and seconds and (found := measure(g, before, seconds))}
    others = _others(now, before, seconds)
    memories = {g.uuid: _remember(g, before, measured.get(g.name)) for g in known}
    cores = max(1, now.host.cpus) if now.host else 1
    reserve = cpu_reserve(policy, cores)
    capacity = cores - min(reserve, reserve if others is None else others)
    claims = [_claim(guest, memories[guest.uuid]) for guest in known]
    online = now.host.online if now.host else frozenset[int]()
    entitled = entitlements(claims, capacity, online) if claims else ()
    if seconds and policy.cpu.correct != "off":
        memories = _corrected(known, memories, measured, seconds, online)
    due = _weights(known, entitled, memories)
    changes = tuple(
        change
        for guest, one in zip(known, entitled, strict=True)
        if (change := _change(guest, one, due[guest.name], memories[guest.uuid], measured.get(guest.name), policy))
    )
    notes = tuple(_notes(guests, entitled, sum(_promise(g).cpu_reservation for g in known), cores - reserve))
    busy = now.host.busy if now.host else None
    memory = Memory(now.taken, now.boot, busy, others, memories, before.reclaim if before else None)
    return Plan(changes, notes, memory)


def window(now: Snapshot, before: Memory | None) -> float:
    """Seconds since the last look at the counters; 0 where these cannot be compared."""
    if before is None or before.boot != now.boot:
        return 0.0
    seconds = (now.taken - before.taken) / 1e9
    return seconds if SHORTEST <= seconds <= LONGEST else 0.0


def measure(guest: GuestSample, before: Memory, seconds: float) -> Measured | None:
    """What a guest used and wanted since the last look; None where its counters are unknown or began anew."""
    old = before.guests.get(guest.uuid)
    if old is None or old.run != guest.run or guest.cpu_time is None or old.cpu_time is None:
        return None
    used = (guest.cpu_time - old.cpu_time) / 1e9 / seconds
    if used < 0:
        return None
    if guest.state != "running":
        return Measured(used, 0.0, hungry=False)
    wants = _vcpus_want(guest, old, seconds)
    if wants is None:
        return Measured(used, None, hungry=True)
    running = sum(new - was for new, was in zip(guest.vcpu_time, old.vcpu_time, strict=True)) / 1e9 / seconds
    return Measured(used, sum(wants) + max(0.0, used - running), hungry=1.0 in wants)


def _vcpus_want(guest: GuestSample, old: GuestMemory, seconds: float) -> list[float] | None:
    """Cores that each vCPU wanted: what it ran and waited, and 1 where that is nearly all the time."""
    delay, was = guest.vcpu_delay, old.vcpu_delay
    counts = {len(guest.vcpu_time), len(old.vcpu_time), len(delay or ()), len(was or ())}
    if delay is None or was is None or len(counts) > 1:
        return None
    ran = [new - before for new, before in zip(guest.vcpu_time, old.vcpu_time, strict=True)]
    waited = [new - before for new, before in zip(delay, was, strict=True)]
    parts = [max(0.0, (a + b) / 1e9 / seconds) for a, b in zip(ran, waited, strict=True)]
    return [1.0 if part >= 1 - OFF - LAG / seconds else part for part in parts]


def _others(now: Snapshot, before: Memory | None, seconds: float) -> float | None:
    """Cores that all else on the host used; what was known before where it cannot be measured now."""
    former = before.others if before and before.boot == now.boot else None
    used = cores_used(now, before, seconds)
    if used is None or former is None:
        return former if used is None else used[1]
    return max(used[1], FALL * former + (1 - FALL) * used[1])


def _remember(guest: GuestSample, before: Memory | None, found: Measured | None) -> GuestMemory:
    old = before.guests.get(guest.uuid) if before else None
    assert guest.run is not None
    fresh = GuestMemory(guest.run, guest.cpu_time, guest.vcpu_time, guest.vcpu_delay)
    if old is None or old.run != guest.run:
        return fresh
    demand = old.demand
    if found is not None:
        demand = found.demand
        if demand is not None and old.demand is not None:
            demand = max(demand, FALL * old.demand + (1 - FALL) * demand)
    return replace(fresh, owed=old.owed, factor=old.factor, demand=demand)


def _claim(guest: GuestSample, memory: GuestMemory) -> CpuClaim:
    demand = None if memory.demand is None else memory.demand * IDLE_HAND
    return CpuClaim(guest.name, _promise(guest), guest.vcpus, demand, guest.cpus)


def _promise(guest: GuestSample) -> Promise:
    assert guest.promise is not None
    return guest.promise


def _corrected(
    guests: Sequence[GuestSample],
    memories: Mapping[str, GuestMemory],
    measured: Mapping[str, Measured],
    seconds: float,
    online: frozenset[int],
) -> dict[str, GuestMemory]:
    """The memories with what each hungry guest is owed, and the factor that pays it.

    Due is what the guests were entitled to of the cores that all of them really had; where not all were measured,
    nothing is owed. A guest that slept now and then is owed nothing; one at its limit is owed what it misses of it,
    and no weight takes it beyond.
    """
    if any(guest.name not in measured for guest in guests):
        return dict(memories)
    claims = [CpuClaim(g.name, _promise(g), g.vcpus, _satisfied(measured[g.name]), g.cpus) for g in guests]
    had = sum(one.used for one in measured.values())
    hungry = any(one.hungry for one in measured.values())
    portions = divided(claims, had, online, by_demand=True) if had > 0 and hungry else {}
    due = {
        claim.name: float(portions[claim.name].amount) for claim in claims if portions and measured[claim.name].hungry
    }
    used = {name: measured[name].used for name in due}
    by_name = {guest.name: memories[guest.uuid] for guest in guests}
    ceilings = {claim.name: claim.ceiling for claim in claims}
    debts = drift.owed({name: by_name[name].owed for name in due}, due, used, seconds, ceilings)
    found = drift.factors(debts, due, seconds)
    return {
        guest.uuid: replace(memories[guest.uuid], owed=debts.get(guest.name, 0.0), factor=found.get(guest.name, 1.0))
        for guest in guests
    }


def _satisfied(found: Measured) -> float | None:
    """What a guest that sleeps now and then had is what it wanted: it waits a little whenever it wakes up."""
    return found.demand if found.hungry else found.used


def _weights(
    guests: Sequence[GuestSample], entitled: Sequence[Entitlement], memories: Mapping[str, GuestMemory]
) -> dict[str, int]:
    plain = {one.name: one.weight for one in entitled}
    factors = {guest.name: memories[guest.uuid].factor for guest in guests}
    # Beside a guest whose weight is not to be touched, the others' mean what they say.
    fixed = {guest.name for guest in guests if not _is_ours(guest)}
    factors |= dict.fromkeys(fixed, 1.0)
    return drift.corrected(plain, factors, LEAST_WEIGHT, MOST_WEIGHT, scale=not fixed)


def _is_ours(guest: GuestSample) -> bool:
    """Whether the guest's weight may be set: not where it opted out, nor where a transient guest has no other place
    for its shares."""
    return _promise(guest).rebalance and guest.persistent is not False


def _change(
    guest: GuestSample,
    entitled: Entitlement,
    due: int,
    memory: GuestMemory,
    found: Measured | None,
    policy: HostPolicy,
) -> Change | None:
    weight = guest.process.weight if guest.process else None
    if weight is None or not _is_ours(guest) or abs(weight - due) <= NOTICED * due:
        return None
    reason = f"entitled to {format_cores(round(entitled.cores, 3))} cores, {_WORDS[entitled.bound]}"
    if found is not None:
        reason += f"; used {found.used:.3f}"
    if memory.factor != 1.0:
        reason += f", so corrected by {memory.factor - 1:+.1%}"
    if guest.weight_set is not None and guest.weight_set != weight:
        reason = f"it was last given {guest.weight_set}, and somebody else set {weight}; {reason}"
        if policy.cpu.foreign == "respect":
            return Change(guest.name, "cpu.weight", weight, due, how="refused", reason=reason)
    return Change(guest.name, "cpu.weight", weight, due, reason=reason)


def _notes(
    guests: Sequence[GuestSample], entitled: Sequence[Entitlement], reserved: float, capacity: float
) -> list[str]:
    notes = [
        f"{guest.name}: its definition could not be read, so it is left as it is"
        for guest in guests
        if guest.promise is None
    ]
    if math.floor(reserved * 1000) > round(capacity * 1000):
        notes.append(
            f"{format_cores(reserved)} cores are reserved of the {format_cores(capacity)} that guests can have: "
            "each gets the same part of its reservation; stop or move a guest, or lower a reservation"
        )
    notes += [f"{one.name}: {one.note}" for one in entitled if one.note]
    if any(guest.process and guest.process.weight is not None for guest in guests):
        # Else this hypervisor has no weights.
        notes += [
            f"{guest.name}: its weight cannot be read, so it is left as it is"
            for guest in guests
            if guest.promise is not None and (guest.process is None or guest.process.weight is None)
        ]
    return notes
