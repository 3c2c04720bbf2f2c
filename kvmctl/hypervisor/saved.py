"""A guest's memory in a file: saved, recognised, and gone on from."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import libvirt

from kvmctl.hypervisor.errors import doing, said
from kvmctl.model.errors import UsageError


def save(domain: Any) -> None:
    """Save a running guest's memory and stop it; its next start goes on from there."""
    with doing(f"save the memory of guest {domain.name()}"):
        domain.managedSave(0)


def is_save_of(domain: Any, path: str) -> bool:
    """Whether the file at that path is the saved memory of the guest."""
    try:
        text = domain.connect().saveImageGetXMLDesc(path)
    except libvirt.libvirtError:
        return False
    found = ElementTree.fromstring(text).findtext("uuid")  # noqa: S314 - libvirt wrote it
    return found is not None and found.strip() == domain.UUIDString()


def saved_definition(connection: Any, path: str) -> str:
    """The definition of the guest whose saved memory is in a file. Raises UsageError where it is in none."""
    try:
        text: str = connection.saveImageGetXMLDesc(path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    except libvirt.libvirtError as error:
        raise UsageError(
            f"the memory in the file is none that can be resumed: {said(error)}", "import it with --no-memory"
        ) from error
    return text


def restore(connection: Any, name: str, path: str, xml: str, paused: bool) -> None:
    """Start the guest with this definition from a file of its saved memory."""
    flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else libvirt.VIR_DOMAIN_SAVE_RUNNING
    with doing(f"resume guest {name} from its memory", f"its log may have more: /var/log/libvirt/qemu/{name}.log"):
        connection.restoreFlags(path, xml, flags)
