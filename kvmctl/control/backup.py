"""Backups of a guest in a folder: full ones, and what changed since, from one checkpoint to the next."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kvmctl import __version__
from kvmctl.control import snapshot_images, tpm
from kvmctl.control.disk_copy import (
    Progress,
    check_images,
    check_room,
    copy_live,
    copy_off,
    end,
    make_private,
    nvram_of,
)
from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.control.select import Guest
from kvmctl.control.snapshots import Warn, facts_of, lock_of
from kvmctl.host import qemu_img, within
from kvmctl.host.files import check_readable, write_atomic
from kvmctl.host.journal import Intent, Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor import backups, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.backup import MANIFEST, MAX_MANIFEST, SUMS, Manifest, Part, lineage, parse, sums, text
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError
from kvmctl.model.guest_disk import GuestFacts
from kvmctl.model.names import check_name
from kvmctl.model.wording import argument
from kvmctl.xml.carried import carried
from kvmctl.xml.copied import seed_of

INTENT = "backup"
"""The journal's word for a backup that has not its name yet; its key is the path that it will have."""
_STAMP = "%Y%m%d-%H%M%S"
_FULL = "take a full backup: leave out --incremental"


@dataclass(frozen=True, slots=True)
class _Job:
    facts: GuestFacts
    id: str
    home: Path
    since: Manifest | None
    checkpoint: str | None

    @property
    def partial(self) -> Path:
        return self.home / f".partial-{self.id}"

    @property
    def final(self) -> Path:
        return self.home / self.id


def home_of(folder: Path, guest: str) -> Path:
    """Where in a folder the backups of a guest are. Raises RefusedError for a name that is no folder's."""
    try:
        return folder.absolute() / check_name(guest)
    except ValueError as error:
        raise RefusedError(f"no folder is made for it: {error}", "virsh domrename gives it another name") from error


def manifests(home: Path, any_guest: bool = False) -> tuple[dict[str, Manifest], list[str]]:
    """Every backup in the folder by id, oldest first, and a sentence for each that cannot be read, or is not of the
    guest that the folder is called after, unless `any_guest` will do. Raises as `check_readable`."""
    check_readable(home)
    found, faults = {}, []
    for path in sorted(home.glob(f"*/{MANIFEST}")):
        if path.parent.name.startswith("."):
            continue
        try:
            one = parse(within.content(home, f"{path.parent.name}/{MANIFEST}", MAX_MANIFEST).decode(errors="replace"))
        except KvmctlError as error:
            faults.append(f"{path}: {error.message}")
            continue
        if one.id == path.parent.name and (any_guest or one.guest == home.name):
            found[one.id] = one
        else:
            faults.append(f"{path} is of backup {one.id} of guest {one.guest}: it lies in a wrong folder")
    return found, faults


def backup(
    hypervisor: Hypervisor, guest: Guest, folder: Path, incremental: bool, warn: Warn, progress: Progress
) -> Manifest:
    """Back the guest up into `folder`. What fails or is interrupted leaves nothing there, and no checkpoint.

    Raises RefusedError, ConflictError, KvmctlError.
    """
    sample, domain = guest
    if not hypervisor.local:
        raise RefusedError(f"{hypervisor.uri} is another machine, which cannot write here", "run kvmctl there")
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", f"make it: mkdir {folder}")
    with lock(lock_of(domain), LOCK_WAIT):
        snapshot_images.recover(hypervisor, domain)
        recover(hypervisor, domain)
        facts, home = facts_of(domain), home_of(folder, sample.name)
        check_images(facts)
        known, faults = manifests(home)
        for fault in faults:
            warn(fault)
        last = next(reversed(known.values()), None)
        if incremental:
            _check_incremental(domain, facts, known, last)
        kind = "incremental" if incremental else "full"
        id_ = f"{moment(last)}-{kind}"
        checkpoint = f"kvmctl-{id_}" if _can_continue(facts, warn) else None
        job = _Job(facts, id_, home, last if incremental else None, checkpoint)
        with _begun(hypervisor, domain, job, last):
            made = _make(hypervisor, domain, job, warn, progress)
        _drop_checkpoint(hypervisor, domain, last, warn)
    return made


def moment(last: Manifest | None) -> str:
    """Now, and in any case later than the last: their order is that of their names, whatever the clock does."""
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    if last is not None:
        now = max(now, datetime.strptime(last.id[:15], _STAMP) + timedelta(seconds=1))  # noqa: DTZ007 - UTC, as `now`
    return now.strftime(_STAMP)


