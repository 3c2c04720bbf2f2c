"""What a tick sees, as the one value that it decides from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvmctl.control.weights import KIND, run_key
from kvmctl.host import cgroup, process
from kvmctl.host import sample as host_sample
from kvmctl.host.journal import Journal, boot_id
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError, NotFoundError, UnreachableError
from kvmctl.model.host_sample import HostSample, ProcessSample, Snapshot
from kvmctl.model.sample import ACTIVE, GuestSample
from kvmctl.xml import metadata, resources, tree


@dataclass(frozen=True, slots=True)
class Observed:
    """A snapshot, and what to act on, by the name of each active guest: `handles` are libvirt's."""

    snapshot: Snapshot
    handles: Mapping[str, Any]
    directories: Mapping[str, Path]
    """Where this machine's kernel has the CPU settings of each."""


@dataclass
class Observer:
    """Observes one hypervisor again and again; what stays the same while a guest runs is looked up once."""

    hypervisor: Hypervisor
    _places: dict[tuple[str, int | None], tuple[int, Path]] = field(default_factory=dict)
    """The QEMU process of each run of a guest, and its own directory of the CPU hierarchy."""

    def observe(self) -> Observed:
        """Everything that a tick decides from: one bulk call, and of each active guest its definition and a few of
        the kernel's files. Raises UnreachableError; a guest that ends meanwhile is left out."""
        pairs = domains.samples_with_domains(self.hypervisor, measure=True)
        taken, clock = time.monotonic_ns(), time.time()
        active = [(sample, domain) for sample, domain in pairs if sample.state in ACTIVE]
        transient = domains.transient(self.hypervisor)
        set_by_us = Journal().entries(KIND)
        kernel = self._kernel([sample for sample, _domain in active])
        guests, handles, directories = [], {}, {}
        for sample, domain in active:
            entry = set_by_us.get(run_key(self.hypervisor, sample.name, sample.run))
            found = _with_definition(sample, domain)
            if found is not None:
                last = found.weight_set if entry is None else int(entry.new)
                guests.append(
                    replace(
                        found,
                        persistent=sample.uuid not in transient,
                        weight_set=last,
                        process=kernel.get(sample.uuid) or _elsewhere(domain),
                    )
                )
                handles[sample.name] = domain
                if (place := self._places.get((sample.uuid, sample.run))) is not None:
                    directories[sample.name] = place[1]
        snapshot = Snapshot(self.hypervisor.uri, taken, clock, boot_id(), tuple(guests), self._host())
        return Observed(snapshot, handles, directories)

    def _host(self) -> HostSample:
        if self.hypervisor.local:
            return host_sample.host()
        return host_sample.remote(scheduler.host_cores(self.hypervisor))

    def _kernel(self, samples: Sequence[GuestSample]) -> dict[str, ProcessSample]:
        """What this machine's kernel says of the guests' processes, by UUID."""
        if not self.hypervisor.local:
            return {}
        visible = cgroup.mounts()
        mount = cgroup.cpu_mount(visible)
        known = {key: self._places[key] for s in samples if (key := (s.uuid, s.run)) in self._places}
        new = process.find_guests(s.uuid for s in samples if (s.uuid, s.run) not in known)
        for sample in samples:
            own = cgroup.guest_directory(new[sample.uuid], visible=visible) if sample.uuid in new else None
            if own is not None:
                known[sample.uuid, sample.run] = (new[sample.uuid], own)
        self._places = known
        if mount is None:
            return {}
        return {
            uuid: ProcessSample(pid, cgroup.weight(directory, mount.version))
            for (uuid, _run), (pid, directory) in known.items()
        }


def _with_definition(sample: GuestSample, domain: Any) -> GuestSample | None:
    """The sample with what the guest's definition promises it; without, where that cannot be read. None where the
    guest is gone."""
    try:
        root = tree.read(domains.stored_definition(domain))
        promise = metadata.promise_in(root, sample.vcpus)
    except NotFoundError:
        return None
    except UnreachableError:
        raise
    except KvmctlError:
        return sample
    return replace(sample, promise=promise, cpus=resources.allowed(root), weight_set=resources.defined_weight(root))


def _elsewhere(domain: Any) -> ProcessSample | None:
    """The weight as libvirt tells it, of a guest whose process is not to be seen from here."""
    try:
        weight = scheduler.weight(domain)
    except UnreachableError:
        raise
    except KvmctlError:
        return None
    return None if weight is None else ProcessSample(pid=0, weight=weight)
