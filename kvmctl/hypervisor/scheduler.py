"""CPU weights of running guests, the cores they divide, and where they may run."""

from __future__ import annotations

from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, translate
from kvmctl.model.errors import ConflictError

_WITHOUT_WEIGHTS = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED, libvirt.VIR_ERR_INVALID_ARG)
"""The last is what drivers without cgroups (test, Xen) say of the flag for the running guest."""


def host_cores(hypervisor: Hypervisor) -> int:
    """The host CPUs that are online."""
    with doing("ask the host for its size"):
        return int(hypervisor.connection.getInfo()[2])


def cpus(domain: Any) -> frozenset[int]:
    """The host CPUs that the running guest's vCPUs may use together."""
    with doing(f"read the pinning of guest {domain.name()}"):
        maps = domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return frozenset(cpu for allowed in maps for cpu, may in enumerate(allowed) if may)


def weight(domain: Any) -> int | None:
    """The guest's CPU weight as the kernel has it now: libvirt reads the cgroup file at each call.

    None where the hypervisor has no such weight: another scheduler, or a session without cgroups. Raises
    ConflictError while the guest's cgroups are not all there, which is on its way up or down.
    """
    try:
        values = domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _WITHOUT_WEIGHTS:
            return None
        if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR:
            raise ConflictError(f"guest {domain.name()} is being started or stopped", "try again") from error
        raise translate(error, f"read the CPU weight of guest {domain.name()}") from error
    found: int | None = values.get("cpu_shares")
    return found


def set_weight(domain: Any, value: int) -> None:
    """Give the running guest this CPU weight until it stops. Its definition keeps the owner's shares."""
    with doing(f"set the CPU weight of guest {domain.name()}"):
        domain.setSchedulerParametersFlags({"cpu_shares": value}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
