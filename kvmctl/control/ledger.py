"""The ledgers: what was promised, what it is worth now, and what is really used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmctl.control.weights import ACTIVE, claims
from kvmctl.host import cgroup, ksm, memory, process
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor import host as hypervisor_host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import NotFoundError
from kvmctl.model.host_sample import ProcessSample
from kvmctl.model.metrics import GuestReading, guest_rates
from kvmctl.model.sample import GuestSample
from kvmctl.policy.cpu import Bound, CpuClaim, Entitlement, entitlements, falls_short
from kvmctl.policy.ksm import PAGE, saved
from kvmctl.policy.memory import host_reserve, is_fresh, overcommit_ratio, used
from kvmctl.policy.promise import promise_of
from kvmctl.xml import tree
from kvmctl.xml.parse import parse

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
    entitlement: float
    bound: Bound
    weight: int | None
    """As in the kernel's file."""
    weight_due: int
    """What the entitlement is worth; `weight` is set to it at the next change through kvmctl."""
    used: float | None
    steal: float | None
    note: str


@dataclass(frozen=True, slots=True)
class CpuLedger:
    """All running guests, by name. Amounts are cores."""

    uri: str
    capacity: float
    reserved: float
    seconds: float
    """How long CPU time was sampled."""
    guests: tuple[CpuLine, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """One running guest. Bytes, except `shares`; None is unknown."""

    name: str
    uuid: str
    state: str
    max: int | None
    size: int | None
    balloon: int | None
    usable: int | None
    used: int | None
    resident: int | None
    shared: int | None
    swapped: int | None
    reservation: int
    shares: int


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory. Bytes; None is unknown."""

    total: int | None = None
    reservable: int | None = None
    """What the guests may reserve together."""
    available: int | None = None
    swap_total: int | None = None
    swap_used: int | None = None
    ksm_saved: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """All running guests, by name, and the host. Bytes; None is unknown."""

    uri: str
    host: HostMemory
    overcommit: float | None
    """What running guests may grow to, as a multiple of what the host has."""
    guests: tuple[MemoryLine, ...]
    notes: tuple[str, ...]


def cpu_ledger(hypervisor: Hypervisor, seconds: float) -> CpuLedger:
    """The CPU ledger; CPU use and steal are measured over `seconds`, and unknown where that is 0."""
    before = _readings(domains.samples(hypervisor, measure=True)) if seconds else {}
    time.sleep(seconds)
    pairs = domains.samples_with_domains(hypervisor, measure=True)
    after = _readings(sample for sample, _domain in pairs)
    claimed = [claim for claim, _domain in claims(pairs)]
    capacity = float(scheduler.host_cores(hypervisor))
    weights = {uuid: found.weight for uuid, found in _processes(hypervisor, after).items()}
    lines = tuple(
        _cpu_line(claim, one, before.get(claim.name), after[claim.name], weights)
        for claim, one in zip(claimed, entitlements(claimed, capacity), strict=True)
    )
    reserved, notes = sum(line.reservation for line in lines), tuple(_cpu_notes(hypervisor, capacity, lines))
    return CpuLedger(hypervisor.uri, capacity, reserved, seconds, lines, notes)


def _readings(samples: Iterable[GuestSample]) -> dict[str, GuestReading]:
    taken = time.monotonic_ns()
    return {sample.name: GuestReading(taken, sample, None, None) for sample in samples}


def _cpu_line(
    claim: CpuClaim,
    entitled: Entitlement,
    before: GuestReading | None,
    after: GuestReading,
    weights: Mapping[str, int | None],
) -> CpuLine:
    sample, rates = after.sample, guest_rates(before, after)
    return CpuLine(
        name=sample.name,
        uuid=sample.uuid,
        state=sample.state,
        vcpus=sample.vcpus,
        shares=claim.promise.cpu_shares,
        limit=claim.promise.cpu_limit,
        reservation=claim.promise.cpu_reservation,
        entitlement=entitled.cores,
        bound=entitled.bound,
        weight=weights.get(sample.uuid),
        weight_due=entitled.weight,
        used=rates.cores,
        steal=None if rates.steal is None or not sample.vcpus else 100 * rates.steal / sample.vcpus,
        note=entitled.note,
    )


def _cpu_notes(hypervisor: Hypervisor, capacity: float, lines: Sequence[CpuLine]) -> Iterator[str]:
    if lines and not hypervisor.local:
        yield NOT_LOCAL
    reserved = sum(line.reservation for line in lines)
    if round(reserved, 3) > capacity:
        yield f"{reserved:g} cores are reserved of {capacity:g}: each guest gets the same part of what it was promised"
    short = [line for line in lines if falls_short(line.reservation, line.used, _waited(line))]
    for line in short:
        yield f"{line.name}: it wants its reserved {line.reservation:g} cores and gets {line.used:.2f} at present"
    taken = [line.used for line in lines if line.used is not None]
    if short and len(taken) == len(lines) and sum(taken) < 0.9 * capacity:
        yield (
            f"all guests together get {sum(taken):.2f} of {capacity:g} cores: "
            "look for what else runs on this host, and for guests pinned to the same CPUs"
        )
    for line in lines:
        if line.weight not in (None, line.weight_due):
            yield f"{line.name}: its weight is {line.weight}; the next change through kvmctl sets {line.weight_due}"
        if line.note:
            yield f"{line.name}: {line.note}"


def _waited(line: CpuLine) -> float | None:
    """Cores that the guest's vCPUs waited for."""
    return None if line.steal is None else line.steal / 100 * line.vcpus


def _processes(hypervisor: Hypervisor, readings: Mapping[str, GuestReading]) -> dict[str, ProcessSample]:
    """What this machine's kernel says of the guests, by UUID."""
    if not hypervisor.local:
        return {}
    visible = cgroup.mounts()
    pids = process.find_guests(reading.sample.uuid for reading in readings.values())
    found = {uuid: process.sample(pid, visible=visible) for uuid, pid in pids.items()}
    return {uuid: sample for uuid, sample in found.items() if sample}


def memory_ledger(hypervisor: Hypervisor) -> MemoryLedger:
    """The memory ledger. The guests' own figures are unknown unless their balloon driver told them just now."""
    active = [(sample, domain) for sample, domain in domains.samples_with_domains(hypervisor) if sample.state in ACTIVE]
    processes = _processes(hypervisor, _readings(sample for sample, _domain in active))
    clock = time.time()
    found = [_memory_line(sample, domain, processes.get(sample.uuid), clock) for sample, domain in active]
    lines = tuple(line for line in found if line)
    host = _host(hypervisor)
    return MemoryLedger(
        uri=hypervisor.uri,
        host=host,
        overcommit=overcommit_ratio([line.max for line in lines], host.total) if host.total else None,
        guests=lines,
        notes=(NOT_LOCAL,) if lines and not hypervisor.local else (),
    )


def _host(hypervisor: Hypervisor) -> HostMemory:
    if not hypervisor.local:
        node = hypervisor_host.node(hypervisor)
        return HostMemory(node.memory, node.memory - host_reserve(node.memory)) if node else HostMemory()
    now, merged = memory.read(), ksm.sample()
    return HostMemory(
        total=now.total,
        reservable=now.total - host_reserve(now.total),
        available=now.available,
        swap_total=now.swap_total,
        swap_used=now.swap_total - now.swap_free,
        ksm_saved=saved(merged) if merged else None,
    )


def _memory_line(sample: GuestSample, domain: Any, kernel: ProcessSample | None, clock: float) -> MemoryLine | None:
    """None where the guest is gone."""
    balloon = sample.balloon
    try:
        spec = parse(domains.definition(domain)).spec
        fresh = bool(balloon.last_update) and is_fresh(balloon, clock, _period(domains.live_definition(domain)))
    except NotFoundError:
        return None
    promise = promise_of(spec)
    merging = kernel.ksm_merging_pages if kernel else None
    return MemoryLine(
        name=sample.name,
        uuid=sample.uuid,
        state=sample.state,
        max=balloon.maximum,
        size=spec.memory.size,
        balloon=balloon.current,
        usable=balloon.usable if fresh else None,
        used=used(balloon) if fresh else None,
        # libvirt leaves its figure out while another call is at work on the guest.
        resident=kernel.rss if kernel else balloon.rss,
        shared=None if merging is None else merging * PAGE,
        swapped=kernel.swapped if kernel else None,
        reservation=promise.memory_reservation,
        shares=promise.memory_shares,
    )


def _period(live_definition: str) -> int:
    """Seconds between two reports of the balloon driver; 0 is never."""
    stats = tree.read(live_definition).find("devices/memballoon/stats")
    return 0 if stats is None else tree.number(stats.get("period")) or 0
