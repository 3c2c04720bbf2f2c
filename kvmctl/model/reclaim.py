"""What one tick is to do about memory, and what it remembers of it for the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvmctl.model.change import Change

SHORT = ("soft", "hard", "low")
"""The states in which a host is short of memory."""
HASTE = ("hard", "low")
"""Those in which guests are not spared any more."""


@dataclass(frozen=True, slots=True)
class ReclaimGuest:
    """What is remembered of one run of a guest. Counters are what they were at the last look; None is unknown."""

    run: int
    faults: int | None = None
    """Major faults and pages swapped in, in the guest."""
    host_faults: int | None = None
    """Major faults of its process on the host."""
    calm: float = 0.0
    """Seconds for which it was last left alone after it was short of memory."""
    calm_until: int = 0
    """Monotonic nanoseconds until which nothing is taken from it."""
    target: int | None = None
    """Bytes that its balloon was told to leave it, as long as it leaves it more."""
    actual: int | None = None
    """Bytes that its balloon left it at the last look; the least of them while it is told to leave less."""
    moved: int = 0
    """Monotonic nanoseconds of when its balloon was last seen to take more, or told to."""
    since: int | None = None
    """Monotonic nanoseconds of when it was first seen."""
    scans: int = 0
    """The number of KSM's passes then."""
    said: int | None = None
    """When its balloon driver last reported, in seconds since the epoch."""
    said_of: int | None = None
    """Bytes that its balloon left it then, or the most since."""


@dataclass(frozen=True, slots=True)
class ReclaimMemory:
    """What one tick leaves for the next, by UUID of the guest. Losing it costs caution, never a promise. `taken` is
    monotonic nanoseconds of the boot `boot`; `stalled` seconds for which some task of the host waited for memory."""

    taken: int
    boot: str
    state: str | None = None
    stalled: float | None = None
    unprofitable_until: int = 0
    """Monotonic nanoseconds until which KSM rests, because it costs more than it saves."""
    short: int = 0
    """How many looks in a row the host was short of memory."""
    saved: int = 0
    """Bytes that KSM saved when it last had more to merge than before."""
    grown_scan: int = 0
    """The number of KSM's passes then: as long as each finds more, the next follows soon."""
    hurried: bool = False
    """Whether KSM was told to hurry."""
    guests: Mapping[str, ReclaimGuest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KsmAim:
    """How KSM is to work: whether at all, and in how many seconds one pass over all mergeable memory is to be done,
    with at most so many cores."""

    run: bool
    scan_seconds: int
    cores: float
    reason: str
    hurry: bool = False
    """Whether there is memory that KSM has never looked at: the kernel's advisor would find its pace after some passes.
    """


@dataclass(frozen=True, slots=True)
class PageOut:
    """Bytes of one guest's memory that are to be swapped, of what it has not touched for longest."""

    guest: str
    pid: int
    amount: int
    haste: bool
    """Whether memory of which it is not known that it is cold may go too."""
    merged: bool
    """Whether KSM has merged some of it."""
    size: int
    """The guest's memory as QEMU has mapped it."""
    swapped: int
    """What of it is in swap already."""
    reason: str


@dataclass(frozen=True, slots=True)
class ReclaimPlan:
    """Balloons to move, KSM's aim (None leaves it as it is), scores for the worst case, what to swap; what there is to
    say; what to remember."""

    state: str | None
    balloons: tuple[Change, ...]
    ksm: KsmAim | None
    scores: tuple[Change, ...]
    """Which guest the kernel is to kill first, were all else to fail."""
    pageouts: tuple[PageOut, ...]
    notes: tuple[str, ...]
    memory: ReclaimMemory | None
    alert: bool = False
    """Whether the next look is due soon: the host is short, or a guest has less than it is to have."""
    reports: tuple[Change, ...] = ()
    """Whose balloon driver is to report from now on, how often in seconds."""
    splits: tuple[tuple[int, int], ...] = ()
    """Processes, with the bytes of their guests' memory, that may hold huge pages of which a part was given back."""
