"""One moment of a running guest's disks, written by its hypervisor while the guest goes on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt

from kvmctl.hypervisor.errors import doing, said
from kvmctl.model.errors import KvmctlError, UsageError


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of a job that runs: `done` of `total`."""

    done: int
    total: int


def begin(domain: Any, targets: Mapping[str, str], others: tuple[str, ...] = ()) -> None:
    """Have the disks with these names written as they are now, each whole and as qcow2 to its path.

    `others` are the names of the drives that are left out. Raises as libvirt's errors are translated.
    """
    root = Element("domainbackup", mode="push")
    disks = SubElement(root, "disks")
    for target, path in targets.items():
        disk = SubElement(disks, "disk", name=target, backup="yes", type="file")
        SubElement(disk, "target", file=path)
        SubElement(disk, "driver", type="qcow2")
    for target in others:
        SubElement(disks, "disk", name=target, backup="no")
    with doing(f"begin to copy the disks of guest {domain.name()}"):
        domain.backupBegin(ElementTree.tostring(root, encoding="unicode"), None, 0)


def progress(domain: Any) -> Progress | None:
    """How far it is; None once it has ended, whatever way. Raises KvmctlError."""
    with doing(f"read how far the copy of guest {domain.name()} is"):
        stats = domain.jobStats()
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    return Progress(stats.get("disk_processed", 0), stats.get("disk_total", 0))


def check_done(domain: Any) -> None:
    """Raise KvmctlError unless the last job has ended well."""
    with doing(f"read how the copy of guest {domain.name()} ended"):
        stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if stats.get("type") != libvirt.VIR_DOMAIN_JOB_COMPLETED or not stats.get("success", True):
        raise KvmctlError(
            f"the disks of guest {domain.name()} were not copied: {stats.get('errmsg') or 'the job was ended'}",
            "look at the host's space and at the guest's log",
        )


def abort(domain: Any) -> None:
    """End the job that runs; one that has ended by itself is fine."""
    with suppress(libvirt.libvirtError):
        domain.abortJob()


def freeze(domain: Any) -> bool:
    """Ask the guest's agent to hold its file systems still; whether it did."""
    try:
        domain.fsFreeze()
    except libvirt.libvirtError:
        # An agent that froze some, and failed at one, has thawed them; one that answered too late has not.
        thaw(domain)
        return False
    return True


def thaw(domain: Any) -> None:
    """Let the guest's file systems go on; one without an agent has none that were held."""
    with suppress(libvirt.libvirtError):
        domain.fsThaw()


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
