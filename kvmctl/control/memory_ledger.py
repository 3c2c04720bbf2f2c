"""The memory ledger: what each guest sees, what its balloon leaves it, and what it costs the host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmctl.control import remember
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.ledger import NOT_LOCAL, processes
from kvmctl.host import ksm, memory
from kvmctl.host.overhead import overhead
from kvmctl.hypervisor import domains
from kvmctl.hypervisor import host as hypervisor_host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, NotFoundError
from kvmctl.model.host_sample import ProcessSample
from kvmctl.model.plan import Memory
from kvmctl.model.reclaim import HASTE
from kvmctl.model.sample import ACTIVE, GuestSample
from kvmctl.model.units import MIB, human_size
from kvmctl.model.wording import argument
from kvmctl.policy import balloon, driver, reclaim
from kvmctl.policy.ksm import PAGE, saved
from kvmctl.policy.memory import host_reserve, is_fresh, kept_in_place, overcommit_ratio, reserve_of, used
from kvmctl.policy.promise import promise_of
from kvmctl.xml import tree
from kvmctl.xml.parse import parse
from kvmctl.xml.reclaimable import memory_fixed, stats_period


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """One running guest. Bytes, except `age` (seconds), `shares` and words; None is unknown."""

    name: str
    uuid: str
    state: str
    max: int | None
    size: int | None
    balloon: int | None
    usable: int | None
    unused: int | None
    cache: int | None
    used: int | None
    age: float | None
    """Of what the guest's balloon driver last said."""
    resident: int | None
    shared: int | None
    swapped: int | None
    page_tables: int | None
    overhead: int | None
    """What of the resident memory is QEMU's own and not the guest's."""
    reservation: int
    shares: int
    fixed: str
    """Why its memory is left as it is; empty where balloon, KSM and swap may work on it."""
    left_alone: str
    """Why its balloon is not moved; empty where it may be."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory. Bytes; None is unknown."""

    total: int | None = None
    reserve: int | None = None
    """What the host keeps for itself."""
    reservable: int | None = None
    """The memory for guests: what they may reserve together."""
    available: int | None = None
    left: int | None = None
    """What guests can still have of it: less where their common control group is near its limit."""
    swap_total: int | None = None
    swap_used: int | None = None
    ksm_saved: int | None = None
    zram_used: int | None = None
    """What zram takes for what is swapped to it."""
    state: str | None = None
    next: str | None = None
    """What the tick does in this state."""


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """All running guests, by name, and the host. Bytes; None is unknown."""

    uri: str
    host: HostMemory
    overcommit: float | None
    """What running guests may grow to, as a multiple of the memory for guests."""
    guests: tuple[MemoryLine, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemoryAccount:
    """One running guest's memory, explained in sentences."""

    uri: str
    guest: MemoryLine
    reasons: tuple[str, ...]


def memory_ledger(hypervisor: Hypervisor) -> MemoryLedger:
    """The memory ledger. The guests' own figures are unknown unless their balloon driver told them just now.

    Raises UsageError where the host's policy cannot be read.
    """
    active = [(sample, domain) for sample, domain in domains.samples_with_domains(hypervisor) if sample.state in ACTIVE]
    found = processes(hypervisor, [sample for sample, _domain in active])
    clock = time.time()
    lines = tuple(
        line
        for sample, domain in active
        if (line := _memory_line(sample, domain, found.get(sample.uuid), clock)) is not None
    )
    host = _host(hypervisor)
    return MemoryLedger(
        uri=hypervisor.uri,
        host=host,
        overcommit=overcommit_ratio([line.max for line in lines], host.reservable) if host.reservable else None,
        guests=lines,
        notes=(NOT_LOCAL,) if lines and not hypervisor.local else tuple(_notes(lines, host)),
    )


def memory_account(hypervisor: Hypervisor, name: str) -> MemoryAccount:
    """Why one running guest has what it has. Raises NotFoundError; ConflictError where it does not run."""
    domains.find(hypervisor, name)
    ledger = memory_ledger(hypervisor)
    line = next((line for line in ledger.guests if line.name == name), None)
    if line is None:
        raise ConflictError(
            f"guest {name} does not run, and only running guests have memory", f"kvmctl start {argument(name)}"
        )
    remembered, _note = remember.recall(hypervisor.uri)
    return MemoryAccount(hypervisor.uri, line, tuple(_reasons(line, ledger.host, remembered)))


def _host(hypervisor: Hypervisor) -> HostMemory:
    if not hypervisor.local:
        node = hypervisor_host.node(hypervisor)
        if node is None:
            return HostMemory()
        kept = host_reserve(node.memory)
        return HostMemory(node.memory, kept, reclaim.guests_memory(node.memory))
    policy, now, merged = host_policy().memory, memory.read(), ksm.sample()
    reserve = reserve_of(policy, now.total)
    remembered, _note = remember.recall(hypervisor.uri)
    left = memory.left_for_guests(now)
    found = reclaim.state(left, reserve, reclaim.state_named(_state_before(remembered)))
    return HostMemory(
        total=now.total,
        reserve=reserve,
        reservable=reclaim.guests_memory(now.total, policy.reserve, policy.limit, memory.guests_limit()),
        available=now.available,
        left=left,
        swap_total=now.swap_total,
        swap_used=now.swap_total - now.swap_free,
        ksm_saved=saved(merged) if merged else None,
        zram_used=memory.zram_used(),
        state=found,
        next=reclaim.next_step(found),
    )


def _state_before(remembered: Memory | None) -> str | None:
    return remembered.reclaim.state if remembered and remembered.reclaim else None


def _memory_line(sample: GuestSample, domain: Any, kernel: ProcessSample | None, clock: float) -> MemoryLine | None:
    """None where the guest is gone."""
    stats = sample.balloon
    try:
        text = domains.definition(domain)
        live = tree.read(domains.live_definition(domain))
    except NotFoundError:
        return None
    spec = parse(text).spec
    promise, period = promise_of(spec), stats_period(live)
    fixed = memory_fixed(live) or kept_in_place(kernel, stats.maximum)
    fresh = bool(stats.last_update) and is_fresh(stats, clock, period)
    if stats.current is not None and stats.maximum is not None and stats.current > stats.maximum:
        fresh, known = False, None  # a guest can say what it likes
    else:
        known = stats.current
    merging = kernel.ksm_merging_pages if kernel else None
    return MemoryLine(
        name=sample.name,
        uuid=sample.uuid,
        state=sample.state,
        max=stats.maximum,
        size=spec.memory.size,
        balloon=known,
        usable=stats.usable if fresh else None,
        unused=stats.unused if fresh else None,
        cache=stats.disk_caches if fresh else None,
        used=used(stats) if fresh else None,
        age=clock - stats.last_update if stats.last_update else None,
        # libvirt leaves its figure out while another call is at work on the guest.
        resident=kernel.rss if kernel else stats.rss,
        shared=None if merging is None else merging * PAGE,
        swapped=kernel.swapped if kernel else None,
        page_tables=kernel.page_tables if kernel else None,
        overhead=overhead(kernel.pid, stats.maximum) if kernel and stats.maximum else None,
        reservation=promise.memory_reservation,
        shares=promise.memory_shares,
        fixed=fixed,
        left_alone=driver.left_alone(
            replace(sample, promise=promise, memory_fixed=fixed, stats_period=period),
            clock,
        ),
    )


def _notes(lines: Sequence[MemoryLine], host: HostMemory) -> Iterator[str]:
    if host.state not in (None, "high"):
        yield f"the host is in the state {host.state}: kvmctl rebalance {host.next}"
    if host.left is not None and host.available is not None and host.left < host.available:
        left, available = human_size(host.left), human_size(host.available)
        yield f"the limit of the guests' control group leaves them {left} of the {available} available"
    reserved = sum(line.reservation for line in lines)
    if host.reservable is not None and reserved > host.reservable:
        yield (
            f"{human_size(reserved)} are reserved, and {human_size(host.reservable)} are for guests: not every "
            "reservation can be kept, so stop or move a guest, or lower one"
        )
    for line in lines:
        if line.state == "running" and line.left_alone:
            yield f"{line.name}: its memory counts whole, {line.left_alone}"


def _reasons(line: MemoryLine, host: HostMemory, remembered: Memory | None) -> Iterator[str]:
    size = line.size or line.max or 0
    if line.fixed:
        yield f"its memory is left as it is: {line.fixed}"
        return
    if line.balloon is not None:
        gone = max(0, size - line.balloon)
        yield (
            f"its balloon leaves it {human_size(line.balloon)} of the {human_size(size)} that it is to have"
            if gone
            else f"it has all of the {human_size(size)} that it is to have"
        )
    yield from _floor(line, size, host)
    seen = remembered.reclaim.guests.get(line.uuid) if remembered and remembered.reclaim else None
    if seen is not None and seen.calm_until > time.monotonic_ns():
        left = (seen.calm_until - time.monotonic_ns()) / 1e9
        yield f"it was short of memory, so nothing is taken from it for another {left:.0f} s"
    if line.shared:
        yield f"{human_size(line.shared)} of it are merged with equal pages"
    if line.swapped:
        yield f"{human_size(line.swapped)} of it are swapped"
    if line.overhead is not None and line.page_tables is not None:
        tables = human_size(line.page_tables)
        yield f"beside its memory QEMU itself takes {human_size(line.overhead)}, and page tables {tables}"
    if host.state is not None and host.next is not None:
        yield f"the host is in the state {host.state}: kvmctl rebalance {host.next}"


def _floor(line: MemoryLine, size: int, host: HostMemory) -> Iterator[str]:
    if line.left_alone or line.usable is None or line.used is None:
        yield f"its balloon stays as it is: {line.left_alone or line.state}"
        return
    haste = host.state in HASTE
    need = balloon.need(line.used + line.usable, line.usable, line.cache or 0, not haste)
    spare = balloon.margin(size, haste)
    # In whole MiB, so that the sum is that of what is shown.
    used, cache, margin = (-(-part // MIB) for part in (line.used, need - line.used, spare))
    half = f" + {cache}MiB, half of its page cache," if cache else ""
    yield f"it needs {used + cache + margin}MiB: {used}MiB that it uses{half} + {margin}MiB to spare"
    reserved = line.reservation >= max(line.used, need) + spare
    least = line.reservation if reserved else (used + cache + margin) * MIB
    yield f"its balloon takes nothing below {human_size(least)}: {'its reservation' if reserved else 'what it needs'}"
    if balloon.is_pressed(size, line.usable, None):
        yield f"it is short of memory: {human_size(line.usable)} are usable"
