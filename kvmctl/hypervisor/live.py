"""What a running guest takes at once, and what it has after that. Each call does one thing."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from operator import eq
from typing import Any

import libvirt

from kvmctl.hypervisor.errors import doing, translate
from kvmctl.model.units import KIB

QUOTA_PERIOD = 100_000
"""Microseconds; libvirt's and the kernel's own default."""


def set_limit(domain: Any, cores: float) -> None:
    """Cap the whole guest, its emulator included; infinity takes the cap away."""
    quota = -1 if math.isinf(cores) else round(cores * QUOTA_PERIOD)
    with doing(f"limit the CPU of guest {domain.name()}"):
        values = {"global_period": QUOTA_PERIOD, "global_quota": quota}
        domain.setSchedulerParametersFlags(values, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def limit(domain: Any) -> float:
    """The whole guest's cap in cores as it is now; infinity is none."""
    with doing(f"read the CPU limit of guest {domain.name()}"):
        values = domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    quota, period = values.get("global_quota", 0), values.get("global_period", QUOTA_PERIOD)
    # Without a quota libvirt answers 2^64/1000, -1 or 0, depending on the cgroup version.
    return quota / period if 0 < quota < 2**53 else math.inf


def set_vcpus(domain: Any, count: int) -> None:
    """Give the guest that many vCPUs, at most its maximum."""
    with doing(f"set the vCPUs of guest {domain.name()}"):
        domain.setVcpusFlags(count, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def vcpus(domain: Any) -> int:
    """How many vCPUs the guest has now."""
    with doing(f"read the vCPUs of guest {domain.name()}"):
        return int(domain.vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE))


def set_pin(domain: Any, cpus: Collection[int]) -> None:
    """Let every vCPU run on these host CPUs only; none given means on any."""
    with doing(f"pin the vCPUs of guest {domain.name()}"):
        allowed = _cpu_map(domain, cpus)
        # Those that are not plugged in yet as well: they come with the pinning that they have then.
        for vcpu in range(domain.vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_VCPU_MAXIMUM)):
            domain.pinVcpuFlags(vcpu, allowed, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def pin(domain: Any) -> frozenset[int] | None:
    """The host CPUs that the guest's vCPUs may run on; empty where they may use any, None where they differ."""
    with doing(f"read the pinning of guest {domain.name()}"):
        maps = set(domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE))
    if len(maps) > 1:
        return None
    return _cpus_of(maps.pop())


def _cpu_map(domain: Any, cpus: Collection[int]) -> tuple[bool, ...]:
    """libvirt's form of a set of host CPUs; none given means any."""
    return tuple(not cpus or cpu in cpus for cpu in range(domain.connect().getCPUMap()[0]))


def _cpus_of(allowed: Sequence[bool]) -> frozenset[int]:
    return frozenset() if all(allowed) else frozenset(cpu for cpu, may in enumerate(allowed) if may)


def is_pinned_as_defined(domain: Any) -> bool:
    """Whether each vCPU may run where the definition that outlives the guest's running lets it."""
    with doing(f"read the pinning of guest {domain.name()}"):
        if not domain.isPersistent():
            return True
        now = domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return all(map(eq, now, domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_CONFIG)))


def set_emulator_pin(domain: Any, cpus: Collection[int]) -> None:
    """Let what QEMU does beside running vCPUs run on these host CPUs only; none given means on any."""
    with doing(f"pin the emulator of guest {domain.name()}"):
        domain.pinEmulator(_cpu_map(domain, cpus), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def emulator_pin(domain: Any) -> frozenset[int] | None:
    """The host CPUs that the emulator may run on; empty where it may use any, None on a hypervisor without one."""
    found = _emulator_pin(domain, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return None if found is None else _cpus_of(found)


def is_emulator_pinned_as_defined(domain: Any) -> bool:
    """Whether the emulator may run where the definition that outlives the guest's running lets it."""
    with doing(f"read the pinning of guest {domain.name()}"):
        if not domain.isPersistent():
            return True
    now = _emulator_pin(domain, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return now is None or now == _emulator_pin(domain, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _emulator_pin(domain: Any, flags: int) -> tuple[bool, ...] | None:
    try:
        return tuple(domain.emulatorPinInfo(flags))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return None
        raise translate(error, f"read the pinning of guest {domain.name()}") from error


DEFAULT_IO_WEIGHT = 100
"""The kernel's own, for a control group that nobody has given one."""


def set_io_weight(domain: Any, weight: int) -> None:
    """Give the guest its part of disks that others want too; 0 is the kernel's default."""
    hint = "the disk's I/O scheduler has to be bfq: echo bfq > /sys/block/DISK/queue/scheduler"
    with doing(f"weigh the disk I/O of guest {domain.name()}", hint):
        domain.setBlkioParameters({"weight": weight or DEFAULT_IO_WEIGHT}, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_balloon(domain: Any, size: int) -> None:
    """Ask the guest to have `size` bytes. It follows over seconds, if it has a driver."""
    with doing(f"set the memory of guest {domain.name()}"):
        domain.setMemoryFlags(size // KIB, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_stats_period(domain: Any, seconds: int) -> None:
    """How often the running guest's balloon driver is to report; 0 is never."""
    with doing(f"set the balloon's reports of guest {domain.name()}"):
        domain.setMemoryStatsPeriod(seconds, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def balloon(domain: Any) -> int:
    """The bytes the guest has now, in its balloon's own words."""
    with doing(f"read the memory of guest {domain.name()}"):
        return int(domain.info()[2]) * KIB


def has_balloon_driver(domain: Any) -> bool:
    """Whether a balloon driver in the guest has ever answered."""
    with doing(f"read the balloon of guest {domain.name()}"):
        return bool(domain.memoryStats().get("last_update", 0))


def set_metadata(domain: Any, element: str | None, key: str, namespace: str) -> None:
    """Put our metadata element into the running guest's definition; None takes it out."""
    with doing(f"record the promises of guest {domain.name()}"):
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, key, namespace, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_description(domain: Any, text: str) -> None:
    """Put the description into the running guest's definition; the empty text takes it out."""
    with doing(f"describe guest {domain.name()}"):
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, text or None, None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE
        )
