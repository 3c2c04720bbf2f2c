"""What QEMU itself takes of the host's memory for a guest, beside the guest's own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kvmctl.host import pageout
from kvmctl.host.files import PAGE_SIZE, read_permitted
from kvmctl.host.pageout import PROC, Range

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)$", re.MULTILINE)
_NO_MEMORY = ("/dev/", "anon_inode:", "[vsyscall]", "[vvar")
"""Mappings of devices, which the kernel does not count as resident either."""
_LEAST_PART = 16
"""A writable mapping of a file with at least this part of the guest's memory is the guest's."""
_READ_PAGES = 1 << 16
_PRESENT = bytes(byte >> 7 for byte in range(256))
"""Of the highest byte of an entry of /proc/PID/pagemap, whether the page is in memory."""


def overhead(pid: int, size: int, proc: Path = PROC) -> int | None:
    """Bytes resident in the QEMU process of a guest of `size` bytes that are not the guest's memory: programs, heap,
    stacks, and what an emulated CPU's code was translated to. None where the process is gone, or is somebody else's.

    All but the guest's memory is looked through, so that it takes no longer for a large guest.
    """
    found = list(_own(pid, size, proc))
    if not found:
        return None
    try:
        pagemap = os.open(proc / str(pid) / "pagemap", os.O_RDONLY)
    except OSError:
        return None
    try:
        return sum(_resident(pagemap, start, length) for start, length in found)
    except OSError:
        return None  # it ended meanwhile
    finally:
        os.close(pagemap)


def _own(pid: int, size: int, proc: Path) -> Iterator[Range]:
    """What is mapped in the process beside the guest's memory and what can never be resident."""
    mapped = [
        (int(first, 16), int(end, 16) - int(first, 16), mode, name)
        for first, end, mode, name in _MAPPING.findall(read_permitted(proc / str(pid) / "maps") or "")
    ]
    programs = {name for _start, _length, mode, name in mapped if mode[2] == "x"}
    guest = {
        (start, length)
        for start, length, mode, name in mapped
        if name not in programs and _is_backing(length, mode, name, size)
    }
    guest = guest or set(pageout.guest_memory(pid, size, proc))
    for start, length, mode, name in mapped:
        if (start, length) not in guest and mode != "---p" and not name.startswith(_NO_MEMORY):
            yield start, length


def _is_backing(length: int, mode: str, name: str, size: int) -> bool:
    """Whether it is memory of the guest that a file stands behind: memfd, huge pages, or a file of its own."""
    return name.startswith("/") and mode[1] == "w" and length >= size // _LEAST_PART


def _resident(pagemap: int, start: int, length: int) -> int:
    pages, first = length // PAGE_SIZE, start // PAGE_SIZE
    found = 0
    for done in range(0, pages, _READ_PAGES):
        entries = os.pread(pagemap, 8 * min(_READ_PAGES, pages - done), 8 * (first + done))
        # Words of 64 bits, of which both architectures that QEMU runs on here write the highest byte last.
        found += entries[7::8].translate(_PRESENT).count(1)
    return found * PAGE_SIZE
