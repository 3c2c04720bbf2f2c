"""Snapshots as libvirt keeps them, and the block jobs that merge their overlays."""

from __future__ import annotations

from typing import Any

import libvirt

from kvmctl.hypervisor.errors import doing, is_gone, translate
from kvmctl.model.errors import ConflictError, KvmctlError

_MERGES = (libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT, libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT)


def all_of(domain: Any) -> list[tuple[str, bool]]:
    """The XML of every snapshot of the guest, and whether the guest goes on from it."""
    with doing(f"list the snapshots of guest {domain.name()}"):
        found = []
        try:
            handles = domain.listAllSnapshots(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return []
            raise
        for snapshot in handles:
            try:
                found.append((snapshot.getXMLDesc(0), bool(snapshot.isCurrent(0))))
            except libvirt.libvirtError as error:
                if not is_gone(error):
                    raise
        return found


def definition_of(domain: Any, name: str) -> str | None:
    """The definition that a snapshot keeps of its guest."""
    from xml.etree import ElementTree

    with doing(f"read snapshot {name} of guest {domain.name()}"):
        text = domain.snapshotLookupByName(name).getXMLDesc(0)
    found = ElementTree.fromstring(text).find("domain")  # noqa: S314 - libvirt wrote it
    return None if found is None else ElementTree.tostring(found, encoding="unicode")


def create(domain: Any, xml: str, disk_only: bool, quiesce: bool) -> None:
    """Take a snapshot, of all disks or of none. Raises KvmctlError, and where it is to be `quiesced` also because
    the guest's agent cannot."""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    if disk_only:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    if quiesce:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
    with doing(f"take a snapshot of guest {domain.name()}", "nothing was changed: kvmctl snapshot list shows them"):
        domain.snapshotCreateXML(xml, flags)


def revert(domain: Any, name: str) -> None:
    """Go back to a snapshot within the images."""
    with doing(f"revert guest {domain.name()} to snapshot {name}"):
        snapshot = domain.snapshotLookupByName(name)
        try:
            domain.revertToSnapshot(snapshot, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY:
                raise
            # That the process has to be another one is what losing the state since means anyway.
            domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)


def delete(domain: Any, name: str, metadata_only: bool = False) -> None:
    """Drop a snapshot; with `metadata_only` libvirt only forgets it."""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY if metadata_only else 0
    with doing(f"delete snapshot {name} of guest {domain.name()}"):
        try:
            domain.snapshotLookupByName(name).delete(flags)
        except libvirt.libvirtError as error:
            if not is_gone(error):
                raise


def begin_commit(domain: Any, target: str, base: str, top: str | None) -> None:
    """Begin to merge the images above `base`, up to `top` (None is the one that the guest writes to), into it."""
    flags = 0 if top else libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
    with doing(f"merge the overlays of disk {target} of guest {domain.name()}"):
        domain.blockCommit(target, base, top, 0, flags)


def job(domain: Any, target: str) -> tuple[int, int] | None:
    """How far the merge of a disk is, and how far it goes, in bytes; None where none runs. Raises ConflictError where
    another job of somebody else's does."""
    with doing(f"read the block job of disk {target} of guest {domain.name()}"):
        found = domain.blockJobInfo(target, 0)
    if found and found["type"] not in _MERGES:
        raise ConflictError(
            f"disk {target} of guest {domain.name()} is being copied by somebody else", "virsh blockjob shows how far"
        )
    return (int(found["cur"]), int(found["end"])) if found else None


def pivot(domain: Any, target: str) -> bool:
    """Let the guest write to the merged image; False where QEMU is not ready for it yet."""
    try:
        domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
            return False
        raise translate(error, f"finish the merge of disk {target} of guest {domain.name()}") from error
    return True


def abort(domain: Any, target: str) -> KvmctlError | None:
    """End the block job of a disk; the guest goes on with the image that it has. What was in the way of it."""
    try:
        domain.blockJobAbort(target, 0)
    except libvirt.libvirtError as error:
        return translate(error, f"end the block job of disk {target} of guest {domain.name()}")
    return None
