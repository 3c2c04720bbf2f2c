"""What `kvmctl top` shows: host and guests again and again, with the rates between two looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kvmctl.control import remember
from kvmctl.control.capacity import capacity
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.observe import Observed, Observer
from kvmctl.host import cgroup, memory, metrics, pressure, process
from kvmctl.host.files import PAGE_SIZE
from kvmctl.hypervisor import host as hypervisor_host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.host_sample import ProcessSample
from kvmctl.model.metrics import GuestRates, GuestReading, HostReading, guest_rates, host_rates
from kvmctl.model.sample import GuestSample
from kvmctl.model.top import TopFrame, TopGuest, TopHost
from kvmctl.policy import reclaim
from kvmctl.policy.cpu import CpuClaim, Entitlement, demand, entitlements
from kvmctl.policy.ksm import saved
from kvmctl.policy.memory import overcommit_ratio, reserve_of

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What this machine's kernel knows of the guests, by name."""

    processes: Mapping[str, ProcessSample]
    pressures: Mapping[str, tuple[float | None, float | None]]
    """Of CPU and memory."""


@dataclass
class Watch:
    """Looks at one hypervisor again and again; each frame has the rates since the one before it."""

    hypervisor: Hypervisor
    _observer: Observer = field(init=False)
    _guests: dict[tuple[str, int | None], GuestReading] = field(default_factory=dict, init=False)
    """The last reading of each run of a guest."""
    _host: HostReading | None = field(default=None, init=False)
    _taken: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._observer = Observer(self.hypervisor)

    def frame(self) -> TopFrame:
        """Everything now. Raises KvmctlError; UnreachableError where the hypervisor is gone."""
        seen = self._observer.observe()
        guests = seen.snapshot.guests
        readings = {(g.uuid, g.run): GuestReading(seen.snapshot.taken, g, None, None) for g in guests}
        rates = {key[0]: guest_rates(self._guests.get(key), reading) for key, reading in readings.items()}
        room = capacity(self.hypervisor)
        entitled = _entitled(guests, rates, room.guests, seen)
        kernel = _kernel(seen) if self.hypervisor.local else _Kernel({}, {})
        rows = tuple(_guest(guest, rates[guest.uuid], entitled.get(guest.name), kernel) for guest in guests)
        taken, before = seen.snapshot.taken, self._taken
        reserved = sum(row.reservation or 0.0 for row in rows)
        frame = TopFrame(
            uri=self.hypervisor.uri,
            time=seen.snapshot.clock,
            seconds=None if before is None else (taken - before) / 1e9,
            host=self._of_host(TopHost(room.cores, room.guests, reserved), rows),
            guests=rows,
        )
        self._guests, self._taken = readings, taken
        return frame

    def _of_host(self, host: TopHost, rows: Sequence[TopGuest]) -> TopHost:
        waited, vcpus = _sum(row.waited for row in rows), sum(row.vcpus for row in rows)
        host = replace(
            host,
            used=_sum(row.used for row in rows),
            steal=None if waited is None or not vcpus else 100 * waited / vcpus,
            guests_max=_sum(row.max for row in rows),
        )
        host = self._measured(host) if self.hypervisor.local else self._told(host)
        room = host.memory_guests
        return replace(host, overcommit=overcommit_ratio([row.max for row in rows], room) if room else None)

    def _told(self, host: TopHost) -> TopHost:
        """What libvirt says of another machine."""
        node = hypervisor_host.node(self.hypervisor)
        if node is None:
            return host
        return replace(host, memory_total=node.memory, memory_guests=reclaim.guests_memory(node.memory))

    def _measured(self, host: TopHost) -> TopHost:
        """What this machine's kernel says of itself."""
        now, before = metrics.read(), self._host
        self._host = now
        rates = host_rates(before, now) if before else None
        some = {name: found.some_avg10 for name, found in now.pressure.items()}
        policy, total = host_policy().memory, now.memory_total
        return replace(
            host,
            busy=rates.busy if rates else None,
            stolen=rates.cpu.get("steal") if rates else None,
            memory_state=self._state(memory.left_for_guests(memory.read()), reserve_of(policy, total)),
            memory_total=total,
            memory_available=now.memory_available,
            memory_guests=reclaim.guests_memory(total, policy.reserve, policy.limit, memory.guests_limit()),
            swap_total=now.swap_total,
            swap_used=now.swap_used,
            swap_in=rates.swap.read if rates else None,
            swap_out=rates.swap.written if rates else None,
            ksm_saved=saved(now.ksm) if now.ksm else None,
            cpu_pressure=some.get("cpu"),
            memory_pressure=some.get("memory"),
            io_pressure=some.get("io"),
        )

    def _state(self, available: int, reserve: int) -> str:
        """The host's state, as the next tick would find it: it does not leave one before it has to."""
        remembered, _note = remember.recall(self.hypervisor.uri)
        before = remembered.reclaim.state if remembered and remembered.reclaim else None
        return reclaim.state(available, reserve, reclaim.state_named(before))


