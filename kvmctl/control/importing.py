"""A guest made of one file: everything is read, checked and compared aside before anything gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.control import archive, ova, place, seed
from kvmctl.control.admit import admit_definition
from kvmctl.control.begin import begin
from kvmctl.control.guarded import LOCK_WAIT, guarded
from kvmctl.control.meter import Meter
from kvmctl.control.place import Plan, Wishes
from kvmctl.host import qcow2, tarstream
from kvmctl.host.files import write_atomic
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.host.staging import check_room, staging
from kvmctl.host.staging import name as give_name
from kvmctl.host.tarstream import Reader
from kvmctl.hypervisor import domains, saved, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.archive import Manifest, Part
from kvmctl.model.errors import KvmctlError, RefusedError, UsageError
from kvmctl.xml import adopt as adopting
from kvmctl.xml import identity

INTENT = "import"
"""The journal's word for files that were given their names for a guest that is not defined yet."""
SCRATCH = Path("/var/tmp")  # noqa: S108 - its folder there is made by us, and ours alone


@dataclass(frozen=True, slots=True)
class Imported:
    """What was made: the guest's name and UUID, its state now, the paths of its files, sentences for the user."""

    name: str
    uuid: str
    state: str
    files: tuple[str, ...]
    manifest: Manifest
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Staged:
    files: dict[Path, Path]
    """Where each file is, by where it is to be."""
    nvram: bytes | None
    memory: Path | None
    memory_xml: str = ""


def take_in(
    hypervisor: Hypervisor, path: Path | None, wishes: Wishes, meter: Meter, warn: Callable[[str], None]
) -> Imported:
    """Make the guest that is in the file at that path, or on stdin.

    Raises UsageError for a file that is damaged or no such file, ConflictError, NotFoundError and RefusedError as
    `place.plan`. What fails leaves nothing behind.
    """
    if not hypervisor.local:
        raise RefusedError(
            f"{hypervisor.uri} is another machine, whose disks cannot be written from here", "run kvmctl there"
        )
    recover(hypervisor)
    if path is not None and ova.is_ova(path):
        with ova.read(hypervisor, path, wishes, meter, warn) as (plan, files):
            if wishes.start:
                admit_definition(hypervisor, plan.own.name, plan.xml, wishes.force, warn)
            return _make(hypervisor, plan, _Staged(files, None, None), wishes, warn)
    with archive.opened(path) as (reader, manifest), ExitStack() as stack:
        first = archive.small(reader, manifest.parts[0], meter)
        plan = place.plan(hypervisor, manifest, _text(first), wishes)
        if plan.resume or wishes.start:
            admit_definition(hypervisor, plan.own.name, plan.xml, wishes.force, warn)
        staged = _read(hypervisor, reader, plan, stack, meter)
        return _make(hypervisor, plan, staged, wishes, warn)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the definition is no text", "the file was tampered with") from error


def _read(hypervisor: Hypervisor, reader: Reader, plan: Plan, stack: ExitStack, meter: Meter) -> _Staged:
    """Read all parts to folders aside, and check them."""
    folders: dict[Path, Path] = {}
    final = {one.part.name: one.path for one in plan.places}
    files: dict[Path, Path] = {}
    variables, memory = None, None
    meter.begin("read", plan.manifest.size)
    for index, part in enumerate(plan.manifest.parts[1:]):
        if part.name in final:
            parent = final[part.name].parent
            if parent not in folders:
                folders[parent] = stack.enter_context(staging(parent, "import"))
            files[final[part.name]] = folders[parent] / str(index)
            _put(reader, part, files[final[part.name]], meter)
        elif part.kind == "nvram":
            variables = archive.small(reader, part, meter)
        elif part.kind == "memory" and plan.resume:
            memory = _memory_file(folders, stack, part)
            _put(reader, part, memory, meter)
        else:
            for _piece in archive.take(reader, part, meter):
                pass
    archive.finish(reader)
    if plan.own.name != plan.old_name or plan.own.uuid != plan.manifest.uuid:
        _renew_seeds(plan, files)
    text = _memory_definition(hypervisor, memory, plan) if memory else ""
    return _Staged(files, variables if plan.nvram else None, memory, text)


def _memory_file(folders: dict[Path, Path], stack: ExitStack, part: Part) -> Path:
    if not folders:
        folders[SCRATCH] = stack.enter_context(staging(SCRATCH, "import"))
    parent, folder = next(iter(folders.items()))
    check_room(parent, part.size)
    return folder / "memory"


