"""A guest made of a folder of its backups, as it was at one of them.

A full backup and the incremental ones over it are copied aside while their sums are made, so that what was checked is
what is used, whoever else writes to the folder; there the later ones are merged into the first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.control import place
from kvmctl.control.archive import described
from kvmctl.control.backup import manifests
from kvmctl.control.meter import Meter
from kvmctl.control.place import Plan, Wishes
from kvmctl.control.snapshots import OFF
from kvmctl.host import qcow2, qemu_img, tarstream, within
from kvmctl.host.files import check_readable
from kvmctl.hypervisor import storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import archive
from kvmctl.model.archive import Manifest
from kvmctl.model.backup import FORMAT, MANIFEST, Part, lineage
from kvmctl.model.backup import Manifest as Backup
from kvmctl.model.errors import ConflictError, NotFoundError, UsageError
from kvmctl.xml.carried import Drive, carried

_KINDS = {
    "domain.xml": "definition",
    "nvram.fd": "nvram",
    "tpm.state": "tpm",
    "boot/kernel": "kernel",
    "boot/initrd": "initrd",
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_TAMPERED = "the folder was tampered with, or is damaged: kvmctl backup GUEST DIR --verify tells"


@dataclass(frozen=True, slots=True)
class Found:
    """The backups of one guest in `home`, and those that the chosen one needs, the full one first."""

    home: Path
    known: dict[str, Backup]
    chain: tuple[Backup, ...]
    faults: tuple[str, ...]

    @property
    def chosen(self) -> Backup:
        """The one that is wanted."""
        return self.chain[-1]

    def part(self, name: str) -> tuple[Path, Part]:
        """A part of the chosen one, and the folder that it is in."""
        return self.home / self.chosen.id, _part(self.chosen, name)


def find(path: Path, at: str | None) -> Found:
    """The backups at a path: of one, of a guest's, or of a folder with one guest's. `at` is the id of the wanted one,
    or how it begins; the newest that there is.

    Raises UsageError where there are none or of several guests, NotFoundError for an `at` that is not there,
    ConflictError where one that the wanted one needs is missing.
    """
    home, named = _home(path.absolute())
    if named and at:
        raise UsageError(f"{path} is one backup already", "leave out --at, or name the folder around it")
    known, faults = manifests(home, any_guest=True)
    begin = named or at or ""
    fitting = [id_ for id_ in known if id_.startswith(begin)]
    if not fitting:
        missing = f"that begins with {begin}" if begin else "that can be read"
        reasons = "".join(f"; {fault}" for fault in faults)
        raise NotFoundError(
            f"there is no backup {missing} in {home}{reasons}", f"kvmctl inspect {home} shows those that there are"
        )
    chain = lineage(known, fitting[-1])
    _check_chain(chain)
    return Found(home, known, tuple(chain), tuple(faults))


def _home(path: Path) -> tuple[Path, str | None]:
    check_readable(path)
    if os.path.lexists(path / MANIFEST):
        return path.parent, path.name
    if any(path.glob(f"*/{MANIFEST}")):
        return path, None
    homes = sorted({found.parents[1] for found in path.glob(f"*/*/{MANIFEST}")})
    if len(homes) == 1:
        return homes[0], None
    if homes:
        raise UsageError(
            f"{path} holds backups of several guests: {', '.join(home.name for home in homes)}",
            f"name one of them: {homes[0]}",
        )
    raise UsageError(f"{path} holds no backup", "name a folder that kvmctl backup wrote to")


def _check_chain(chain: list[Backup]) -> None:
    last = chain[-1]
    for one in chain:
        if (one.guest, one.uuid) != (last.guest, last.uuid):
            raise UsageError(f"backup {last.id} is over {one.id}, which is of another guest", _TAMPERED)
        if set(one.targets) != set(last.targets):
            raise UsageError(f"backup {last.id} is over {one.id}, which has other disks", _TAMPERED)


def _part(one: Backup, name: str) -> Part:
    found = next((part for part in one.parts if part.name == name), None)
    if found is None:
        raise UsageError(f"backup {one.id} has no {name}", _TAMPERED)
    return found


def planned(hypervisor: Hypervisor, found: Found, wishes: Wishes) -> Plan:
    """What an import of the chosen one is going to do. Raises as `place.plan`."""
    text = definition(found)
    return place.plan(hypervisor, _manifest(hypervisor, found, text), text, wishes)


def definition(found: Found) -> str:
    """The guest's definition as it was. Raises UsageError where it is not what was backed up."""
    content = _small(found, "domain.xml")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the definition is no text", _TAMPERED) from error


def small(found: Found, kind: str) -> bytes | None:
    """A small part of that kind, where the backup has one. Raises UsageError where it is not what was backed up."""
    name = _NAMES[kind]
    return _small(found, name) if any(part.name == name for part in found.chosen.parts) else None


