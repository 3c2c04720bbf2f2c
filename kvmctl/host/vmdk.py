"""VMDK images that somebody else made: looked at before QEMU opens them, and made into images of this host's.

An image can be a text that names other files, or name a parent. QEMU opens those, so neither is taken: only one file
that holds all of its data (VMware's "Virtual Disk Format 5.0": hosted sparse extents, and stream-optimized ones).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from kvmctl.host import qemu_img
from kvmctl.model.errors import KvmctlError, RefusedError, UsageError

MAGIC = b"KDMV"
_HEADER = struct.Struct("<4sIIQQQQIQQQ")
_SECTOR = 512
_DESCRIPTOR = 64 << 10
"""Bytes of a descriptor that are looked at; VMware reserves 10 KiB."""
_AT_END = (1 << 64) - 1
_GD_OFFSET = 9
_HINT = "export the guest there again, as OVA with disks of its own"


def check(path: Path, capacity: int) -> None:
    """Raise RefusedError where the image refers to another file, UsageError where it is no such image, or does not
    show a guest `capacity` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        size = os.fstat(descriptor).st_size
        head = _check_header(os.pread(descriptor, _SECTOR, 0))
        places = [head]
        if head[_GD_OFFSET] == _AT_END:
            # What the end says counts then, once the beginning was taken for an image.
            places.append(_check_header(os.pread(descriptor, _SECTOR, size - 2 * _SECTOR)))
        for place in places:
            text = os.pread(descriptor, min(place[6] * _SECTOR, _DESCRIPTOR), min(place[5] * _SECTOR, 1 << 62))
            _check_descriptor(text, place[6])
    except OSError as error:
        raise KvmctlError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    found = qemu_img.info(path, "vmdk")
    others = [one.get("filename") for one in found["format-specific"]["data"]["extents"]]
    if found.get("backing-filename") or len(others) != 1 or Path(str(others[0]).removeprefix("file:")) != path:
        raise RefusedError("a disk refers to other files, which would be this host's", _HINT)
    if found["virtual-size"] != capacity:
        raise UsageError(f"a disk shows {found['virtual-size']} bytes, and was to show {capacity}", _HINT)


def _check_header(data: bytes) -> tuple[int, ...]:
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise UsageError("a disk is no VMDK image that is one file", _HINT)
    found: tuple[int, ...] = _HEADER.unpack_from(data)
    if found[1] not in (1, 2, 3) or not 0 < found[3] < 1 << 51:
        # Without a capacity QEMU takes it for a text that names other files.
        raise UsageError("a disk has a header that no VMDK image has", _HINT)
    return found


def _check_descriptor(text: bytes, sectors: int) -> None:
    if sectors * _SECTOR > _DESCRIPTOR:
        raise UsageError("a disk has a descriptor that no VMDK image has", _HINT)
    for line in text.split(b"\0", 1)[0].decode(errors="replace").splitlines():
        key, _, value = line.partition("=")
        name = key.strip().lower()
        if name == "parentfilenamehint" or (name == "parentcid" and value.strip().lower() != "ffffffff"):
            raise RefusedError("a disk names a parent, which would be one of this host's", _HINT)
