"""A guest that is a copy of another: with images of its own, or with overlays over the ones of the original."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvmctl.control import chains, identity, seed, snapshot_images, snapshots
from kvmctl.control.disk_copy import Progress, check_images, check_room, copy_live, copy_off, make_private, nvram_of
from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.control.resolve import DEFAULT_POOL
from kvmctl.control.select import Guest
from kvmctl.control.snapshots import OFF, Warn, facts_of, lock_of
from kvmctl.host import qemu_img
from kvmctl.host.files import birth
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor import domains, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, LockedError, RefusedError, UsageError
from kvmctl.model.guest_disk import GuestFacts
from kvmctl.model.names import check_name
from kvmctl.model.wording import argument, quoted
from kvmctl.policy import snapshots as policy
from kvmctl.xml.copied import copied, seed_of
from kvmctl.xml.identity import Identity, nvram_path
from kvmctl.xml.identity import read as identity_of

INTENT = "clone"
"""The journal's word for a copy that is not defined yet; its key is its name."""

Files = dict[str, tuple[str, str]]
"""Images as (path, format), by target."""


@dataclass(frozen=True, slots=True)
class Cloned:
    """A copy that was made. `over` are the images that it overlays, empty for one that needs none."""

    name: str
    uuid: str
    images: Files
    over: tuple[str, ...]
    consistency: str
    notes: tuple[str, ...]


def clone(
    hypervisor: Hypervisor, guest: Guest, name: str, linked: bool, snapshot: str | None, warn: Warn, progress: Progress
) -> Cloned:
    """Make a copy of the guest, which is off then. With `linked` its images overlay the original's of now, or of an
    external `snapshot`; the original goes on in overlays too.

    What fails or is interrupted leaves no copy. Raises UsageError, ConflictError, RefusedError, KvmctlError.
    """
    sample, domain = guest
    _check_name(name)
    if not hypervisor.local:
        raise RefusedError(f"{hypervisor.uri} is another machine, whose images are its own", "run kvmctl there")
    with lock(_lock_of(name), LOCK_WAIT), lock(lock_of(domain), LOCK_WAIT):
        recover(hypervisor, held=name)
        snapshot_images.recover(hypervisor, domain)
        if name in domains.names(hypervisor):
            raise ConflictError(f"there is a guest {name!r} already", "choose another name")
        facts = facts_of(domain)
        check_images(facts)
        if not facts.active and domains.has_saved_state(domain):
            raise ConflictError(
                f"guest {sample.name} was saved by libvirt with its memory, without which its disks are not whole",
                f"kvmctl start {argument(sample.name)} first",
            )
        definition = domains.definition(domain, secure=True)
        own = identity.fresh(hypervisor, definition, name)
        if linked:
            return _linked(hypervisor, guest, facts, definition, own, snapshot, warn)
        images = {
            disk.target: _image(disk.path or "", disk.format, disk.target, own, hypervisor, facts)
            for disk in facts.disks
        }
        with _begun(hypervisor, domain, own, definition, images, facts.active) as begun:
            check_room(facts, Path(next(iter(images.values()))[0]).parent)
            if facts.active:
                paths = {target: path for target, (path, _form) in images.items()}
                consistency = copy_live(hypervisor, domain, facts, paths, warn, begun.noting(progress))
                # A small one is done before there is any progress.
                begun.note()
            else:
                consistency = copy_off(domain, facts, images, progress)
            notes = _define(hypervisor, definition, own, images, begun.seeded)
        return Cloned(name, own.uuid, images, (), consistency, tuple(notes))


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(str(error), "name it as in web2") from error


def _lock_of(name: str) -> str:
    return f"clone-{name}"


def _image(
    path: str, form: str, target: str, own: Identity, hypervisor: Hypervisor, facts: GuestFacts
) -> tuple[str, str]:
    """Where a disk of the copy is to lie: beside the original's, or in the default pool where that is a device."""
    if path.startswith("/dev/"):
        folder = storage.folder(storage.pool(hypervisor, DEFAULT_POOL))
    else:
        folder = path.rpartition("/")[0]
    form = "qcow2" if facts.active or form != "raw" else "raw"
    return f"{folder}/{own.name}-{target}.{form}", form


