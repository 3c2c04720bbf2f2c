"""Transparent huge pages of which a guest has given back a part, through its balloon or by reporting free pages.

The kernel keeps such a page whole, with the parts that nobody has mapped any more, until it is short of memory itself
("deferred split", mm/huge_memory.c): nothing says that they are free, and no start can count on them. It splits the
page at once, and frees those parts, where it is told that what is left of it is cold (MADV_COLD). That moves nothing
and swaps nothing; it only has what is left looked at earlier when the kernel itself looks for something to reclaim.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kvmctl.host import pageout
from kvmctl.host.pagemap import CHUNK, CHUNK_PAGES, PRESENT, Pagemap
from kvmctl.host.pageout import PROC, Range
from kvmctl.model.errors import KvmctlError

REST = 30.0
"""Seconds for which a guest is left alone after it was looked at."""
BUDGET = 0.1
"""Seconds after which the guests that are left wait for the next tick: half a GiB takes 10 ms."""
_THERE = bytes(flags & PRESENT != 0 for flags in range(256))


def parts(pid: int, size: int, proc: Path = PROC) -> list[Range]:
    """Where the memory of a guest of `size` bytes has some pages of a huge page's place, and not all. Raises
    NotFoundError where the process is gone, UnreachableError for who may not look."""
    found: list[Range] = []
    with Pagemap(pid, proc) as pages:
        for start, length in pageout.guest_memory(pid, size, proc):
            first = -(-start // CHUNK) * CHUNK
            places = range(first, start + length - CHUNK + 1, CHUNK)
            found += [
                (place, CHUNK) for place in places if 0 < pages.chunk(place).translate(_THERE).count(1) < CHUNK_PAGES
            ]
    return found


def split(pid: int, size: int, proc: Path = PROC) -> None:
    """Have the kernel free what is left over of a guest's huge pages. Raises as `parts` and `pageout.advise`."""
    pageout.advise(pid, parts(pid, size, proc), pageout.COLD)


class Splitter:
    """Does so for many guests, one after another, and remembers when it has been each one's turn."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._looked: dict[int, float] = {}

    def split(self, guests: dict[int, int], budget: float = BUDGET) -> None:
        """For these guests, process and bytes of memory, as far as it was not done of late and there is time: who has
        waited for longest first. One that cannot be helped is passed over."""
        self._looked = {pid: at for pid, at in self._looked.items() if pid in guests}
        begun = time.monotonic()
        for pid in self._due(guests, begun):
            self._looked[pid] = begun
            try:
                split(pid, guests[pid], self._proc)
            except KvmctlError:
                continue  # it is gone, or this kernel cannot
            if time.monotonic() - begun > budget:
                return

    def _due(self, guests: dict[int, int], now: float) -> Iterator[int]:
        waiting = sorted(guests, key=lambda pid: self._looked.get(pid, 0.0))
        return (pid for pid in waiting if now - self._looked.get(pid, -REST) >= REST)
