"""Files of a folder that somebody else filled: read without following what leads out of it, or waits for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmctl.model.errors import KvmctlError, UnreachableError, UsageError

CHUNK = 1 << 20


@contextmanager
def opened(folder: Path, name: str) -> Iterator[int]:
    """A descriptor of the plain file `name`, which may lie in folders of the folder.

    Raises UsageError where it is not there, or where it or a folder on the way to it is a link, a device or the like;
    UnreachableError where it may not be read.
    """
    *folders, last = name.split("/")
    at = _open(folder, os.O_DIRECTORY, None)
    try:
        for part in folders:
            inner = _open(part, os.O_DIRECTORY | os.O_NOFOLLOW, at, folder / name)
            os.close(at)
            at = inner
        # A pipe without a writer would be waited for without end.
        descriptor = _open(last, os.O_NOFOLLOW | os.O_NONBLOCK, at, folder / name)
    finally:
        os.close(at)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{folder / name} is not a plain file", "nothing else is taken")
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path | str, flags: int, at: int | None, whole: Path | None = None) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=at)
    except OSError as error:
        kind = UnreachableError if isinstance(error, PermissionError) else UsageError
        raise kind(
            f"cannot read {whole or path}: {error.strerror}", "links, devices and the like are not taken"
        ) from error


def content(folder: Path, name: str, most: int) -> bytes:
    """The whole of a small file. Raises as `opened`, and UsageError where it has more than `most` bytes."""
    found = b"".join(pieces(folder, name, most + 1))
    if len(found) > most:
        raise UsageError(f"{folder / name} has more than the {most} bytes that it can have", "it was tampered with")
    return found


def pieces(folder: Path, name: str, most: int) -> Iterator[bytes]:
    """What is in a file, of `most` bytes at most, in order. Raises as `opened`, KvmctlError where reading fails."""
    with opened(folder, name) as descriptor:
        left = most
        while left:
            try:
                piece = os.read(descriptor, min(CHUNK, left))
            except OSError as error:
                raise KvmctlError(f"cannot read {folder / name}: {error.strerror}") from error
            if not piece:
                return
            left -= len(piece)
            yield piece
