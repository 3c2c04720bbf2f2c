"""One kvmctl at a time changes one hypervisor."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from kvmctl.host.files import make_private_directory, read_permitted, run_directory
from kvmctl.model.errors import KvmctlError, LockedError, UnreachableError

HOST = "host"
"""The lock of what belongs to the machine rather than to one hypervisor: KSM, journal."""
_MAX_NAME = 200
_RETRY_SECONDS = 0.05


def lock_file(uri: str) -> Path:
    """The lock file of a hypervisor. Distinct URIs have distinct files."""
    name = quote(uri, safe="")
    if len(name) > _MAX_NAME:
        from hashlib import sha256

        name = f"{name[:100]}-{sha256(uri.encode(errors='replace')).hexdigest()}"
    return run_directory() / f"{name}.lock"


@contextmanager
def lock(uri: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of `uri`, waiting at most `wait` seconds for it.

    The kernel releases it when the holder ends, however it ends. Raises LockedError naming the holder.
    """
    with _held(lock_file(uri), uri, wait):
        yield


@contextmanager
def lock_all(wait: float = 0.0) -> Iterator[None]:
    """Hold the machine's lock, and that of every hypervisor that kvmctl has changed from here since boot.

    Raises as `lock`; `wait` is for each of them.
    """
    with ExitStack() as stack:
        # Other locks than a hypervisor's have a name that is no URI.
        for path in sorted(run_directory().glob(f"*{quote(':')}*.lock")):
            stack.enter_context(_held(path, unquote(path.stem), wait))
        # Last, as a run that holds a hypervisor's takes it.
        stack.enter_context(lock(HOST, wait))
        yield


@contextmanager
def _held(path: Path, what: str, wait: float) -> Iterator[None]:
    make_private_directory(path.parent)
    with _open(path) as file:
        _take(file, what, path, wait)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {_command()}\n".encode(errors="replace"), 0)
        try:
            yield
        finally:
            os.ftruncate(file, 0)


def holder(uri: str) -> str | None:
    """Who holds the lock of `uri` now, as `process 123 (kvmctl apply …)`; None if nobody does."""
    path = lock_file(uri)
    if not read_permitted(path):
        # Empty since the last holder let go. Trying it as well could make a kvmctl that starts now fail.
        return None
    with _open(path) as file:
        return None if _try(file) else _read_holder(path)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        raise UnreachableError(f"cannot open the lock file {path}: {error.strerror}", "run this as root") from error
    except OSError as error:
        hint = f"look at the folder: ls -ld {path.parent}"
        raise KvmctlError(f"cannot open the lock file {path}: {error.strerror}", hint) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(file: int, what: str, path: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while not _try(file):
        if time.monotonic() >= deadline:
            waited = f" (waited {wait:g} s)" if wait else ""
            raise LockedError(
                f"{_read_holder(path)} is changing {what}{waited}",
                "try again when it is done; kvmctl list needs no lock",
            )
        time.sleep(_RETRY_SECONDS)


def _try(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(path: Path) -> str:
    pid, _, command = (read_permitted(path) or "").strip().partition(" ")
    return f"process {pid} ({command})" if pid else "another kvmctl"


def _command() -> str:
    return " ".join(["kvmctl", *sys.argv[1:]])[:200].replace("\n", " ")
