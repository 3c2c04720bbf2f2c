"""The host, and its guests' processes, as the values that decisions are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvmctl.host import cgroup, cpu, ksm, memory, process
from kvmctl.model.host_sample import HostSample
from kvmctl.model.metrics import OFF
from kvmctl.model.sample import GuestSample


def host(tsc_hz: int | None = None) -> HostSample:
    """The host now. `tsc_hz` is the time stamp counter's frequency where libvirt told it."""
    now = memory.read()
    clock, online = cpu.base_clock(tsc_hz), cpu.online()
    return HostSample(
        cpus=len(online),
        base_mhz=clock.mhz if clock else None,
        memory_total=now.total,
        memory_available=now.available,
        swap_total=now.swap_total,
        swap_free=now.swap_free,
        cgroup_version=cgroup.version(),
        ksm=ksm.sample(),
        online=online,
        guests_limit=memory.guests_limit(),
        guests_available=memory.guests_available(),
        memory_stalled=stall.some_seconds if (stall := memory.pressure("memory")) else None,
        busy=cpu.busy(),
    )


def remote(cpus: int) -> HostSample:
    """A host whose kernel cannot be asked, of which libvirt tells that it has this many CPUs on-line."""
    return HostSample(cpus, None, 0, 0, 0, 0, 0)


def with_processes(samples: Sequence[GuestSample]) -> tuple[GuestSample, ...]:
    """The samples, each running guest's with what the kernel says of its process: one scan of /proc for all.

    A process that cannot be found, or ended meanwhile, leaves `process` None.
    """
    pids = process.find_guests(sample.uuid for sample in samples if sample.state not in OFF)
    visible = cgroup.mounts() if pids else ()
    found = {uuid: process.sample(pid, visible=visible) for uuid, pid in pids.items()}
    return tuple(replace(sample, process=found.get(sample.uuid)) for sample in samples)
