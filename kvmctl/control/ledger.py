"""The ledgers: what was promised, what it is worth now, and what is really used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kvmctl.control.capacity import Capacity, capacity, cpus
from kvmctl.control.weights import KIND, claims, run_key
from kvmctl.host import cgroup, process
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError
from kvmctl.model.host_sample import ProcessSample
from kvmctl.model.metrics import GuestRates, GuestReading, guest_rates
from kvmctl.model.sample import ACTIVE, GuestSample
from kvmctl.model.units import format_cores
from kvmctl.model.wording import argument
from kvmctl.policy.cpu import Bound, CpuClaim, Entitlement, demand, entitlements, falls_short
from kvmctl.policy.explain import Explanation, explain

NOT_LOCAL = "this is not this machine's hypervisor, so what only its kernel knows is shown as -"


@dataclass(frozen=True, slots=True)
class CpuLine:
    """One running guest. Amounts of CPU are cores, `steal` is per cent of a vCPU's time; None is unknown."""

    name: str
    uuid: str
    state: str
    vcpus: int
    shares: int
    limit: float
    reservation: float
    demand: float | None
    """None is also as much as it can use."""
    entitlement: float
    """While every guest wants what it does now."""
    hungry: float
    """The entitlement while every guest wants all that it can use."""
    bound: Bound
    """What decides `entitlement`."""
    weight: int | None
    """As in the kernel's file."""
    weight_due: int
    """What `hungry` is worth; `weight` is set to it at the next change through kvmctl."""
    used: float | None
    steal: float | None
    note: str


