"""A guest made of one file, or of backups: everything is read, checked and compared aside before anything gets its
name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from kvmctl.control import archive, chains, from_backup, import_ends, ova, place, room, seed, tpm
from kvmctl.control.admit import admit_definition, check_lasting
from kvmctl.control.begin import begin
from kvmctl.control.guarded import LOCK_WAIT, guarded
from kvmctl.control.import_ends import Undo
from kvmctl.control.meter import Meter
from kvmctl.control.place import Plan, Wishes
from kvmctl.host import qcow2, qemu_img, tarstream
from kvmctl.host.files import is_folder, stamp, write_atomic
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.host.staging import check_room, staging
from kvmctl.host.staging import name as give_name
from kvmctl.host.tarstream import Reader
from kvmctl.hypervisor import domains, saved, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.archive import Manifest, Part
from kvmctl.model.errors import KvmctlError, RefusedError, UsageError
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.xml import adopt as adopting
from kvmctl.xml import identity
from kvmctl.xml.metadata import promise
from kvmctl.xml.parse import parse

INTENT = "import"
"""The journal's word for files that were given their names for a guest that is not defined yet."""
SCRATCH = Path("/var/tmp")  # noqa: S108 - its folder there is made by us, and ours alone


class Tell(NamedTuple):
    """How the user is told: of what must be seen, and of what is being done."""

    warn: Callable[[str], None]
    say: Callable[[str], None]


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
    """Where each file is, by where it is to be; the variables of its firmware are one."""
    memory: Path | None
    memory_xml: str = ""
    tpm: bytes | None = None


def take_in(
    hypervisor: Hypervisor,
    path: Path | None,
    wishes: Wishes,
    meter: Meter,
    tell: Tell,
    at: str | None = None,
) -> Imported:
    """Make the guest that is in the file at that path, on stdin, or in the folder of backups there, as it was `at` one.

    Raises UsageError for a file that is damaged or no such file, ConflictError, NotFoundError and RefusedError as
    `place.plan`, and RefusedError where it is to run and this host cannot keep what it promises. What fails leaves
    nothing behind, and so does a dry run, which has read and checked everything.
    """
    if not hypervisor.local:
        raise RefusedError(
            f"{hypervisor.uri} is another machine, whose disks cannot be written from here", "run kvmctl there"
        )
    if at is not None and (path is None or not is_folder(path)):
        raise UsageError("--at chooses one of the backups in a folder", "leave it out, or name such a folder")
    if not wishes.dry_run:
        recover(hypervisor, tell.warn)
    with ExitStack() as stack:
        plan, staged = _staged(hypervisor, path, at, wishes, meter, tell, stack)
        if wishes.dry_run:
            return _would_be(plan, wishes)
        stack.enter_context(_room(hypervisor, plan, wishes, tell))
        return _make(hypervisor, plan, staged, wishes, tell.warn)


def _would_be(plan: Plan, wishes: Wishes) -> Imported:
    state = plan.manifest.state if plan.resume else "running" if wishes.start else "stopped"
    files = tuple(str(one.path) for one in plan.places)
    return Imported(plan.own.name, plan.own.uuid, state, files, plan.manifest, plan.notes)


def _staged(
    hypervisor: Hypervisor,
    path: Path | None,
    at: str | None,
    wishes: Wishes,
    meter: Meter,
    tell: Tell,
    stack: ExitStack,
) -> tuple[Plan, _Staged]:
    """What is to be made, and what it is made of, checked and aside for as long as the stack is open."""
    if path is not None and is_folder(path):
        found = from_backup.find(path, at)
        for fault in found.faults:
            tell.warn(fault)
        plan = from_backup.planned(hypervisor, found, wishes)
        _foresee(hypervisor, plan, wishes, tell)
        folders = _Folders(stack)
        files = from_backup.read(found, plan, folders.beside, meter)
        _renew_seeds(plan, files)
        _put_variables(plan, from_backup.small(found, "nvram") if plan.nvram else None, folders, files)
        return plan, _Staged(files, None, tpm=from_backup.small(found, "tpm") if plan.tpm else None)
    if path is not None and ova.is_ova(path):
        plan, files = stack.enter_context(
            ova.read(hypervisor, path, wishes, meter, tell.warn, lambda plan: _foresee(hypervisor, plan, wishes, tell))
        )
        return plan, _Staged(files, None)
    reader, manifest = stack.enter_context(archive.opened(path))
    first = archive.small(reader, manifest.parts[0], meter)
    plan = place.plan(hypervisor, manifest, _text(first), wishes)
    _foresee(hypervisor, plan, wishes, tell)
    return plan, _read(hypervisor, reader, plan, _Folders(stack), meter)


