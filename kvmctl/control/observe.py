"""What a tick sees, as the one value that it decides from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvmctl.control.defined import Definitions
from kvmctl.control.weights import BALLOON, KIND, REPORTS, run_key
from kvmctl.host import cgroup, counters, cpu, process, room
from kvmctl.host import sample as host_sample
from kvmctl.host.counters import Place
from kvmctl.host.journal import Journal, boot_id
from kvmctl.host.overhead import overhead
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError, NotFoundError, UnreachableError
from kvmctl.model.host_sample import HostSample, ProcessSample, Snapshot
from kvmctl.model.sample import ACTIVE, GuestSample
from kvmctl.policy import swapping
from kvmctl.policy.memory import REPORT_SECONDS, kept_in_place
from kvmctl.xml import reclaimable, tree


@dataclass(frozen=True, slots=True)
class Observed:
    """A snapshot, and what to act on, by the name of each active guest: `handles` are libvirt's."""

    snapshot: Snapshot
    handles: Mapping[str, Any]
    places: Mapping[str, Place]
    """Where this machine's kernel knows each."""

    @property
    def directories(self) -> Mapping[str, Path]:
        """Where this machine's kernel has the CPU settings of each."""
        return {name: place.directory for name, place in self.places.items()}


def again(former: Observed, weights: Mapping[str, int]) -> Snapshot | None:
    """The guests and the host as the kernel knows them a little later; libvirt is not asked, so that this costs a few
    files for each guest. None where one of them is not to be seen any more: it ended, or a vCPU of it came or went.

    `weights` are what kvmctl set last, by name, of guests of which the journal does not say it.
    """
    if former.snapshot.host is None or len(former.places) < len(former.snapshot.guests):
        return None
    taken, clock = time.monotonic_ns(), time.time()
    host = replace(former.snapshot.host, busy=cpu.busy())
    guests = [_of_kernel(guest, former.places[guest.name], guest.process) for guest in former.snapshot.guests]
    if any(guest.cpu_time is None for guest in guests):
        return None
    known = (
        replace(guest, weight_set=weights.get(guest.name)) if guest.weight_set is None else guest for guest in guests
    )
    return replace(former.snapshot, taken=taken, clock=clock, guests=tuple(known), host=host)


