"""libvirt's virtual networks."""

from __future__ import annotations

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, is_gone, translate


def is_active(hypervisor: Hypervisor, name: str) -> bool | None:
    """Whether the network is active; None where there is no such network."""
    try:
        return bool(hypervisor.connection.networkLookupByName(name).isActive())
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look up network {name}") from error


def names(hypervisor: Hypervisor) -> list[str]:
    """The names of all networks, sorted."""
    with doing("list the networks"):
        return sorted(network.name() for network in hypervisor.connection.listAllNetworks())