def _foresee(hypervisor: Hypervisor, plan: Plan, wishes: Wishes, tell: Tell) -> None:
    """Admission, before anything long is done for nothing. What a guest promises that stays off is promised by its
    start, so that is only told."""
    if plan.resume or wishes.start:
        with _room(hypervisor, plan, wishes, tell):
            if not wishes.force:
                admit_definition(hypervisor, plan.own.name, plan.xml, False, tell.warn)
        return
    try:
        admit_definition(hypervisor, plan.own.name, plan.xml, False, tell.warn)
    except RefusedError as error:
        tell.warn(f"guest {plan.own.name} stays off, and could not be started as things are: {error.message}")


def _room(hypervisor: Hypervisor, plan: Plan, wishes: Wishes, tell: Tell) -> AbstractContextManager[None]:
    """Room is made for a guest that is to run, as for any that starts."""
    if wishes.dry_run or not (plan.resume or wishes.start):
        return nullcontext()

    def beginnings(policy: MemoryPolicy) -> dict[str, room.Beginning]:
        one = room.of_spec(parse(plan.xml).spec, policy)
        # One that goes on from its memory does not boot: it has all that it uses.
        return {plan.own.name: replace(one, target=None) if plan.resume else one}

    def check() -> None:
        if not wishes.force:
            check_lasting(hypervisor, {plan.own.name: promise(plan.xml)})

    return room.made(hypervisor, beginnings, tell.say, check)


class _Folders:
    """Folders aside, one beside each place where files are to be; gone with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._made: dict[Path, Path] = {}

    def beside(self, parent: Path) -> Path:
        """The one in `parent`."""
        if parent not in self._made:
            self._made[parent] = self._stack.enter_context(staging(parent, "import"))
        return self._made[parent]

    def any(self) -> tuple[Path, Path]:
        """Any of them, and what it is in."""
        if not self._made:
            self.beside(SCRATCH)
        return next(iter(self._made.items()))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the definition is no text", "the file was tampered with") from error


def _read(hypervisor: Hypervisor, reader: Reader, plan: Plan, folders: _Folders, meter: Meter) -> _Staged:
    """Read all parts to folders aside, and check them."""
    final = {one.part.name: one.path for one in plan.places}
    files: dict[Path, Path] = {}
    variables, sealed, memory = None, None, None
    meter.begin("read", plan.manifest.size)
    for index, part in enumerate(plan.manifest.parts[1:]):
        if part.name in final:
            files[final[part.name]] = folders.beside(final[part.name].parent) / str(index)
            _put(reader, part, files[final[part.name]], meter, plan)
        elif part.kind == "nvram":
            variables = archive.small(reader, part, meter)
        elif part.kind == "tpm":
            sealed = archive.small(reader, part, meter)
        elif part.kind == "memory" and plan.resume:
            memory = _memory_file(folders, part)
            _put(reader, part, memory, meter, plan)
        else:
            for _piece in archive.take(reader, part, meter):
                pass
    archive.finish(reader)
    _renew_seeds(plan, files)
    text = _memory_definition(hypervisor, memory, plan) if memory else ""
    _put_variables(plan, variables, folders, files)
    return _Staged(files, memory, text, sealed if plan.tpm else None)


def _put_variables(plan: Plan, content: bytes | None, folders: _Folders, files: dict[Path, Path]) -> None:
    if plan.nvram is not None and content is not None:
        files[plan.nvram] = folders.beside(plan.nvram.parent) / "nvram"
        write_atomic(files[plan.nvram], content)


def _memory_file(folders: _Folders, part: Part) -> Path:
    parent, folder = folders.any()
    check_room(parent, part.size)
    return folder / "memory"


def _put(reader: Reader, part: Part, target: Path, meter: Meter, plan: Plan) -> None:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        tarstream.put(archive.take(reader, part, meter), file)
    if not part.is_qcow2:
        return
    over = plan.manifest.over(part)
    qcow2.check(target, part.capacity, PurePosixPath(over.name).name if over else None)
    if over is not None:
        qemu_img.rebase_unchecked(str(target), str(plan.path(over)), "qcow2")


def _renew_seeds(plan: Plan, files: dict[Path, Path]) -> None:
    if plan.own.name == plan.old_name and plan.own.uuid == plan.manifest.uuid:
        return
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
    with guarded(hypervisor, warn), _undoing(hypervisor, plan, staged, wishes) as undo:
        place.check_still_free(hypervisor, plan)
        if staged.memory is not None or wishes.start:
            # Again, now that nobody else can start anything: reading may have taken long.
            admit_definition(hypervisor, plan.own.name, plan.xml, wishes.force, warn)
        # How to undo it comes before it is done: Ctrl-C can come between any two calls.
        for final, temporary in staged.files.items():
            undo.callback(_unlink, final, temporary.stat().st_ino)
            give_name(temporary, final)
        if staged.tpm is not None and plan.tpm is not None:
            tpm.check_free(plan.own.uuid)
            undo.callback(tpm.remove, plan.own.uuid)
            tpm.install(plan.own.uuid, plan.tpm, staged.tpm)
        for pool in plan.pools:
            storage.refresh_pool(pool)
        undo.callback(import_ends.undefine, hypervisor, plan.own, undo, warn)
        domain = domains.define(hypervisor, plan.own.name, plan.xml)
        if plan.manifest.autostart:
            domains.set_autostart(domain, True)
        if staged.memory is not None:
            paused = plan.manifest.state == "paused"
            saved.restore(hypervisor.connection, plan.own.name, str(staged.memory), staged.memory_xml, paused)
        elif wishes.start:
            begin(domain)
        state = domains.state(domain)
        files = tuple(str(path) for path in staged.files if path != plan.nvram)
        undo.pop_all()
    return Imported(plan.own.name, domain.UUIDString(), state, files, plan.manifest, plan.notes)


def _unlink(path: Path | str, inode: int) -> None:
    """Delete a file that we gave its name; somebody else's of that name stays."""
    with suppress(OSError):
        if os.lstat(path).st_ino == inode:
            Path(path).unlink()


