"""The header of a qcow2 image that somebody else made, read before QEMU gets to see it.

QEMU's docs/interop/qcow2.txt has the layout. An image can name other files, which QEMU opens on its behalf: a backing
file, and a file that holds its data.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from kvmctl.model.errors import KvmctlError, RefusedError, UsageError

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_BACKING_FORMAT, _DATA_FILE_NAME = 0xE2792ACA, 0x44415441
_HINT = "qemu-img convert -O qcow2 makes an image of its own, where the image comes from"
_SECTOR = 512
_FIRST = 65536


def check(path: Path, capacity: int | None = None, backing: str | None = None) -> int:
    """The bytes that a guest sees of the image. `backing` is the one name of a qcow2 backing file that it has.

    Raises RefusedError where it refers to any other file or is encrypted, UsageError where it is no sound qcow2 image,
    or shows a guest other than `capacity` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        data = os.read(descriptor, _FIRST)
    except OSError as error:
        raise KvmctlError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    found = check_header(data, backing)
    if capacity is not None and found != capacity:
        raise UsageError(f"a disk shows {found} bytes, and was to show {capacity}", "the file is not what it says")
    return found


def check_header(data: bytes, backing: str | None = None) -> int:
    """As `check`, of the first 64 KiB of an image."""
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise UsageError("a disk is no qcow2 image", _HINT)
    _, version, at, named, cluster_bits, size, crypt, *_, snapshots, _ = _HEADER.unpack_from(data)
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or size % _SECTOR:
        raise UsageError("a disk has a header that no qcow2 image has", _HINT)
    if backing is None and (at or named):
        raise RefusedError("a disk names a backing file, which would be one of this host's", _HINT)
    if backing is not None and (not at or data[at : at + named] != backing.encode()):
        raise RefusedError(f"a disk is to be over {backing}, and names another file or none", _HINT)
    if crypt:
        raise RefusedError("a disk is encrypted", _HINT)
    if snapshots:
        raise RefusedError("a disk holds snapshots, which nobody here has looked into", _HINT)
    length = _HEADER.size
    if version == 3:
        length = _check_features(data)
    _check_extensions(data, length, backing is not None)
    return int(size)


def _check_features(data: bytes) -> int:
    if len(data) < _HEADER.size + _FEATURES.size:
        raise UsageError("a disk has a header that no qcow2 image has", _HINT)
    incompatible, _, _, _, length = _FEATURES.unpack_from(data, _HEADER.size)
    if incompatible & _DATA_FILE:
        raise RefusedError("a disk keeps its data in another file, which would be one of this host's", _HINT)
    if incompatible & _CORRUPT:
        raise UsageError("a disk is marked as corrupt", _HINT)
    if incompatible & ~(_DIRTY | _COMPRESSION | _EXTENDED_L2):
        raise UsageError("a disk has features that this kvmctl does not know", _HINT)
    if not 104 <= length <= len(data) or length % 8:
        raise UsageError("a disk has a header that no qcow2 image has", _HINT)
    return int(length)


def _check_extensions(data: bytes, at: int, over: bool) -> None:
    """`over` is whether it may say, and then has to, that what it is over is qcow2: QEMU would guess it otherwise."""
    known = False
    while at + _EXTENSION.size <= len(data):
        kind, length = _EXTENSION.unpack_from(data, at)
        if kind == 0:
            if over and not known:
                raise RefusedError("a disk does not say the format of what it is over", _HINT)
            return
        at += _EXTENSION.size
        if kind == _BACKING_FORMAT and over and data[at : at + length] == b"qcow2":
            known = True
        elif kind == _BACKING_FORMAT:
            raise RefusedError("a disk names a backing format", _HINT)
        elif kind == _DATA_FILE_NAME:
            raise RefusedError("a disk names an external data file", _HINT)
        at += (length + 7) // 8 * 8
    raise UsageError("a disk has a header without an end", _HINT)
