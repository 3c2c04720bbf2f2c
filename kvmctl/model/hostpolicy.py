"""What the host's policy file says, with the defaults of what it leaves out."""

from dataclasses import dataclass
from typing import Literal

Care = Literal["manage", "leave"]
Correction = Literal["weights", "off"]
Foreign = Literal["correct", "respect"]

LEAST_CPU_RESERVE = 0.25
"""Cores that a host keeps where its policy says nothing, however few cores it has. Less starves what runs outside of
guests: beside one busy process and four busy guests on two cores `virsh list` took 13 s with 0.1, 0.3 s with 0.2."""
CPU_RESERVE_PART = 0.02
"""The part of all cores that it keeps where that is more."""
MOST_CPU_RESERVE_PART = 0.5
"""The part of all cores that it keeps at most, whatever its policy says."""


@dataclass(frozen=True, slots=True)
class CpuPolicy:
    """How the guests' CPU promises are kept."""

    reserve: float | None = None
    """Cores kept for the host itself; None is the default for its size."""
    parent: Care = "manage"
    """Whether kvmctl sets the weight of the control group that all guests are in."""
    threads: Care = "manage"
    """Whether emulator and I/O threads are kept from eating a vCPU's part."""
    correct: Correction = "weights"
    """How measured drift is corrected."""
    foreign: Foreign = "correct"
    """What is done with a weight that somebody else has changed."""


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """How the host's memory is divided, and what is done when it runs short."""

    reserve: int | None = None
    """Bytes kept for the host itself; None is the default for its size."""
    limit: int | None = None
    """Bytes that the guests may have together at most; None is all but the reserve."""
    overcommit: float = 1.5
    """What running guests may grow to together, as a multiple of the memory for guests: ESXi's and FusionCompute's
    presets are 150 % too."""
    cover: float = 0.25
    """The part of what is merged and ballooned away that free memory and swap have to cover."""
    sharing: Care = "manage"
    """Whether KSM is switched on and driven as the host's state asks for."""
    balloon: Care = "manage"
    """Whether balloons are moved."""
    swap: Care = "manage"
    """Whether guests' cold memory is swapped where balloons do not suffice."""
    ksm_cores: float = 0.5
    """Cores that KSM may use at most."""


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """One host's policy, by what it is about."""

    cpu: CpuPolicy = CpuPolicy()
    memory: MemoryPolicy = MemoryPolicy()


def cpu_reserve(policy: HostPolicy, cpus: int) -> float:
    """Cores that a host of `cpus` cores keeps for itself: never more than half of them."""
    default = max(LEAST_CPU_RESERVE, CPU_RESERVE_PART * cpus)
    wanted = default if policy.cpu.reserve is None else policy.cpu.reserve
    return min(wanted, MOST_CPU_RESERVE_PART * cpus)


def capacity(policy: HostPolicy, cpus: int) -> float:
    """Cores that the guests of a host of `cpus` cores may use together."""
    return cpus - cpu_reserve(policy, cpus)
