"""The cores of a host, and those of them that its guests may use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvmctl.control.hostpolicy import host_policy
from kvmctl.hypervisor import host as hypervisor_host
from kvmctl.hypervisor import scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.hostpolicy import cpu_reserve
from kvmctl.policy.cpu import CpuClaim


@dataclass(frozen=True, slots=True)
class Capacity:
    """Cores: all that are on-line, and what the host keeps of them for itself."""

    cores: int
    reserve: float

    @property
    def guests(self) -> float:
        """Cores that the guests may use together."""
        return self.cores - self.reserve


def capacity(hypervisor: Hypervisor) -> Capacity:
    """What there is to divide; on another machine, whose policy cannot be read from here, all of it. Raises UsageError
    where this machine's policy cannot be read."""
    cores = scheduler.host_cores(hypervisor)
    return Capacity(cores, cpu_reserve(host_policy(), cores) if hypervisor.local else 0.0)


def cpus(hypervisor: Hypervisor, claims: Iterable[CpuClaim]) -> frozenset[int]:
    """The host's CPUs that are on-line; empty, without a call, where no guest is bound to some of them."""
    if not any(claim.cpus for claim in claims):
        return frozenset()
    found = hypervisor_host.cpus(hypervisor)
    return frozenset() if found is None else found.online