def _can_continue(facts: GuestFacts, warn: Warn) -> bool:
    if not facts.active:
        return False
    cannot = []
    for disk in facts.disks:
        if disk.format != "qcow2":
            cannot.append(f"{disk.target} is {disk.format}, not qcow2")
        elif qemu_img.image(disk.path or "", "qcow2").compat == "0.10":
            amend = f"qemu-img amend -f qcow2 -o compat=1.1 {disk.path}"
            cannot.append(f"{disk.target} is qcow2 of version 0.10; while the guest is off, {amend} makes it newer")
    if cannot:
        warn(f"no incremental backup can follow, since nobody can keep account of changes: {'; '.join(cannot)}")
    return not cannot


def _check_incremental(domain: Any, facts: GuestFacts, known: dict[str, Manifest], last: Manifest | None) -> None:
    if not facts.active:
        raise ConflictError(
            f"guest {facts.name} is off, and only of a running one it is known what changed",
            f"{_FULL}, or kvmctl start {argument(facts.name)} first",
        )
    if last is None:
        raise RefusedError(f"there is no backup of guest {facts.name} there that another could be over", _FULL)
    if last.uuid != facts.uuid:
        raise RefusedError(f"backup {last.id} is of another guest of that name", _FULL)
    if last.checkpoint is None or last.checkpoint not in backups.checkpoints(domain):
        raise RefusedError(
            f"nobody has kept account of what changed since backup {last.id}: the guest was off then, has a raw disk, "
            "or has been reverted since",
            _FULL,
        )
    if set(last.targets) != {disk.target for disk in facts.disks}:
        raise RefusedError(f"guest {facts.name} has other disks than in backup {last.id}", _FULL)
    lineage(known, last.id)


@contextmanager
def _begun(hypervisor: Hypervisor, domain: Any, job: _Job, last: Manifest | None) -> Iterator[None]:
    """The folder that the backup is made in; whole and under its name after the block, or gone."""
    journal = Journal()
    data = {
        "guest": job.facts.name,
        "uuid": job.facts.uuid,
        "uri": hypervisor.uri,
        "partial": str(job.partial),
        "checkpoint": job.checkpoint,
        "last": last.checkpoint if last else None,
    }
    journal.begin(INTENT, str(job.final), data)
    try:
        # QEMU, which is another user, has to go through to the files that it is given.
        job.home.mkdir(mode=0o711, exist_ok=True)
        if not job.since:
            check_room(job.facts, job.home)
        job.partial.mkdir(mode=0o711)
        (job.partial / "disks").mkdir(mode=0o711)
        yield
        _give_name(job)
    except BaseException as error:
        shutil.rmtree(job.partial, ignore_errors=True)
        if job.checkpoint:
            with suppress(KvmctlError):
                backups.delete_checkpoint(domain, job.checkpoint)
        with suppress(OSError):
            job.home.rmdir()
        journal.done(INTENT, str(job.final))
        if isinstance(error, OSError):
            raise KvmctlError(f"cannot write into {job.home}: {error.strerror}", f"ls -ld {job.home}") from error
        raise
    journal.done(INTENT, str(job.final))


def _give_name(job: _Job) -> None:
    for path in (*job.partial.rglob("*"), job.partial):
        qemu_img.sync(str(path))
    if job.final.exists():
        raise ConflictError(f"{job.final} exists already", "try again in a second")
    job.partial.rename(job.final)
    qemu_img.sync(str(job.home))


def _make(hypervisor: Hypervisor, domain: Any, job: _Job, warn: Warn, progress: Progress) -> Manifest:
    facts, since = job.facts, job.since
    files = {disk.target: str(job.partial / "disks" / f"{disk.target}.qcow2") for disk in facts.disks}
    definition = domains.definition(domain, secure=True)
    if facts.active:
        try:
            consistency = copy_live(
                hypervisor, domain, facts, files, warn, progress, job.checkpoint, since.checkpoint if since else None
            )
        except KvmctlError as error:
            raise _explained(error, job) from error
    else:
        for path in files.values():
            make_private(path)
        consistency = copy_off(domain, facts, {key: (path, "qcow2") for key, path in files.items()}, progress)
    if since:
        for target, path in files.items():
            # libvirt has it over the guest's own image, which goes on.
            qemu_img.rebase_unchecked(path, f"../../{since.id}/disks/{target}.qcow2", "qcow2")
    write_atomic(job.partial / "domain.xml", definition)
    if nvram := nvram_of(domain, definition):
        _copy(nvram, job.partial / "nvram.fd")
    if (sealed := tpm.state(domain)) is not None:
        write_atomic(job.partial / "tpm.state", sealed)
    if seed := seed_of(definition):
        _copy(Path(seed[0]), job.partial / "disks" / f"{seed[1]}.seed")
    _copy_boot(definition, job)
    return _manifest(job, consistency, progress)


