"""Opening the file that holds a guest: its manifest first, then part after part, and the sums at the end."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvmctl.control.meter import Meter, Silent
from kvmctl.host import tarstream
from kvmctl.host.tarstream import Reader
from kvmctl.model import archive
from kvmctl.model.archive import Manifest, Part
from kvmctl.model.errors import KvmctlError, NotFoundError, UnreachableError, UsageError
from kvmctl.xml.adopt import Placed, adopt


@contextmanager
def opened(path: Path | None) -> Iterator[tuple[Reader, Manifest]]:
    """The file at that path, or stdin, with its manifest, which has been read. All the rest has to be read to its end.

    Raises NotFoundError, UsageError where it is no archive of a guest.
    """
    with _file(path) as descriptor, tarstream.decompressing(descriptor) as stream:
        reader = Reader(stream)
        yield reader, archive.parse(reader.content(archive.MANIFEST, archive.MAX_TEXT))


@contextmanager
def _file(path: Path | None) -> Iterator[int]:
    if path is None:
        if sys.stdin.isatty():
            raise UsageError("an archive does not come from a terminal", "give a file, or pipe one in")
        yield sys.stdin.fileno()
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        kind = {FileNotFoundError: NotFoundError, PermissionError: UnreachableError}.get(type(error), KvmctlError)
        raise kind(f"cannot read {path}: {error.strerror}", "name a file that kvmctl export wrote") from error
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise UsageError(f"{path} is a folder", "name a file that kvmctl export wrote")
        magic = _magic(path, descriptor) if stat.S_ISREG(os.fstat(descriptor).st_mode) else tarstream.ZSTD_MAGIC
        if not magic:
            raise UsageError(f"{path} is empty", "export the guest again, or copy the file again")
        if magic != tarstream.ZSTD_MAGIC:
            raise UsageError(f"{path} is not compressed with zstd, as a guest's file is", "kvmctl export writes one")
        yield descriptor
    finally:
        os.close(descriptor)


def _magic(path: Path, descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 4, 0)
    except OSError as error:
        raise KvmctlError(f"cannot read {path}: {error.strerror}", "copy the file again") from error


def take(reader: Reader, part: Part, meter: Meter) -> Iterator[bytes]:
    """The pieces of the next part. Raises UsageError where it is not what the manifest lists."""
    size = reader.next(part.name)
    if size != part.size:
        raise UsageError(
            f"{part.name} has {size} bytes, and the manifest says {part.size}", "the file was tampered with"
        )
    yield from reader.pieces(part.name, size, meter.moved)


def small(reader: Reader, part: Part, meter: Meter) -> bytes:
    """The next part, which is one of the small ones, as a whole."""
    return b"".join(take(reader, part, meter))


def finish(reader: Reader) -> None:
    """Read the sums and the end. Raises UsageError where they do not tell what was read."""
    wanted = archive.sums(reader.digests)
    found = reader.content(archive.SUMS, archive.MAX_TEXT)
    if found != wanted:
        bad = [one.split()[-1] for one, other in _pairs(wanted, found) if one != other]
        raise UsageError(
            f"the content of {', '.join(bad) or 'the file'} is not what its sum says",
            "the file is damaged: export the guest again, or copy the file again",
        )
    reader.end()


def _pairs(wanted: bytes, found: bytes) -> list[tuple[str, str]]:
    other = found.decode(errors="replace").splitlines()
    lines = wanted.decode().splitlines()
    return list(zip(lines, [*other, *[""] * len(lines)], strict=False))


def document(path: Path | None, verify: bool, meter: Meter) -> dict[str, Any]:
    """What is in a file, with stable keys; `foreign` is what its guest would reach of a host. Sizes are bytes.

    Without `verify` no more than the beginning is read. Raises NotFoundError, UsageError.
    """
    manifest, content = _all(path, meter) if verify else _beginning(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the definition is no text", "the file was tampered with") from error
    return described(manifest, text) | {"verified": verify}


def described(manifest: Manifest, text: str) -> dict[str, Any]:
    """The manifest with stable keys, and what the guest with this definition would reach of a host."""
    adopted = adopt(text, _as_listed(manifest))
    return archive.document(manifest) | {
        "networks": sorted(adopted.networks),
        "bridges": sorted(adopted.bridges),
        "foreign": list(adopted.foreign),
    }


def _as_listed(manifest: Manifest) -> Placed:
    drives = {part.target: (f"/{part.name}", "raw") for part in manifest.parts if part.target}
    boot = {part.kind: f"/{part.name}" for part in manifest.parts}
    return Placed(drives, boot.get("kernel"), boot.get("initrd"), loaders=None)


def _all(path: Path | None, meter: Meter) -> tuple[Manifest, bytes]:
    with opened(path) as (reader, manifest):
        meter.begin("verify", manifest.size)
        text = small(reader, manifest.parts[0], meter)
        for part in manifest.parts[1:]:
            for _piece in take(reader, part, meter):
                pass
        finish(reader)
    return manifest, text


def _beginning(path: Path | None) -> tuple[Manifest, bytes]:
    with _file(path) as descriptor, tarstream.decompressing(descriptor, whole=False) as stream:
        reader = Reader(stream)
        manifest = archive.parse(reader.content(archive.MANIFEST, archive.MAX_TEXT))
        return manifest, small(reader, manifest.parts[0], Silent())
