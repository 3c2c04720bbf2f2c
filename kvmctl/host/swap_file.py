"""A file to swap to: whether its place is fit for one, made whole or not at all, and deleted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kvmctl.host import swap
from kvmctl.host.files import read_permitted
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.units import human_size

KEPT_FREE = 0.05
"""The part of a file system that a swap file leaves free."""

_NO_SWAP_FILES = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs", "zfs", "fuse", "fuseblk", "9p"})
"""File systems on which the kernel refuses every swap file, or which do not promise what one needs."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def is_made(path: Path) -> bool:
    """Whether there is a swap file that kvmctl made."""
    try:
        status = path.lstat()
    except OSError:
        return False
    plain = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
    return plain and swap.header(path)[0] == swap.LABEL


def check_name(path: Path, size: int) -> bool:
    """Whether the file is there already, kvmctl's own and `size` bytes long. Raises ConflictError where it is another,
    UsageError for a path that is not written in full."""
    if not path.is_absolute() or ".." in path.parts or not str(path).isprintable():
        raise UsageError(f"{str(path)!r} is not an absolute path", "write it in full, beginning with / and without ..")
    if not os.path.lexists(path):
        return False
    if not is_made(path):
        hint = "give another path" + (", or delete it yourself" if path.is_file() and not path.is_symlink() else "")
        raise ConflictError(f"{path} exists, and kvmctl did not make it", hint)
    found = path.lstat().st_size
    if found != size:
        raise ConflictError(
            f"{path} is a swap file of {human_size(found)} already",
            f"kvmctl swap disable {path}, then enable it with the size that you want",
        )
    return True


def check_place(path: Path, size: int) -> None:
    """Raise NotFoundError without its folder, RefusedError where that is no place for a swap file of `size` bytes."""
    folder = path.parent
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", f"make it: mkdir -m 700 {folder}")
    _check_owner(folder.resolve())
    kind = file_system(folder)
    if kind.partition(".")[0] in _NO_SWAP_FILES:
        raise RefusedError(
            f"{folder} is on {kind}, which cannot be swapped to", "choose a folder on ext4 or xfs, or use --zram"
        )
    found = os.statvfs(folder)
    if not found.f_blocks:
        raise RefusedError(f"{folder} is on {kind}, which has no room for files", "choose a folder on ext4 or xfs")
    free, kept = found.f_bavail * found.f_frsize, round(found.f_blocks * found.f_frsize * KEPT_FREE)
    if size + kept > free:
        raise RefusedError(
            f"{human_size(free)} are free on the file system of {folder}, and {human_size(size)} for swap would leave "
            f"less than {human_size(kept)} of it",
            f"at most {human_size(max(0, free - kept))}, or make room: df -h {folder}",
        )


def _check_owner(folder: Path) -> None:
    """Others could put a file of theirs in the place of this one, and so read and write what is swapped."""
    for part in (folder, *folder.parents):
        status = part.stat()
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()) or others:
            raise RefusedError(f"others than root may change what is in {part}", "choose a folder that is root's alone")


def file_system(folder: Path, proc: Path = Path("/proc")) -> str:
    """The type of the file system that a folder is on, as /proc/self/mountinfo names it; empty where it does not."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (read_permitted(proc / "self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2:3] == [wanted]:
            return after.partition(" ")[0]
    return ""


def make(path: Path, temporary: Path, size: int, uuid: str) -> None:
    """Make the file under its temporary name, and give it its own when it is whole. Raises KvmctlError."""
    try:
        file = os.open(temporary, _FLAGS, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
            swap.write_header(file, size, uuid)
        finally:
            os.close(file)
        # Unlike a rename it does not replace a file that has come there meanwhile.
        os.link(temporary, path)
        temporary.unlink()
    except FileExistsError as error:
        raise ConflictError(f"{path} exists, and kvmctl did not make it", "give another path") from error
    except OSError as error:
        hint = f"look at the folder: df -h {path.parent}; ls -ld {path.parent}"
        raise KvmctlError(f"cannot make {path}: {error.strerror}", hint) from error


def delete(path: Path) -> None:
    """Delete a file of kvmctl's; one that is gone is fine. Raises KvmctlError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KvmctlError(f"cannot delete {path}: {error.strerror}", f"look at it: ls -la {path.parent}") from error
