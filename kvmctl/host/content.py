"""How much of a guest's memory holds anything: pages of zeroes, and pages that it has never touched, are not sent when
it moves to another host."""

from __future__ import annotations

import os
from pathlib import Path

from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.pageout import guest_memory

SAMPLES = 4096
"""Pages that are looked at: of a half-filled guest the estimate is right within 2 %, in a few milliseconds."""
_PROC = Path("/proc")
_PRESENT, _SWAPPED = 1 << 63, 1 << 62
"""Documentation/admin-guide/mm/pagemap.rst"""


def content(pid: int, size: int, samples: int = SAMPLES, proc: Path = _PROC) -> int | None:
    """Bytes of the memory of a guest of `size` bytes that hold anything but zeroes, from a sample at equal distances;
    None where its memory cannot be seen, being shared, or another user's."""
    ranges = guest_memory(pid, size, proc)
    pages = sum(length for _start, length in ranges) // PAGE_SIZE
    if not pages:
        return None
    step = max(1, pages // samples)
    seen = filled = 0
    try:
        with (proc / str(pid) / "pagemap").open("rb") as table, (proc / str(pid) / "mem").open("rb") as memory:
            for start, length in ranges:
                for address in range(start, start + length, step * PAGE_SIZE):
                    seen += 1
                    filled += _is_filled(table.fileno(), memory.fileno(), address)
    except OSError:
        return None
    return min(size, round(pages * PAGE_SIZE * filled / seen))


def _is_filled(table: int, memory: int, address: int) -> bool:
    entry = int.from_bytes(os.pread(table, 8, address // PAGE_SIZE * 8), "little")
    if entry & _SWAPPED:
        return True
    # Reading a page that is not there would make one.
    return bool(entry & _PRESENT) and any(os.pread(memory, PAGE_SIZE, address))