def _entitled(
    guests: Iterable[GuestSample], rates: Mapping[str, GuestRates], cores: float, seen: Observed
) -> dict[str, Entitlement]:
    """What each guest is entitled to, by what it used and waited for since the last look."""
    claims = []
    for guest in guests:
        if guest.promise is not None:
            plain = CpuClaim(guest.name, guest.promise, guest.vcpus, cpus=guest.cpus)
            rate = rates[guest.uuid]
            wants = demand(rate.cores, rate.steal, plain.ceiling)
            claims.append(CpuClaim(guest.name, guest.promise, guest.vcpus, wants, guest.cpus))
    online = seen.snapshot.host.online if seen.snapshot.host else frozenset[int]()
    return {one.name: one for one in entitlements(claims, cores, online)} if claims else {}


def _kernel(seen: Observed) -> _Kernel:
    visible = cgroup.mounts()
    guests = seen.snapshot.guests
    known = {guest.name: guest.process for guest in guests if guest.name in seen.places and guest.process}
    # A guest without a control group of its own, as a session's, is found by its command line.
    others = {guest.uuid: guest.name for guest in guests if guest.name not in seen.places}
    found = {others[uuid]: process.memory_of(pid) for uuid, pid in process.find_guests(others).items()}
    return _Kernel(
        processes=known | {name: sample for name, sample in found.items() if sample},
        pressures={name: _pressures(directory, visible) for name, directory in seen.directories.items()},
    )


def _pressures(directory: Path, visible: tuple[cgroup.Mount, ...]) -> tuple[float | None, float | None]:
    found = pressure.of_guest(directory, visible)
    some = {name: each.some_avg10 for name, each in found.items()}
    return some.get("cpu"), some.get("memory")


def _guest(guest: GuestSample, rates: GuestRates, entitled: Entitlement | None, kernel: _Kernel) -> TopGuest:
    promise, found = guest.promise, kernel.processes.get(guest.name)
    merging = found.ksm_merging_pages if found else None
    cpu_pressure, memory_pressure = kernel.pressures.get(guest.name, (None, None))
    return TopGuest(
        name=guest.name,
        uuid=guest.uuid,
        state=guest.state,
        vcpus=guest.vcpus,
        shares=promise.cpu_shares if promise else None,
        limit=promise.cpu_limit if promise else None,
        reservation=promise.cpu_reservation if promise else None,
        entitlement=entitled.cores if entitled else None,
        bound=entitled.bound if entitled else None,
        weight=guest.process.weight if guest.process else None,
        used=rates.cores,
        waited=rates.steal,
        steal=None if rates.steal is None or not guest.vcpus else 100 * rates.steal / guest.vcpus,
        max=guest.balloon.maximum,
        balloon=guest.balloon.current,
        resident=found.rss if found else guest.balloon.rss,
        shared=None if merging is None else merging * PAGE_SIZE,
        swapped=found.swapped if found else None,
        cpu_pressure=cpu_pressure,
        memory_pressure=memory_pressure,
    )


def _sum(values: Iterable[Number | None]) -> Number | None:
    """One unknown makes the sum unknown."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None
