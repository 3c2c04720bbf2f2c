"""Backup jobs, the checkpoints between them, and freezing a guest's file systems."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import libvirt

from kvmctl.hypervisor.errors import doing, is_gone, translate


def freeze(domain: Any) -> int:
    """Have the guest's agent freeze its file systems; how many. Raises KvmctlError."""
    with doing(f"freeze the file systems of guest {domain.name()}"):
        return int(domain.fsFreeze(None, 0))


def thaw(domain: Any) -> None:
    """Have the agent let the guest write again."""
    with doing(f"thaw the file systems of guest {domain.name()}", "virsh domfsthaw NAME tries again"):
        domain.fsThaw(None, 0)


def begin(domain: Any, xml: str, checkpoint: str | None) -> None:
    """Begin a backup job, and a checkpoint at its very moment."""
    with doing(f"begin a backup of guest {domain.name()}"):
        domain.backupBegin(xml, checkpoint, 0)


def progress(domain: Any) -> tuple[int, int] | None:
    """Bytes done and bytes in all of the backup job that runs; None where none does."""
    with doing(f"read the backup job of guest {domain.name()}"):
        stats = domain.jobStats(0)
    if not stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE):
        return None
    return int(stats.get("disk_processed", 0)), int(stats.get("disk_total", 0))


def failure(domain: Any) -> str | None:
    """Why the last job did not succeed, in libvirt's words; None where it did."""
    with doing(f"read the backup job of guest {domain.name()}"):
        stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if stats.get("type") == libvirt.VIR_DOMAIN_JOB_COMPLETED and stats.get("success", False):
        return None
    return str(stats.get("errmsg") or "libvirt does not say why")


def job(domain: Any) -> str | None:
    """The XML of the backup job that runs on the guest, None where none does."""
    try:
        return str(domain.backupGetXMLDesc(0))
    except libvirt.libvirtError:
        return None


def runs(domain: Any) -> bool:
    """Whether a backup job runs on the guest."""
    return job(domain) is not None


def abort(domain: Any) -> None:
    """End the backup job that runs, if one does."""
    with suppress(libvirt.libvirtError):
        domain.abortJob()


def checkpoints(domain: Any) -> list[str]:
    """The names of the guest's checkpoints, oldest first; none where its hypervisor has no such thing."""
    try:
        return [one.getName() for one in domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)]
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return []
        raise translate(error, f"list the checkpoints of guest {domain.name()}") from error


def delete_checkpoint(domain: Any, name: str) -> None:
    """Drop a checkpoint with its bitmaps; what it knew goes to the one before it. One that is gone is fine."""
    with doing(f"delete checkpoint {name} of guest {domain.name()}"):
        try:
            domain.checkpointLookupByName(name).delete(0)
        except libvirt.libvirtError as error:
            if not is_gone(error) and error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                raise


def forget_checkpoint(domain: Any, name: str) -> None:
    """Have libvirt forget a checkpoint of a guest that is off; its bitmaps stay in the images."""
    with doing(f"forget checkpoint {name} of guest {domain.name()}"):
        domain.checkpointLookupByName(name).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