@contextmanager
def _undoing(hypervisor: Hypervisor, plan: Plan, staged: _Staged, wishes: Wishes) -> Iterator[Undo]:
    """What the block gives its stack is undone where it fails, by us or, if we are killed, by the next import."""
    journal = Journal()
    stamps = {str(final): stamp(temporary) for final, temporary in staged.files.items()}
    data = {"uri": hypervisor.uri, "name": plan.own.name, "files": stamps, "tpm": staged.tpm is not None}
    data["begins"] = "memory" if staged.memory is not None else "boot" if wishes.start else None
    journal.begin(INTENT, plan.own.uuid, data)
    undo = Undo()
    try:
        with undo:
            undo.callback(_refresh, plan.pools)
            yield undo
    finally:
        if not undo.kept:
            journal.done(INTENT, plan.own.uuid)


def _refresh(pools: tuple[Any, ...]) -> None:
    for pool in pools:
        with suppress(KvmctlError):
            storage.refresh_pool(pool)


def recover(hypervisor: Hypervisor, warn: Callable[[str], None]) -> None:
    """Delete the files that killed imports gave their names, and whose guests they did not come to define; tell of a
    guest that one has defined and not started."""
    journal = Journal()
    if not journal.unfinished(INTENT):
        return
    # One that is at it now holds the lock.
    with lock(hypervisor.uri, LOCK_WAIT):
        for intent in journal.unfinished(INTENT):
            if intent.data.get("uri") != hypervisor.uri:
                continue
            if not domains.has_uuid(hypervisor, intent.key):
                used = chains.users(hypervisor)
                for path, noted in intent.data.get("files", {}).items():
                    # Its inode alone would also be that of a file which was made once ours was deleted.
                    if path not in used and (found := stamp(path)) and list(found) == noted:
                        _unlink(path, found[0])
                if intent.data.get("tpm"):
                    tpm.remove(intent.key)
            import_ends.tell(hypervisor, intent, warn)
            journal.done(INTENT, intent.key)
