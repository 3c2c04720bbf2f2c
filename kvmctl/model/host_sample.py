"""What was observed of the host and by it, as `kvmctl.model.sample` of a guest."""

from dataclasses import dataclass, field

from kvmctl.model.sample import GuestSample


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
    page_tables: int | None = None
    """Bytes of page tables that the kernel keeps for the process, those of its guest's memory included."""
    oom_score_adj: int | None = None
    """What the kernel adds to the badness of the process when memory has run out."""
    major_faults: int | None = None
    """How often the process had to wait for a page from swap or disk."""
    locked: int | None = None
    """What of its memory cannot leave the host's; a device that is passed through has all of it locked or pinned."""
    hugetlb: int | None = None
    """What it has of huge pages, which `rss` does not count."""
    overhead: int | None = None
    """What of `rss` is QEMU's own and not the guest's; not known unless it was asked for."""


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
    online: frozenset[int] = frozenset()
    """The CPUs that run tasks."""
    guests_limit: int | None = None
    """Bytes that the guests' common control group may have; None is no limit."""
    guests_available: int | None = None
    """Bytes that are left of that; None where there is no limit."""
    memory_stalled: float | None = None
    """Seconds since boot for which some task waited for memory; None where the kernel keeps no account."""
    busy: int | None = None
    """What all CPUs together have worked since boot, guests included."""
    room_asked: int = 0
    """Bytes that guests which are about to start will take, and do not hold yet."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one decision is made from. `taken` is monotonic nanoseconds of the boot `boot`, `clock` seconds
    since the epoch."""

    uri: str
    taken: int
    clock: float
    boot: str
    guests: tuple[GuestSample, ...]
    host: HostSample | None = None
    """None where the hypervisor is not on this machine."""
    notes: tuple[str, ...] = field(default=())
