"""What was observed of a guest, with None for what is not known: unknown is never zero. Times are nanoseconds,
sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmctl.model.host_sample import ProcessSample
    from kvmctl.model.promise import Promise

ACTIVE = ("running", "paused", "suspended", "stopping")
"""States in which a guest may want the CPU without anybody being told first."""


@dataclass(frozen=True, slots=True)
class BalloonSample:
    """libvirt's balloon statistics, with its meanings: `usable` is MemAvailable in the guest, `unused`
    MemFree, `rss` the resident memory of the QEMU process. `last_update` is seconds since the epoch."""

    current: int | None = None
    maximum: int | None = None
    available: int | None = None
    usable: int | None = None
    unused: int | None = None
    disk_caches: int | None = None
    rss: int | None = None
    swap_in: int | None = None
    swap_out: int | None = None
    major_fault: int | None = None
    minor_fault: int | None = None
    last_update: int | None = None


@dataclass(frozen=True, slots=True)
class GuestSample:
    """One guest at one moment."""

    name: str
    uuid: str
    state: str
    """`running`, `paused`, `stopped`, `crashed`, `suspended` or `stopping`."""
    vcpus: int
    vcpus_max: int
    balloon: BalloonSample = BalloonSample()
    cpu_time: int | None = None
    vcpu_time: tuple[int, ...] = ()
    vcpu_delay: tuple[int, ...] | None = None
    """Runnable but not running: steal, seen from the host. None where the hypervisor does not tell."""
    autostart: bool | None = None
    persistent: bool | None = None
    run: int | None = None
    """libvirt's ID of this run of the guest; the next one has another. None while it is off."""
    promise: Promise | None = None
    cpus: frozenset[int] = frozenset()
    """The host CPUs that its vCPUs may use together; none are all."""
    memory_size: int | None = None
    """What its definition says it is to have: its balloon may leave it less for a while."""
    balloon_moved: bool = False
    """Whether kvmctl has moved the balloon of this run: else somebody else has, who may have a reason."""
    memory_fixed: str = ""
    """Why its memory can be neither taken by a balloon nor merged nor swapped; empty where it can."""
    has_balloon: bool = False
    """Whether it has a virtio balloon."""
    stats_period: int = 0
    """Seconds between two reports of its balloon driver; 0 is never."""
    weight_set: int | None = None
    """The CPU weight that this run was last given: by kvmctl as its journal knows, else by its definition."""
    process: ProcessSample | None = None