@dataclass
class Observer:
    """Observes one hypervisor again and again; what stays the same while a guest runs is looked up once."""

    hypervisor: Hypervisor
    _places: dict[tuple[str, int | None, int], Place] = field(default_factory=dict)
    """Where the kernel knows each run of a guest, with so many vCPUs."""

    def __post_init__(self) -> None:
        self._definitions = Definitions(self.hypervisor.local)

    def observe(self, weights: Mapping[str, int] | None = None, closely: bool = False) -> Observed:
        """Everything that a tick decides from: one bulk call, and of each active guest its definition and a few of
        the kernel's files, whose counters are read last and together. `weights` as for `again`. `closely` adds what
        QEMU itself takes of guests that have memory reserved and may be swapped, which takes longer. Raises
        UnreachableError; a guest that ends meanwhile is left out."""
        pairs = domains.samples_with_domains(self.hypervisor, measure=True)
        taken, clock, host = time.monotonic_ns(), time.time(), self._host()
        active = [(sample, domain) for sample, domain in pairs if sample.state in ACTIVE]
        transient = domains.transient(self.hypervisor)
        journal = Journal()
        set_by_us, moved_by_us, reporting = (journal.entries(kind) for kind in (KIND, BALLOON, REPORTS))
        guests = []
        for sample, domain in active:
            key = run_key(self.hypervisor, sample.name, sample.run)
            try:
                said = self._said(sample, domain)
                known = dict(said, stats_period=_reports(said, domain, key in reporting))
            except NotFoundError:
                continue
            if key in set_by_us:
                last = set_by_us[key].new
                known["weight_set"] = (weights or {}).get(sample.name) if last is None else last
            persistent = sample.uuid not in transient
            guests.append(replace(sample, **known, persistent=persistent, balloon_moved=key in moved_by_us))
        handles = {sample.name: domain for sample, domain in active}
        self._definitions.keep(guest.uuid for guest in guests)
        places = self._look_up(guests)
        if places:
            taken, host = time.monotonic_ns(), replace(host, busy=cpu.busy())
        guests = [
            _with_memory(guest, place, closely)
            if (place := places.get(guest.name))
            else replace(guest, process=_elsewhere(handles[guest.name]))
            for guest in guests
        ]
        if self.hypervisor.local:
            resident = {guest.name: guest.process.rss if guest.process else None for guest in guests}
            host = replace(host, room_asked=room.asked(self.hypervisor.uri, resident))
        snapshot = Snapshot(self.hypervisor.uri, taken, clock, boot_id(), tuple(guests), host)
        return Observed(snapshot, handles, places)

    def _said(self, sample: GuestSample, domain: Any) -> Mapping[str, Any]:
        """The fields that the guest's definition tells; none, where it cannot be read. Raises NotFoundError where the
        guest is gone."""
        try:
            return self._definitions.fields(sample, domain)
        except (NotFoundError, UnreachableError):
            raise
        except KvmctlError:
            return {}

    def _host(self) -> HostSample:
        if self.hypervisor.local:
            return host_sample.host()
        return host_sample.remote(scheduler.host_cores(self.hypervisor))

    def _look_up(self, guests: Sequence[GuestSample]) -> dict[str, Place]:
        """Where this machine's kernel knows the guests, by name."""
        if not self.hypervisor.local:
            return {}
        visible = cgroup.mounts()
        keys = {guest.uuid: (guest.uuid, guest.run, guest.vcpus) for guest in guests}
        pids = process.find_guests(uuid for uuid, key in keys.items() if key not in self._places)
        new = {keys[uuid]: place for uuid, pid in pids.items() if (place := counters.place(pid, visible))}
        present = set(keys.values())
        self._places = {key: place for key, place in (self._places | new).items() if key in present}
        return {guest.name: self._places[key] for guest in guests if (key := keys[guest.uuid]) in self._places}


def _of_kernel(sample: GuestSample, place: Place, memory: ProcessSample | None) -> GuestSample:
    """The sample with the kernel's own counters, and what is known of the memory of its process."""
    now = counters.read(place)
    seen = replace(memory or ProcessSample(place.pid), weight=cgroup.weight(place.directory, place.version))
    if now is None:
        return replace(sample, process=seen, cpu_time=None, vcpu_delay=None)
    return replace(sample, process=seen, cpu_time=now.cpu_time, vcpu_time=now.vcpu_time, vcpu_delay=now.vcpu_delay)


def _reports(said: Mapping[str, Any], domain: Any, by_us: bool) -> int:
    """How often the running guest's balloon driver reports, in seconds. Where its definition has it never do so, kvmctl
    may have told it to, or somebody else, which only the running definition says. Raises NotFoundError."""
    period: int = said.get("stats_period", 0)
    if period or not said.get("has_balloon"):
        return period
    return REPORT_SECONDS if by_us else reclaimable.stats_period(tree.read(domains.live_definition(domain)))


def _with_memory(guest: GuestSample, place: Place, closely: bool) -> GuestSample:
    """The sample with the kernel's own counters, and what it says of the memory of its process, which is not read
    between two ticks."""
    found, size = process.memory_of(place.pid), guest.balloon.maximum
    if not guest.memory_fixed and (why := kept_in_place(found, size)):
        guest = replace(guest, memory_fixed=why)
    reserved = guest.promise is not None and guest.promise.memory_reservation > 0
    if closely and found and size and reserved and swapping.may_swap(guest):
        found = replace(found, overhead=overhead(place.pid, size))
    return _of_kernel(guest, place, found)


def _elsewhere(domain: Any) -> ProcessSample | None:
    """The weight as libvirt tells it, of a guest whose process is not to be seen from here."""
    try:
        weight = scheduler.weight(domain)
    except UnreachableError:
        raise
    except KvmctlError:
        return None
    return None if weight is None else ProcessSample(pid=0, weight=weight)
