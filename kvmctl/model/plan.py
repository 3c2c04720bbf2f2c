"""What a tick decides, and what it remembers for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvmctl.model.change import Change
from kvmctl.model.reclaim import ReclaimMemory


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """What a tick remembers of one run of a guest. Counters are nanoseconds, as in `GuestSample`."""

    run: int
    cpu_time: int | None
    vcpu_time: tuple[int, ...]
    vcpu_delay: tuple[int, ...] | None
    owed: float = 0.0
    """Core-seconds that the guest was entitled to and has not got; negative where it got more."""
    factor: float = 1.0
    """What its weight is multiplied by to make up for that."""
    demand: float | None = None
    """Cores that it wanted when it was last measured; None is all it can use, or unknown."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one tick leaves for the next, by UUID of the guest. Losing it costs caution, never a promise.

    `taken` is monotonic nanoseconds of the boot `boot`, `busy` as in `HostSample`, `others` the cores that
    everything but the guests used.
    """

    taken: int
    boot: str
    busy: int | None = None
    others: float | None = None
    guests: Mapping[str, GuestMemory] = field(default_factory=dict)
    reclaim: ReclaimMemory | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one tick is to do, in order, each Change with its reason; what it has to say; what it remembers."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    memory: Memory
