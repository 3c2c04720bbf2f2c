"""Writes an initramfs: the `newc` cpio format, described in the kernel's documentation under
driver-api/early-userspace/buffer-format.rst."""

import gzip
import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive. `path` is relative, `mode` has the type bits, `device` is (major, minor) of a node."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> Entry:
    """A folder that everybody may enter."""
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, data: bytes) -> Entry:
    """A file that everybody may run."""
    return Entry(path, stat.S_IFREG | 0o755, data)


def character_device(path: str, major: int, minor: int) -> Entry:
    """A device node; writing one into an archive needs no privilege."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The gzipped archive. Equal entries give equal bytes: no clock and no inode of this machine gets in."""
    records = [_record(entry, inode) for inode, entry in enumerate(entries, start=1)]
    records.append(_record(Entry("TRAILER!!!", 0), 0))
    return gzip.compress(b"".join(records), compresslevel=6, mtime=0)


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _pad(header + name) + _pad(entry.data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