@dataclass(frozen=True, slots=True)
class CpuLedger:
    """All running guests, by name. Amounts are cores."""

    uri: str
    cores: int
    capacity: float
    """What the guests may use."""
    reserved: float
    seconds: float
    """How long CPU time was sampled."""
    guests: tuple[CpuLine, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CpuAccount:
    """One running guest's entitlement, explained. Amounts are cores."""

    uri: str
    cores: int
    capacity: float
    """What the guests may use."""
    reserved: float
    seconds: float
    """How long CPU time was sampled."""
    guest: Explanation


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found of the running guests, and of the host they divide."""

    room: Capacity
    cpus: frozenset[int]
    claims: list[CpuClaim]
    samples: dict[str, GuestSample]
    rates: dict[str, GuestRates]

    @property
    def reserved(self) -> float:
        """Cores that are reserved, whether or not they can be used."""
        return sum(claim.promise.cpu_reservation for claim in self.claims)


def cpu_ledger(hypervisor: Hypervisor, seconds: float) -> CpuLedger:
    """The CPU ledger; CPU use, steal and demand are measured over `seconds`, and unknown where that is 0."""
    seen = _observe(hypervisor, seconds)
    weights = {uuid: found.weight for uuid, found in processes(hypervisor, seen.samples.values()).items()}
    now = entitlements(seen.claims, seen.room.guests, seen.cpus)
    # Changes through kvmctl do not wait for a sample.
    due = entitlements([replace(claim, demand=None) for claim in seen.claims], seen.room.guests, seen.cpus)
    lines = tuple(
        replace(_cpu_line(claim, one, seen, weights), weight_due=later.weight, note=later.note)
        for claim, one, later in zip(seen.claims, now, due, strict=True)
    )
    notes = tuple(_cpu_notes(hypervisor, seen, lines))
    return CpuLedger(hypervisor.uri, seen.room.cores, seen.room.guests, seen.reserved, seconds, lines, notes)


def cpu_account(hypervisor: Hypervisor, name: str, seconds: float) -> CpuAccount:
    """What one running guest is entitled to, and why. Raises NotFoundError; ConflictError where it does not run."""
    domain = domains.find(hypervisor, name)
    seen = _observe(hypervisor, seconds) if domains.state(domain) in ACTIVE else None
    if seen is None or name not in seen.samples:
        raise ConflictError(
            f"guest {name} does not run, and only running guests are entitled to CPU",
            f"kvmctl start {argument(name)}",
        )
    found = explain(seen.claims, seen.room.guests, name, seen.cpus)
    return CpuAccount(hypervisor.uri, seen.room.cores, seen.room.guests, seen.reserved, seconds, found)


def _observe(hypervisor: Hypervisor, seconds: float) -> _Seen:
    room = capacity(hypervisor)
    before = _readings(domains.samples(hypervisor, measure=True)) if seconds else {}
    time.sleep(seconds)
    pairs = domains.samples_with_domains(hypervisor, measure=True)
    after = _readings(sample for sample, _domain in pairs)
    plain = [claim for claim, _domain in claims(pairs)]
    rates = {claim.name: guest_rates(before.get(claim.name), after[claim.name]) for claim in plain}
    wanting = [
        replace(claim, demand=demand(rates[claim.name].cores, rates[claim.name].steal, claim.ceiling))
        for claim in plain
    ]
    samples = {claim.name: after[claim.name].sample for claim in plain}
    return _Seen(room, cpus(hypervisor, plain), wanting, samples, rates)


def _readings(samples: Iterable[GuestSample]) -> dict[str, GuestReading]:
    taken = time.monotonic_ns()
    return {sample.name: GuestReading(taken, sample, None, None) for sample in samples}


def _cpu_line(claim: CpuClaim, entitled: Entitlement, seen: _Seen, weights: Mapping[str, int | None]) -> CpuLine:
    sample, rates = seen.samples[claim.name], seen.rates[claim.name]
    return CpuLine(
        name=sample.name,
        uuid=sample.uuid,
        state=sample.state,
        vcpus=sample.vcpus,
        shares=claim.promise.cpu_shares,
        limit=claim.promise.cpu_limit,
        reservation=claim.promise.cpu_reservation,
        demand=claim.demand,
        entitlement=entitled.cores,
        hungry=entitled.hungry,
        bound=entitled.bound,
        weight=weights.get(sample.uuid),
        weight_due=entitled.weight,
        used=rates.cores,
        steal=None if rates.steal is None or not sample.vcpus else 100 * rates.steal / sample.vcpus,
        note=entitled.note,
    )


def _cpu_notes(hypervisor: Hypervisor, seen: _Seen, lines: Sequence[CpuLine]) -> Iterator[str]:
    if lines and not hypervisor.local:
        yield NOT_LOCAL
    room = seen.room.guests
    if round(seen.reserved, 3) > round(room, 3):
        yield (
            f"{seen.reserved:g} cores are reserved of {room:g}: each guest gets the same part of what it was promised"
        )
    else:
        yield from _misplaced(seen.claims, lines)
    short = [line for line in lines if falls_short(line.reservation, line.used, _waited(line))]
    for line in short:
        yield f"{line.name}: it wants its reserved {line.reservation:g} cores and gets {line.used:.2f} at present"
    taken = [line.used for line in lines if line.used is not None]
    if short and len(taken) == len(lines) and sum(taken) < 0.9 * room:
        yield (
            f"all guests together get {sum(taken):.2f} of {room:g} cores: "
            "look for what else runs on this host, and for guests pinned to the same CPUs"
        )
    foreign = {line.name for line in lines if line.weight not in (None, line.weight_due)}
    ours = _set_by_us(hypervisor, [seen.samples[name] for name in foreign])
    for line in lines:
        if line.name in foreign and ours.get(line.name, 0) not in (None, line.weight):
            yield f"{line.name}: its weight is {line.weight}; the next change through kvmctl sets {line.weight_due}"
        if line.note:
            yield f"{line.name}: {line.note}"


def _set_by_us(hypervisor: Hypervisor, samples: Sequence[GuestSample]) -> dict[str, int | None]:
    """The weights that kvmctl gave guests last, by their names, None where it moves them all the time; empty to
    whoever may not read the journal."""
    try:
        entries = Journal().entries(KIND) if samples else {}
    except KvmctlError:
        return {}
    keys = {sample.name: run_key(hypervisor, sample.name, sample.run) for sample in samples}
    return {name: entries[key].new for name, key in keys.items() if key in entries}


def _misplaced(claims: Iterable[CpuClaim], lines: Iterable[CpuLine]) -> Iterator[str]:
    for claim, line in zip(claims, lines, strict=True):
        if round(line.hungry, 3) < round(claim.floor, 3):
            yield (
                f"{line.name}: {claim.floor:g} cores are reserved for it, and the CPUs it is pinned to have "
                f"{format_cores(line.hungry)} for it: let it run on more, or lower what is reserved there"
            )


def _waited(line: CpuLine) -> float | None:
    """Cores that the guest's vCPUs waited for."""
    return None if line.steal is None else line.steal / 100 * line.vcpus


def processes(hypervisor: Hypervisor, samples: Iterable[GuestSample]) -> dict[str, ProcessSample]:
    """What this machine's kernel says of the guests, by UUID."""
    if not hypervisor.local:
        return {}
    visible = cgroup.mounts()
    pids = process.find_guests(sample.uuid for sample in samples)
    found = {uuid: process.sample(pid, visible=visible) for uuid, pid in pids.items()}
    return {uuid: sample for uuid, sample in found.items() if sample}
