"""A guest written to one file: its disks at one moment, its definition, and all else that it lives from."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from kvmctl import __version__
from kvmctl.control import moment, ova, tpm
from kvmctl.control.guarded import guarded
from kvmctl.control.images import Image
from kvmctl.control.inspect import described
from kvmctl.control.left import exporting
from kvmctl.control.meter import Meter
from kvmctl.control.moment import Moment
from kvmctl.host import tarstream
from kvmctl.host.staging import name as give_name
from kvmctl.host.staging import staging
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import archive
from kvmctl.model.archive import Manifest, Part
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.guestfile import dump
from kvmctl.model.names import check_name
from kvmctl.xml.carried import Carried, carried

SCRATCH = Path("/var/tmp")  # noqa: S108 - its folder there is made by us, and ours alone
"""Where disks are put together whose archive goes to a pipe."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `size` is the bytes of the file, None for a pipe; `pause` the seconds that the guest stood
    still for its memory."""

    manifest: Manifest
    size: int | None
    pause: float
    notes: tuple[str, ...]


def export(
    hypervisor: Hypervisor,
    name: str,
    target: Path | None,
    with_memory: bool,
    meter: Meter,
    form: str = "kvmctl",
    chain: bool = False,
) -> Exported:
    """Write the guest to `target`, which must not be there yet, or to stdout; `form` is `kvmctl` or `ova`. With `chain`
    each image that a disk is over is written as one.

    Raises NotFoundError, ConflictError for a file that is there, RefusedError for a guest that no file can hold.
    What fails or is interrupted leaves no file, and the guest as it was.
    """
    if form == "ova" and with_memory:
        raise UsageError("an OVA holds no memory", "leave out --with-memory, or --format ova")
    if form == "ova" and chain:
        raise UsageError("an OVA has each disk as one image", "leave out --chain, or --format ova")
    if not hypervisor.local:
        raise RefusedError(
            f"{hypervisor.uri} is another machine, whose disks cannot be read from here", "run kvmctl there"
        )
    domain = domains.find(hypervisor, name)
    if target is not None and os.path.lexists(target):
        raise ConflictError(f"{target} exists already", "give another name, or delete it yourself")
    folder = SCRATCH if target is None else target.absolute().parent
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", f"make it: mkdir {folder}")
    text = domains.definition(domain, secure=True)
    found = carried(text)
    _refuse(name, found)
    folders = [folder, *moment.folders(found)]
    with exporting(hypervisor, domain, with_memory, folders), staging(folder, "export") as place:
        taken = moment.take(hypervisor, domain, found, place, with_memory, meter, chain)
        with taken as now:
            contents = _contents(hypervisor, name, text, found, now)
            manifest = _manifest(domain, now, contents)
            if form == "ova":
                package = ova.package(hypervisor, name, now, place, meter)
                return Exported(manifest, _write(package, place, target), now.pause, package.notes)
            head = _head(manifest)
            if now.pause:
                _give_weight(hypervisor)
            size = _write(partial(_stream, manifest, head, contents, now.check, meter), place, target)
    return Exported(manifest, size, now.pause, tuple(_missing(found, now)))


def _missing(found: Carried, now: Moment) -> Iterator[str]:
    if found.tpm and now.tpm is None:
        yield f"its TPM has no state in {tpm.FOLDER}: it was never started, or its hypervisor keeps that elsewhere"


def _give_weight(hypervisor: Hypervisor) -> None:
    """The guest was started anew, so with the weight of its definition. What fails here the next tick does."""
    with suppress(KvmctlError), guarded(hypervisor, lambda _text: None):
        pass


def _refuse(name: str, found: Carried) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise RefusedError(
            f"no host would take guest {name!r}: {error}", "give it another name: virsh domrename"
        ) from error
    if found.beyond:
        raise RefusedError(
            f"guest {name} has parts that an archive cannot hold: {'; '.join(found.beyond)}",
            "move them to a disk of the guest, or detach them",
        )


@dataclass(frozen=True, slots=True)
class _Content:
    part: Part
    source: bytes | Path


def _contents(hypervisor: Hypervisor, name: str, text: str, found: Carried, now: Moment) -> list[_Content]:
    spec, unexpressed = described(hypervisor, name)
    guest_file = dump([spec], project=spec.project, comments={name: list(unexpressed)}).encode()
    contents = [_text("definition", text.encode()), _text("spec", guest_file)]
    if now.variables is not None:
        contents.append(_text("nvram", now.variables))
    if now.tpm is not None:
        contents.append(_text("tpm", now.tpm))
    contents += [_file(kind, Path(path)) for kind, path in (("kernel", found.kernel), ("initrd", found.initrd)) if path]
    contents += [_image(image) for image in now.images]
    if now.memory is not None:
        contents.append(_file("memory", now.memory))
    return contents


def _text(kind: str, content: bytes) -> _Content:
    return _Content(Part(kind, len(content)), content)


def _file(kind: str, path: Path) -> _Content:
    return _Content(Part(kind, _size(path)), path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {path}, which the guest needs", "kvmctl show tells what it is for"
        ) from error
    except OSError as error:
        raise KvmctlError(f"cannot look at {path}: {error.strerror}") from error


def _image(image: Image) -> _Content:
    drive = image.drive
    capacity = image.capacity if drive.kind == "disk" else None
    kind = "backing" if image.level else drive.kind
    # One that libvirt or the user called otherwise is called after the guest where it comes to.
    volume = image.volume if image.volume and archive.is_volume(image.volume) else None
    part = Part(kind, _size(image.path), drive.target, capacity, volume, image.pool, image.level)
    return _Content(part, image.path)


def _manifest(domain: Any, now: Moment, contents: Sequence[_Content]) -> Manifest:
    return Manifest(
        guest=domain.name(),
        uuid=domain.UUIDString(),
        state=now.state,
        consistency=now.consistency,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        writer=f"kvmctl {__version__}",
        parts=tuple(content.part for content in contents),
        autostart=domains.autostart(domain) if domains.is_persistent(domain) else False,
    )


def _write(stream: Callable[[int], None], place: Path, target: Path | None) -> int | None:
    """Have the file written, aside at first; its bytes, None of what went to stdout."""
    if target is None:
        stream(sys.stdout.fileno())
        return None
    whole = place / "whole"
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        stream(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    give_name(whole, target)
    return size


def _head(manifest: Manifest) -> bytes:
    """The manifest as it is written. Raises RefusedError where no kvmctl would take it."""
    import json

    head = (json.dumps(archive.document(manifest), indent=1) + "\n").encode()
    try:
        archive.parse(head)
    except UsageError as error:
        raise RefusedError(
            f"guest {manifest.guest} cannot be imported from a file: {error.message}",
            "kvmctl backup takes it; or change what is named here: virsh edit",
        ) from error
    return head


def _stream(
    manifest: Manifest, head: bytes, contents: Sequence[_Content], check: Callable[[], None], meter: Meter, sink: int
) -> None:
    meter.begin("write", manifest.size)
    with tarstream.compressing(sink) as stream:
        writer = tarstream.Writer(stream)
        writer.add(archive.MANIFEST, len(head), io.BytesIO(head))
        for content in contents:
            with _opened(content.source) as source:
                writer.add(content.part.name, content.part.size, source, meter.moved)
        check()  # without its sums an archive is none
        sums = archive.sums(writer.digests)
        writer.add(archive.SUMS, len(sums), io.BytesIO(sums))
        writer.finish()


@contextmanager
def _opened(source: bytes | Path) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise KvmctlError(f"cannot read {source}: {error.strerror}") from error
    with file:
        yield file