def _copy(source: Path, to: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, to)
        to.chmod(0o600)


def _copy_boot(definition: str, job: _Job) -> None:
    """Kernel and initial RAM disk that the guest boots directly, once for all backups that have the same."""
    found = carried(definition)
    for name, path in (("kernel", found.kernel), ("initrd", found.initrd)):
        if path is None or not Path(path).is_file():
            continue
        copy = job.partial / "boot" / name
        copy.parent.mkdir(mode=0o711, exist_ok=True)
        before = job.home / job.since.id / "boot" / name if job.since else None
        if before and before.is_file() and filecmp.cmp(before, path, shallow=False):
            with suppress(OSError):  # not every file system can
                os.link(before, copy)
        if not copy.exists():
            _copy(Path(path), copy)


def _explained(error: KvmctlError, job: _Job) -> KvmctlError:
    if "Permission denied" in error.message:
        return KvmctlError(error.message, f"QEMU's user has to reach {job.home}: give every folder of it mode o+x")
    if "No space left" in error.message:
        return KvmctlError(error.message, f"make room there: df -h {job.home}")
    if job.since and "bitmap" in error.message:
        return KvmctlError(error.message, f"QEMU's account of the changes is broken: {_FULL}")
    return error


def _manifest(job: _Job, consistency: str, progress: Progress) -> Manifest:
    parts = []
    for path in sorted(path for path in job.partial.rglob("*") if path.is_file()):
        name = str(path.relative_to(job.partial))
        target = path.stem if name.startswith("disks/") else None
        capacity = qemu_img.image(str(path), "qcow2").size if path.suffix == ".qcow2" else None
        parts.append(Part(name, path.stat().st_size, _sum(path, progress), target, capacity))
    made = Manifest(
        id=job.id,
        guest=job.facts.name,
        uuid=job.facts.uuid,
        kind="incremental" if job.since else "full",
        parent=job.since.id if job.since else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        checkpoint=job.checkpoint,
        consistency=consistency,
        writer=f"kvmctl {__version__}",
        parts=tuple(parts),
    )
    write_atomic(job.partial / SUMS, sums(made.parts))
    write_atomic(job.partial / MANIFEST, text(made))
    return made


def _sum(path: Path, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
            done += len(data)
            progress(f"sum of {path.name}", done / size)
    return digest.hexdigest()


def _drop_checkpoint(hypervisor: Hypervisor, domain: Any, last: Manifest | None, warn: Warn) -> None:
    """The one that the backup before had: the new one goes on from here, and each costs the guest memory."""
    if last is None or last.checkpoint is None or last.uuid != domain.UUIDString():
        return
    try:
        snapshot_images.forget_checkpoints(hypervisor, domain, facts_of(domain), last.checkpoint)
    except KvmctlError as error:
        warn(error.message)


def recover(hypervisor: Hypervisor, domain: Any) -> None:
    """Undo what killed runs have left of this guest's backups, or of one that is gone. Under the guest's lock."""
    journal = Journal()
    for intent in journal.unfinished(INTENT):
        if intent.data.get("uri") != hypervisor.uri:
            continue
        mine = intent.data["uuid"] == domain.UUIDString()
        if not mine and intent.data["guest"] in domains.names(hypervisor):
            continue
        if mine:
            _undo(hypervisor, domain, intent)
        shutil.rmtree(intent.data["partial"], ignore_errors=True)
        journal.done(INTENT, intent.key)


def _undo(hypervisor: Hypervisor, domain: Any, intent: Intent) -> None:
    if domains.state(domain) not in ("stopped", "crashed"):
        end(domain)
    # With its name the backup was whole: then the checkpoint before it is what was still to go.
    drop = intent.data["last"] if os.path.lexists(intent.key) else intent.data["checkpoint"]
    if drop:
        snapshot_images.forget_checkpoints(hypervisor, domain, facts_of(domain), drop)


def verify(home: Path, known: dict[str, Manifest], progress: Progress) -> dict[str, list[str]]:
    """What is wrong with the files of each backup, by id: nothing where they have the sums that they had."""
    wrong = {}
    for one in known.values():
        faults = []
        for part in one.parts:
            path = home / one.id / part.name
            if not path.is_file() or path.is_symlink():
                faults.append(f"{part.name} is missing")
            elif path.stat().st_size != part.size or _sum(path, progress) != part.sha256:
                faults.append(f"{part.name} is not what was written")
        wrong[one.id] = faults
    return wrong