def _small(found: Found, name: str) -> bytes:
    folder, part = found.part(name)
    content = within.content(folder, name, archive.SMALL[_KINDS[name]])
    if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.sha256:
        raise UsageError(f"{folder / name} is not what its sum says", _TAMPERED)
    return content


def _manifest(hypervisor: Hypervisor | None, found: Found, text: str) -> Manifest:
    one = found.chosen
    drives = {drive.target: drive for drive in carried(text).drives}
    parts = [archive.Part("definition", _part(one, "domain.xml").size)]
    for part in one.parts:
        if part.name in _KINDS and part.name != "domain.xml":
            parts.append(archive.Part(_KINDS[part.name], part.size))
        elif part.target is not None and part.target in drives:
            volume, pool = _origin(hypervisor, drives[part.target])
            kind = "disk" if part.capacity is not None else "seed"
            size = sum(_part(each, part.name).size for each in found.chain) if kind == "disk" else part.size
            parts.append(archive.Part(kind, size, part.target, part.capacity, volume, pool))
    state = "stopped" if one.consistency == OFF else "running"
    return Manifest(one.guest, one.uuid, state, one.consistency, one.created, one.writer, tuple(parts))


def _origin(hypervisor: Hypervisor | None, drive: Drive) -> tuple[str | None, str | None]:
    """What the image of a drive was called, where a volume can be called so, and the pool here that its folder is."""
    if drive.path is None:
        volume, pool = drive.volume, drive.pool
    else:
        path = Path(drive.path)
        volume = None if path.is_relative_to("/dev") else path.name
        pool = storage.pool_of_folder(hypervisor, str(path.parent)) if hypervisor else None
    return (volume if volume and archive.is_volume(volume) else None), pool


def read(found: Found, plan: Plan, folder_of: Callable[[Path], Path], meter: Meter) -> dict[Path, Path]:
    """Copy the parts that become files, checked, to the folder that is aside of where each is to be; by that.

    Raises UsageError, RefusedError where one is not what was backed up, or refers to anything else.
    """
    meter.begin("read", plan.manifest.size)
    files: dict[Path, Path] = {}
    for index, one in enumerate(plan.places):
        staged = folder_of(one.path.parent) / str(index)
        if one.part.kind == "disk":
            _disk(found, f"disks/{one.part.target}.qcow2", staged, meter)
        else:
            _copy(found.home, found.chosen, _NAMES.get(one.part.kind, one.part.name), staged, meter)
        files[one.path] = staged
    return files


def _disk(found: Found, name: str, staged: Path, meter: Meter) -> None:
    over = staged.with_name(f"{staged.name}.over")
    for one in found.chain:
        capacity = _part(one, name).capacity
        if one.parent is None:
            _copy(found.home, one, name, staged, meter)
            qcow2.check(staged, capacity)
            continue
        _copy(found.home, one, name, over, meter)
        qcow2.check(over, capacity, f"../../{one.parent}/{name}")
        qemu_img.rebase_unchecked(str(over), str(staged), "qcow2")
        qemu_img.commit(str(over), "qcow2")
        over.unlink()
    qcow2.check(staged, _part(found.chosen, name).capacity)


def _copy(home: Path, one: Backup, name: str, target: Path, meter: Meter) -> None:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        tarstream.put(_checked(home, one, _part(one, name), meter), file)


def _checked(home: Path, one: Backup, part: Part, meter: Meter) -> Iterator[bytes]:
    """What is in a part. Raises UsageError at its end where that is not what was backed up."""
    digest, size = hashlib.sha256(), 0
    for piece in within.pieces(home, f"{one.id}/{part.name}", part.size + 1):
        digest.update(piece)
        size += len(piece)
        meter.moved(len(piece))
        yield piece
    if size != part.size or digest.hexdigest() != part.sha256:
        raise UsageError(f"{home / one.id / part.name} is not what its sum says", _TAMPERED)


def document(path: Path, at: str | None, verify: bool, meter: Meter) -> dict[str, Any]:
    """What is in a folder of backups, as `archive.document` says it of a file, and every backup there, oldest first.

    With `verify` all files of the chosen one, and of those that it is over, are compared with their sums. Raises as
    `find`, and UsageError for what is not what was backed up.
    """
    found = find(path, at)
    text = definition(found)
    if verify:
        meter.begin("verify", sum(one.size for one in found.chain))
        for one in found.chain:
            for part in one.parts:
                for _piece in _checked(found.home, one, part, meter):
                    pass
    told = described(_manifest(None, found, text), text)
    return told | {
        "format": FORMAT,
        "verified": verify,
        "backup": found.chosen.id,
        "backups": [_point(found, one) for one in found.known.values()],
        "faults": list(found.faults),
    }


def _point(found: Found, one: Backup) -> dict[str, Any]:
    try:
        lineage(found.known, one.id)
    except ConflictError:
        whole = False
    else:
        whole = True
    return {
        "name": one.id,
        "kind": one.kind,
        "parent": one.parent,
        "created": one.created,
        "size": one.size,
        "consistency": one.consistency,
        "restorable": whole,
    }
