"""libvirt's node devices, of which only its memory of what was passed to guests matters here."""

from __future__ import annotations

import re

import libvirt

from kvmctl.hypervisor.connection import Hypervisor


def reattach(hypervisor: Hypervisor, address: str) -> bool:
    """Have libvirt give a PCI device back to its driver and forget that a guest had it; whether it has.

    What libvirt has passed to a guest without binding it itself it goes on taking for bound. Given back behind its
    back, the device would stay on vfio-pci after the next guest that libvirt binds it for (seen with 9.0).
    """
    name = "pci_" + re.sub(r"[:.]", "_", address)
    try:
        hypervisor.connection.nodeDeviceLookupByName(name).reAttach()
    except libvirt.libvirtError:
        return False  # it knows nothing of devices, or this one is used: whoever asks looks at the driver itself
    return True
