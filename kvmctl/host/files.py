"""Files: read without surprises, replaced atomically, and kernel files written and read back."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from kvmctl.host import where
from kvmctl.model.errors import KvmctlError, UnreachableError, UsageError

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of one page of this kernel."""

# What the kernel answers for a file that is not there, a process that ended while it was read, and
# a figure that this kernel was booted or built without.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP})

MOST_WRITTEN = (1 << 20) + 1
"""Bytes that are read of a file that people write: one more than it may have, so that its reader can say so."""


def read_text(path: Path) -> str | None:
    """The whole file as text, None where there is none. Raises UnreachableError where it may not be
    read, KvmctlError where reading fails; bytes that are not UTF-8 are replaced."""
    try:
        return _read_whole(path).decode(errors="replace")
    except PermissionError as error:
        raise UnreachableError(f"cannot read {path}: permission denied", "run this as root") from error
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KvmctlError(f"cannot read {path}: {error.strerror}") from error


def _read_whole(path: Path) -> bytes:
    # A tick reads a dozen small files for each guest: Python's own files take three times as long to be opened.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = []
        while part := os.read(descriptor, 1 << 16):
            found.append(part)
        return b"".join(found)
    finally:
        os.close(descriptor)


def read_written(path: Path, what: str) -> bytes | None:
    """What is in a file that people write, `MOST_WRITTEN` bytes at most; None where there is none.

    Raises UsageError that calls it `what` where it cannot be read, or is something else.
    """
    try:
        # A pipe without a writer would be waited for without end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, what, error.strerror) from error
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind)):
            raise _unreadable(path, what, "it is not a file")
        return os.read(descriptor, MOST_WRITTEN)
    except OSError as error:
        raise _unreadable(path, what, error.strerror) from error
    finally:
        os.close(descriptor)


def _unreadable(path: Path, what: str, reason: str | None) -> UsageError:
    return UsageError(f"cannot read {what} {path}: {reason}", f"look at it: ls -ld {path}")


def is_folder(path: Path) -> bool:
    """Whether there is a folder, as far as one may look: who may not is told so by what opens it."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises instead


def check_readable(folder: Path) -> None:
    """Look whether what is in a folder can be seen, where there is one. Raises UnreachableError where that is not
    permitted, KvmctlError where it fails."""
    try:
        os.scandir(folder).close()
    except PermissionError as error:
        raise UnreachableError(f"cannot read {folder}: permission denied", "run this as root") from error
    except OSError as error:
        if error.errno not in _ABSENT:
            raise KvmctlError(f"cannot read {folder}: {error.strerror}", "name another folder") from error


Stamp = tuple[int, int, int]


def stamp(path: str | Path) -> Stamp | None:
    """What tells this file from another that replaces it by a rename; None where there is none to be seen."""
    try:
        found = os.stat(path)  # noqa: PTH116  nothing is put together for it, see read_figures
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


_STATX_BTIME = 0x800
_STATX_BYTES = 256
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100


def birth(path: str | Path) -> str | None:
    """What tells this file from every other that ever has its name, whatever is written to it: a file system gives an
    inode to the next file once its own is gone, but not at the same moment. None where there is no such file, or its
    file system keeps no time of birth. Source: statx(2), linux/stat.h."""
    import ctypes
    import struct

    call = getattr(ctypes.CDLL(None), "statx", None)
    found = ctypes.create_string_buffer(_STATX_BYTES)
    name = ctypes.c_char_p(os.fsencode(path))
    if call is None or call(_AT_FDCWD, name, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, found):
        return None
    # stx_mask first, stx_ino at 32, stx_btime at 80: seconds and nanoseconds.
    (mask,), (inode,) = struct.unpack_from("=I", found, 0), struct.unpack_from("=Q", found, 32)
    seconds, nanoseconds = struct.unpack_from("=qI", found, 80)
    return f"{inode}@{seconds}.{nanoseconds:09}" if mask & _STATX_BTIME else None


def read_permitted(path: Path) -> str | None:
    """As `read_text`, but None too where this user may not read: for figures that are shown if known."""
    try:
        return read_text(path)
    except UnreachableError:
        return None


def read_figures(path: str | Path) -> bytes | None:
    """A small file that the kernel makes up as a whole when it is read, such as /proc/PID/stat; None where it is
    absent, forbidden, or its process ended.

    A tick reads a dozen for each guest, so these are read at once, and no path has to be put together for them.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 1 << 14)
        finally:
            os.close(descriptor)
    except OSError:
        return None


def read_int(path: str | Path) -> int | None:
    """The integer a kernel file holds; None where the file is absent, forbidden or holds something else."""
    text = read_figures(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def first_bytes(path: Path | str, count: int) -> bytes:
    """The first `count` bytes of a file, fewer where it is shorter, none where it is absent.

    Raises UnreachableError where it may not be read, KvmctlError where reading fails.
    """
    try:
        # A pipe without a writer would be waited for without end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(descriptor, count)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _ABSENT:
            return b""
        kind = UnreachableError if isinstance(error, PermissionError) else KvmctlError
        raise kind(f"cannot read {path}: {error.strerror}") from error


def write_atomic(path: Path, content: bytes | str, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` so that a reader, or a crash, finds either all of the old file or all of the new. Unless it is
    to be `durable`, that need not hold for a crash of the whole machine: to wait for a disk takes seconds at times.

    Raises KvmctlError; `path` is then unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _replace(path, data, mode, durable)
    except OSError as error:
        raise KvmctlError(f"cannot write {path}: {error.strerror}", _write_hint(error, path)) from error


def _replace(path: Path, data: bytes, mode: int, durable: bool) -> None:
    # Not tempfile: it imports as much as all the rest of a short command.
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def append_bounded(path: Path, text: str, most: int) -> None:
    """Append to a file that only its owner can read. Past `most` bytes it becomes `.old`, and a new one begins.

    Raises KvmctlError.
    """
    try:
        make_private_directory(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(text.encode())
            size = file.tell()
        if size > most:
            path.replace(path.with_suffix(".old"))
    except OSError as error:
        raise KvmctlError(f"cannot write {path}: {error.strerror}", _write_hint(error, path)) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_hint(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some space on the file system of {path.parent}: df -h {path.parent}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "run this as root"
    return f"look at the folder: ls -ld {path.parent}"


def make_private_directory(path: Path) -> None:
    """Make a folder that only its owner can enter, with the parents it needs. Raises KvmctlError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KvmctlError(f"cannot make the folder {path}: {error.strerror}", _write_hint(error, path)) from error


def write_kernel(path: Path, value: str) -> str:
    """Write `value` to a /proc, /sys or cgroup file and return what it holds afterwards, stripped.

    Raises KvmctlError with the kernel's reason where it does not take the value.
    """
    try:
        path.write_text(value)
    except OSError as error:
        hint = "run this as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise KvmctlError(f"the kernel did not take {value!r} for {path}: {error.strerror}", hint) from error
    found = read_text(path)
    if found is None:
        raise KvmctlError(f"{path} was gone after it was written")
    return found.strip()


def state_directory() -> Path:
    """Where kvmctl remembers what it changed: KVMCTL_STATE_DIR, else /var/lib/kvmctl for root."""
    return Path(where.state())


def run_directory() -> Path:
    """Where locks are held: KVMCTL_RUN_DIR, else /run/kvmctl for root, else the user's own runtime folder."""
    if wanted := os.environ.get("KVMCTL_RUN_DIR"):
        return Path(wanted)
    if os.geteuid() == 0:
        return Path("/run/kvmctl")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "kvmctl" if runtime else state_directory()