@dataclass
class _Begun:
    """A copy that is being made, as the journal has it: its files, each with its `birth` once it is there."""

    name: str
    data: dict[str, Any]
    seeded: tuple[str, str] | None
    """The seed's old path and its new one."""

    def note(self) -> None:
        """Take down which files are there by now: only those are ours."""
        files = {path: birth(path) for path in self.data["files"]}
        if files != self.data["files"]:
            self.data = self.data | {"files": files}
            Journal().begin(INTENT, self.name, self.data)

    def noting(self, progress: Progress) -> Progress:
        """As `progress`, for files that somebody else makes meanwhile."""

        def show(what: str, done: float) -> None:
            self.note()
            progress(what, done)

        return show


@contextmanager
def _begun(
    hypervisor: Hypervisor, domain: Any, own: Identity, definition: str, images: Files, live: bool
) -> Iterator[_Begun]:
    """Make NVRAM and seed of the copy for the block, and the files of its images, empty: those of a guest that is
    `live` are made by libvirt, which takes none that is there. Where the block fails, all of them are gone again."""
    journal, old = Journal(), identity_of(definition)
    seed_path, content = _seed(definition, old, own)
    new_seed = f"{Path(seed_path).parent}/{own.name}-seed-{sha256(content).hexdigest()[:12]}.iso" if seed_path else None
    variables = nvram_of(domain, definition)
    # Also where the definition says nothing of it: this is where libvirt looks for it first.
    nvram = nvram_path(str(variables), own.name) if variables else None
    paths = [*(path for path, _form in images.values()), *filter(None, (new_seed, nvram))]
    if taken := [path for path in paths if os.path.lexists(path)]:
        raise ConflictError(f"{', '.join(taken)} exists already", "choose another name, or move it away")
    seeded = (seed_path, new_seed) if seed_path and new_seed else None
    begun = _Begun(own.name, {"uri": hypervisor.uri, "uuid": own.uuid, "files": dict.fromkeys(paths)}, seeded)
    journal.begin(INTENT, own.name, begun.data)
    ours = [path for path, _form in images.values()] if live else []
    try:
        for path in paths:
            if path not in ours:
                make_private(path)
                ours.append(path)
        begun.note()
        if nvram and variables:
            shutil.copyfile(variables, nvram)
            stat = variables.stat()
            os.chown(nvram, stat.st_uid, stat.st_gid)
            Path(nvram).chmod(stat.st_mode & 0o777)
        if new_seed:
            Path(new_seed).write_bytes(content)
            qemu_img.sync(new_seed)
        yield begun
    except BaseException as error:
        _remove(ours)
        journal.done(INTENT, own.name)
        if isinstance(error, OSError):
            raise KvmctlError(f"cannot make the files of guest {own.name}: {error.strerror}", "df -h") from error
        raise
    journal.done(INTENT, own.name)
    storage.refresh(hypervisor)


def _seed(definition: str, old: Identity, own: Identity) -> tuple[str | None, bytes]:
    found = seed_of(definition)
    if found is None:
        return None, b""
    path = found[0]
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise KvmctlError(f"cannot read the cloud-init seed {path}: {error.strerror}") from error
    return path, seed.renewed(content, old.name, own.name, own.uuid[:12])


def _remove(paths: list[str]) -> None:
    for path in paths:
        with suppress(OSError):
            Path(path).unlink()


def _define(
    hypervisor: Hypervisor, definition: str, own: Identity, images: Files, seeded: tuple[str, str] | None
) -> list[str]:
    text, notes = copied(definition, own, images, seeded)
    with lock(hypervisor.uri, LOCK_WAIT):
        if own.name in domains.names(hypervisor):
            raise ConflictError(f"guest {own.name} was made by somebody else just now", "choose another name")
        domains.define(hypervisor, own.name, text)
    return notes