def _put(reader: Reader, part: Part, target: Path, meter: Meter) -> None:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        tarstream.put(archive.take(reader, part, meter), file)
    if part.kind == "disk":
        qcow2.check(target, part.capacity)


def _renew_seeds(plan: Plan, files: dict[Path, Path]) -> None:
    for one in plan.places:
        if one.part.kind == "seed":
            staged = files[one.path]
            content = seed.renewed(staged.read_bytes(), plan.old_name, plan.own.name, plan.own.uuid[:8])
            write_atomic(staged, content)


def _memory_definition(hypervisor: Hypervisor, memory: Path, plan: Plan) -> str:
    """The definition that the guest goes on with: what is saved with its memory, fit for this host."""
    text = saved.saved_definition(hypervisor.connection, str(memory))
    found = identity.read(text)
    if (found.name, found.uuid) != (plan.own.name, plan.own.uuid):
        raise UsageError("the memory in the file is another guest's", "the file was tampered with")
    adopted = adopting.adopt(text, plan.placed)
    if set(adopted.foreign):
        raise RefusedError(
            "the guest in the saved memory would reach into this host:\n  " + "\n  ".join(adopted.foreign),
            "import it with --no-memory",
        )
    return adopted.xml


def _make(hypervisor: Hypervisor, plan: Plan, staged: _Staged, wishes: Wishes, warn: Callable[[str], None]) -> Imported:
    """Give everything its name, define the guest, and start it where that is wanted; or undo all of it."""
    with guarded(hypervisor, warn), _undoing(hypervisor, plan, staged) as undo:
        place.check_still_free(hypervisor, plan)
        # How to undo it comes before it is done: Ctrl-C can come between any two calls.
        for final, temporary in staged.files.items():
            undo.callback(_unlink, final, temporary.stat().st_ino)
            give_name(temporary, final)
        if staged.nvram is not None and plan.nvram is not None:
            undo.callback(plan.nvram.unlink, missing_ok=True)
            write_atomic(plan.nvram, staged.nvram)
        for pool in plan.pools:
            storage.refresh_pool(pool)
        undo.callback(_undefine, hypervisor, plan)
        domain = domains.define(hypervisor, plan.own.name, plan.xml)
        if plan.manifest.autostart:
            domains.set_autostart(domain, True)
        if staged.memory is not None:
            paused = plan.manifest.state == "paused"
            saved.restore(hypervisor.connection, plan.own.name, str(staged.memory), staged.memory_xml, paused)
        elif wishes.start:
            begin(domain)
        state = domains.state(domain)
        files = tuple(map(str, staged.files))
        undo.pop_all()
    return Imported(plan.own.name, domain.UUIDString(), state, files, plan.manifest, plan.notes)


def _undefine(hypervisor: Hypervisor, plan: Plan) -> None:
    if domains.has_uuid(hypervisor, plan.own.uuid):
        domain = domains.find(hypervisor, plan.own.name)
        with suppress(KvmctlError):
            domains.power_off(domain)
        with suppress(KvmctlError):
            domains.undefine(domain)


def _unlink(path: Path | str, inode: int) -> None:
    """Delete a file that we gave its name; somebody else's of that name stays."""
    with suppress(OSError):
        if os.lstat(path).st_ino == inode:
            Path(path).unlink()


@contextmanager
def _undoing(hypervisor: Hypervisor, plan: Plan, staged: _Staged) -> Iterator[ExitStack]:
    """What the block gives its stack is undone where it fails, by us or, if we are killed, by the next import."""
    journal = Journal()
    inodes = {str(final): temporary.stat().st_ino for final, temporary in staged.files.items()}
    journal.begin(INTENT, plan.own.uuid, {"uri": hypervisor.uri, "name": plan.own.name, "files": inodes})
    try:
        with ExitStack() as stack:
            stack.callback(_refresh, plan.pools)
            yield stack
    finally:
        journal.done(INTENT, plan.own.uuid)


def _refresh(pools: tuple[Any, ...]) -> None:
    for pool in pools:
        with suppress(KvmctlError):
            storage.refresh_pool(pool)


def recover(hypervisor: Hypervisor) -> None:
    """Delete the files that killed imports gave their names, and whose guests they did not come to define."""
    journal = Journal()
    if not journal.unfinished(INTENT):
        return
    # One that is at it now holds the lock.
    with lock(hypervisor.uri, LOCK_WAIT):
        for intent in journal.unfinished(INTENT):
            if intent.data.get("uri") != hypervisor.uri:
                continue
            if not domains.has_uuid(hypervisor, intent.key):
                for path, inode in intent.data.get("files", {}).items():
                    _unlink(path, inode)
            journal.done(INTENT, intent.key)
