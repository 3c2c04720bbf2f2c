"""A folder for what is not whole yet, beside where it is to come, so that giving it its name takes no copy."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError
from kvmctl.model.units import human_size

PREFIX = ".kvmctl-"
"""What the names of such folders begin with."""
KEPT_FREE = 64 << 20
"""Bytes that are left free on a file system, beside what is known to come."""
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems without hard links answer; vfat and exFAT say EPERM."""
_NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h


@contextmanager
def staging(parent: Path, what: str, mode: int = 0o700) -> Iterator[Path]:
    """An empty folder in `parent`, gone after the block with all that is in it. What killed runs left goes first.

    Whoever has one holds a lock on it, which the kernel takes away from a process that ends. Raises KvmctlError.
    """
    sweep(parent, what)
    try:
        path, held = _made(parent, what)
        path.chmod(mode)
    except OSError as error:
        raise KvmctlError(
            f"cannot make a folder in {parent}: {error.strerror}", f"look at it: ls -ld {parent}"
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _made(parent: Path, what: str) -> tuple[Path, int]:
    while True:
        path = parent / f"{PREFIX}{what}-{os.urandom(6).hex()}"
        path.mkdir(mode=0o700)
        # Until it is locked, another's sweep takes it for one that was left: then make another.
        with suppress(FileNotFoundError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(held, fcntl.LOCK_EX)
            if path.exists():
                return path, held
            os.close(held)


def sweep(parent: Path, what: str) -> None:
    """Remove the folders that killed runs left in `parent`."""
    for path in parent.glob(f"{PREFIX}{what}-*"):
        with suppress(OSError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


def check_room(folder: Path, size: int) -> None:
    """Raise RefusedError where `size` bytes do not fit in the file system of a folder."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise KvmctlError(f"cannot look at {folder}: {error.strerror}") from error
    free = found.f_bavail * found.f_frsize
    if size + KEPT_FREE > free:
        raise RefusedError(
            f"{human_size(size)} are needed in {folder}, and {human_size(free)} are free",
            f"make room: df -h {folder}",
        )


def name(temporary: Path, final: Path) -> None:
    """Give a file that is whole its name, and its content to the disk before. Raises ConflictError where the name is
    taken: unlike a rename it replaces nothing."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _move(temporary, final)
    except FileExistsError as error:
        raise ConflictError(f"{final} exists already", "give another name, or delete it yourself") from error
    except OSError as error:
        hint = (
            "make room: df -h" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"look at it: ls -ld {final.parent}"
        )
        raise KvmctlError(f"cannot write {final}: {error.strerror}", hint) from error


def _move(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        temporary.unlink()
        return
    number = _rename_new(temporary, final)
    if number in _NO_FLAG:
        # Some FUSE file systems have neither. Whoever else wants the name by O_EXCL or a link is refused from here on.
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        try:
            temporary.rename(final)
        except BaseException:
            final.unlink(missing_ok=True)
            raise
    elif number:
        raise OSError(number, os.strerror(number), str(final))


def _rename_new(temporary: Path, final: Path) -> int:
    """renameat2(2) that replaces nothing; its error number, 0 where it has done it."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return errno.ENOSYS
    done = call(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(final), _RENAME_NOREPLACE)
    return ctypes.get_errno() if done else 0
