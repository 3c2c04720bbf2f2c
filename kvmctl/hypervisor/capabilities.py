"""What a hypervisor says it can do, as its own XML."""

from __future__ import annotations

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, translate


def capabilities(hypervisor: Hypervisor) -> str:
    """The capabilities XML: architectures, domain types, security models."""
    with doing("read the hypervisor's capabilities"):
        text: str = hypervisor.connection.getCapabilities()
        return text


def domain_capabilities(hypervisor: Hypervisor, virt_type: str, arch: str | None, machine: str | None) -> str | None:
    """What a domain of that type can have; None where this driver does not say."""
    try:
        text: str = hypervisor.connection.getDomainCapabilities(None, arch, machine, virt_type, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return None
        raise translate(error, f"read what {virt_type} guests can have") from error
    return text


def qemu_user(capabilities_xml: str) -> tuple[int, int] | None:
    """The (uid, gid) that guests run as, from the DAC security model; None where there is none."""
    from xml.etree import ElementTree

    for model in ElementTree.fromstring(capabilities_xml).iterfind("host/secmodel"):  # noqa: S314 - libvirt wrote it
        label = model.findtext("baselabel") or ""
        if model.findtext("model") == "dac":
            uid, _, gid = label.partition(":")
            return int(uid), int(gid)
    return None
