"""What was observed, with None for what is not known: unknown is never zero. Times are nanoseconds,
sizes bytes."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Promise:
    """What a guest was promised, from its definition. Shares are numbers here, never levels."""

    cpu_shares: int
    cpu_limit: float
    """Cores; infinity is none."""
    cpu_reservation: float
    memory_shares: int
    memory_reservation: int
    sharing: bool
    swap: bool
    project: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


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
class ProcessSample:
    """What the host's kernel says of one guest's QEMU process and cgroup."""

    pid: int
    weight: int | None = None
    """As in the kernel's file: `cpu.shares` on cgroup v1, `cpu.weight` on v2."""
    quota: float | None = None
    """The whole guest's quota in cores; infinity is none."""
    rss: int | None = None
    swapped: int | None = None
    ksm_merging_pages: int | None = None
    ksm_process_profit: int | None = None


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
    promise: Promise | None = None
    process: ProcessSample | None = None


@dataclass(frozen=True, slots=True)
class KsmSample:
    """/sys/kernel/mm/ksm, with the kernel's names. None where this kernel has no such file."""

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    merge_across_nodes: int | None
    full_scans: int
    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    general_profit: int | None
    use_zero_pages: int | None
    ksm_zero_pages: int | None
    smart_scan: int | None
    advisor_mode: str | None


@dataclass(frozen=True, slots=True)
class HostSample:
    """The host at one moment."""

    cpus: int
    base_mhz: float | None
    memory_total: int
    memory_available: int
    swap_total: int
    swap_free: int
    cgroup_version: int
    """1, 2, or 0 where there is none."""
    ksm: KsmSample | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one decision is made from. `taken` is monotonic nanoseconds, `clock` seconds since the epoch."""

    uri: str
    taken: int
    clock: float
    guests: tuple[GuestSample, ...]
    host: HostSample | None = None
    """None where the hypervisor is not on this machine."""
    notes: tuple[str, ...] = field(default=())
