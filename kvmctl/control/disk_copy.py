"""A guest's disks copied at one moment: of a guest that is off by qemu-img, of one that runs by a backup job."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from kvmctl.control.freeze import frozen
from kvmctl.control.snapshots import FROZEN, OFF, UNFROZEN, Warn
from kvmctl.control.wait import until
from kvmctl.host import qemu_img
from kvmctl.hypervisor import backups, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError
from kvmctl.model.guest_disk import GuestFacts
from kvmctl.model.units import human_size
from kvmctl.xml import identity
from kvmctl.xml import snapshot as xml

Progress = Callable[[str, float], None]

_NVRAM = Path("/var/lib/libvirt/qemu/nvram")
KEPT_FREE = 64 << 20
"""Bytes that are left free beside what is known to come."""
_END = 60.0
"""Seconds for a job to end that was told to."""


def check_images(facts: GuestFacts) -> None:
    """Raise RefusedError naming every disk that is no image of this host."""
    if not facts.disks:
        raise RefusedError(f"guest {facts.name} has no disk of its own", "kvmctl spec keeps what it is without one")
    if elsewhere := [disk.target for disk in facts.disks if disk.path is None]:
        raise RefusedError(
            f"disks of guest {facts.name} are no images of this host: {', '.join(elsewhere)}",
            "copy them with the tools of their storage",
        )


def nvram_of(domain: Any, definition: str) -> Path | None:
    """The file of a guest's UEFI variables, where there is one. Where the firmware is chosen by libvirt, only the XML
    that a guest runs with names it, and of one that is off it lies where libvirt puts it."""
    active = domains.state(domain) not in ("stopped", "crashed")
    found = identity.read(domains.live_definition(domain) if active else definition).nvram
    if found is None and xml.facts(definition, None, domain.name(), "", "").flash:
        found = str(_NVRAM / f"{domain.name()}_VARS.fd")
    return Path(found) if found and Path(found).is_file() else None


def check_room(facts: GuestFacts, folder: Path) -> None:
    """Raise RefusedError where what the disks hold does not fit into the file system of `folder`."""
    need = sum(image.allocation for disk in facts.disks for image in qemu_img.chain(disk.path or "", disk.format))
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if need + KEPT_FREE > free:
        raise RefusedError(
            f"the disks of guest {facts.name} take up to {human_size(need)}, and {folder} has {human_size(free)} free",
            f"make room there: df -h {folder}",
        )


def copy_off(domain: Any, facts: GuestFacts, files: Mapping[str, tuple[str, str]], progress: Progress) -> str:
    """Copy the disks of a guest that is off to (path, format) by target, which `make_private` has made. Raises
    ConflictError where it is started."""
    for disk in facts.disks:
        path, form = files[disk.target]
        qemu_img.convert(disk.path or "", disk.format, path, form, partial(progress, disk.target))
        qemu_img.sync(path)
    if domains.state(domain) not in ("stopped", "crashed"):
        raise ConflictError(f"guest {facts.name} was started meanwhile", "do it again: a running guest is copied too")
    return OFF


def make_private(path: str) -> None:
    """Make an empty file that only its owner can read. Raises OSError, also where there is one of that name."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))


def copy_live(
    hypervisor: Hypervisor,
    domain: Any,
    facts: GuestFacts,
    files: Mapping[str, str],
    warn: Warn,
    progress: Progress,
    checkpoint: str | None = None,
    since: str | None = None,
) -> str:
    """Copy the disks of a guest that runs to qcow2 files by target, at the moment when this begins: whole, or what
    changed `since` a checkpoint. A new `checkpoint` begins at that very moment.

    The job is ended, and the checkpoint is gone again, where this raises.
    """
    job = xml.render_backup(files, since, facts.skipped)
    mark = xml.render_checkpoint(checkpoint, list(files), facts.skipped) if checkpoint else None
    if backups.runs(domain):
        raise ConflictError(f"guest {facts.name} is being copied by somebody else now", "wait until that is done")
    consistency = UNFROZEN
    try:
        with ExitStack() as stack:
            if facts.agent and facts.state == "running":
                try:
                    stack.enter_context(frozen(hypervisor, domain))
                    consistency = FROZEN
                except KvmctlError as error:
                    warn(f"{error.message}; so its disks are copied as they are")
            backups.begin(domain, job, mark)
        _follow(domain, progress)
        if (reason := backups.failure(domain)) is not None:
            raise KvmctlError(
                f"the disks of guest {facts.name} were not copied: {reason}", "df -h shows the host's room"
            )
    except BaseException:
        end(domain)
        if checkpoint:
            with suppress(KvmctlError):
                backups.delete_checkpoint(domain, checkpoint)
        raise
    for path in files.values():
        qemu_img.sync(path)
    return consistency


def _follow(domain: Any, progress: Progress) -> None:
    def look() -> bool:
        found = backups.progress(domain)
        if found is None:
            return True
        progress("disks", found[0] / found[1] if found[1] else 0.0)
        return False

    while not until(look, bool, 600.0):
        pass


def end(domain: Any) -> None:
    """End a backup job of the guest, and wait until it has."""
    if backups.runs(domain):
        backups.abort(domain)
        until(lambda: backups.runs(domain), lambda runs: not runs, _END)