def _linked(
    hypervisor: Hypervisor,
    guest: Guest,
    facts: GuestFacts,
    definition: str,
    own: Identity,
    snapshot: str | None,
    warn: Warn,
) -> Cloned:
    made, bases, consistency = _frozen(hypervisor, guest, facts, own.name, snapshot, warn)
    images = {
        target: (f"{base.rpartition('/')[0]}/{own.name}-{target}.qcow2", "qcow2") for target, (base, _) in bases.items()
    }
    try:
        with _begun(hypervisor, guest[1], own, definition, images, live=False) as begun:
            for target, (path, _form) in images.items():
                qemu_img.create_overlay(path, *bases[target], there=True)
            notes = _define(hypervisor, definition, own, images, begun.seeded)
    except BaseException:
        if made:
            with suppress(KvmctlError):
                snapshots.drop(hypervisor, guest, made, warn, lambda _what, _done: None)
        raise
    over = tuple(base for base, _form in bases.values())
    return Cloned(own.name, own.uuid, images, over, consistency, tuple(notes))


def _frozen(
    hypervisor: Hypervisor, guest: Guest, facts: GuestFacts, new: str, snapshot: str | None, warn: Warn
) -> tuple[str | None, Files, str]:
    """The snapshot that had to be taken, and images of the guest that nobody writes to any more."""
    domain = guest[1]
    if snapshot is not None:
        found = policy.find(snapshot, facts.name, snapshots.existing(domain))
        snapshot_images.refuse_half_merged(found, facts.name)
        return None, _below(facts, dict(found.overlays), found.name), f"snapshot {snapshot}"
    untouched = _untouched(domain, facts)
    if untouched:
        return None, _below(facts, untouched, ""), OFF
    taken = snapshots.take(hypervisor, guest, f"clone-{new}", False, f"what guest {new} overlays", warn, overlay=True)
    overlays = dict(taken.snapshot.overlays)
    return taken.snapshot.name, _below(facts_of(domain), overlays, taken.snapshot.name), taken.consistency


def _untouched(domain: Any, facts: GuestFacts) -> dict[str, str]:
    """The overlays of the current snapshot of a guest that is off, where nothing was written to any of them: then
    there is no need for yet another layer."""
    current = next((one for one in snapshots.existing(domain) if one.current and one.kind == "external"), None)
    if current is None or facts.active:
        return {}
    overlays = dict(current.overlays)
    same = overlays == {disk.target: disk.path for disk in facts.disks}
    return overlays if same and all(map(qemu_img.is_untouched, overlays.values())) else {}


def _below(facts: GuestFacts, overlays: dict[str, str], snapshot: str) -> Files:
    """What each overlay is over. Raises RefusedError where a disk of the guest has none of them below it."""
    found: Files = {}
    for disk in facts.disks:
        chain = qemu_img.chain(disk.path or "", disk.format)
        paths = [image.path for image in chain]
        overlay = overlays.get(disk.target)
        if overlay not in paths or paths.index(overlay) + 1 >= len(paths):
            raise RefusedError(
                f"snapshot {quoted(snapshot)} keeps no image of disk {disk.target} that could be overlaid",
                "name an external one: kvmctl snapshot list shows the kinds; or leave out --snapshot",
            )
        base = chain[paths.index(overlay) + 1]
        found[disk.target] = (base.path, base.format)
    return found


def _left(hypervisor: Hypervisor, files: dict[str, str | None]) -> list[str]:
    """What is still as a killed run has left it, and no guest's: since then, somebody may have made another file of
    that name, or a guest of this one. One that was not taken down yet is ours where nothing is in it."""
    used = chains.users(hypervisor)
    found = [path for path in files if os.path.lexists(path) and not {path, os.path.realpath(path)} & used.keys()]
    return [path for path in found if (birth(path) == files[path] if files[path] else os.lstat(path).st_size == 0)]


def recover(hypervisor: Hypervisor, held: str) -> None:
    """Remove what killed runs have left of copies that were never defined; one that is being made is left alone.

    The lock of the name `held` is the caller's.
    """
    journal = Journal()
    for intent in journal.unfinished(INTENT):
        if intent.data.get("uri") != hypervisor.uri:
            continue
        try:
            with nullcontext() if intent.key == held else lock(_lock_of(intent.key)):
                uuids = {domain.UUIDString() for domain in domains.domains(hypervisor)}
                if intent.data["uuid"] not in uuids:
                    _remove(_left(hypervisor, intent.data.get("files", {})))
                journal.done(INTENT, intent.key)
        except LockedError:
            continue
