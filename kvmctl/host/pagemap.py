"""/proc/PID/pagemap: what the kernel has of each page of a process, of it the highest byte of each entry."""

from __future__ import annotations

import os
from pathlib import Path

from kvmctl.host.files import PAGE_SIZE
from kvmctl.model.errors import NotFoundError, UnreachableError

CHUNK_PAGES = 512
CHUNK = CHUNK_PAGES * PAGE_SIZE
"""Bytes that are looked at in one go: with pages of 4 KiB, as many as a huge page has."""

PRESENT, IN_SWAP, MAPPED_ONCE = 0x80, 0x40, 0x01
"""Bits 63, 62 and 56 of an entry (Documentation/admin-guide/mm/pagemap.rst)."""


class Pagemap:
    """The pagemap of one process. Raises NotFoundError where that is gone, UnreachableError for who may not look."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._path = proc / str(pid) / "pagemap"

    def __enter__(self) -> Pagemap:
        try:
            self._file = os.open(self._path, os.O_RDONLY)
        except PermissionError as error:
            raise UnreachableError(f"cannot read {self._path}: permission denied", "run this as root") from error
        except OSError as error:
            raise NotFoundError(
                f"cannot read {self._path}: {error.strerror}", "look at the guest: kvmctl list"
            ) from error
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)

    def chunk(self, address: int) -> bytes:
        """A byte for each page of one chunk; entries are 64-bit words, and both architectures that QEMU/KVM runs on
        here write the highest byte last."""
        try:
            found = os.pread(self._file, CHUNK_PAGES * 8, address // PAGE_SIZE * 8)
        except OSError:
            found = b""  # the process is gone
        return found[7::8].ljust(CHUNK_PAGES, b"\0")
