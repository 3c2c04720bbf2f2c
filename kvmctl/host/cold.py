"""Which memory of a guest nobody uses, found out with canaries, and paged out.

Whether a page was touched cannot be read from outside on most kernels: idle page tracking is seldom built in, the
`Referenced` of /proc/PID/smaps stands for a whole mapping, and under KVM the guest's accesses do not show in the
process's page table at all. But a page that is in swap comes back when it is touched, and that can be read. So one
page of each slice of 128 KiB is paged out, a canary: where it is still out some seconds later, the slice is taken for
cold and follows; where it came back, the slice is left alone, each time for longer. To a hot slice this costs one
fault of 32 pages, once.

All that is read is /proc/PID/pagemap. Pages that KSM has merged are mapped several times there, as is the kernel's page
of zeros, and so they are never chosen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Literal

from kvmctl.host import pageout
from kvmctl.host.files import PAGE_SIZE, read_permitted
from kvmctl.host.pagemap import CHUNK, CHUNK_PAGES, IN_SWAP, MAPPED_ONCE, PRESENT, Pagemap
from kvmctl.host.pageout import PROC, Range
from kvmctl.model.errors import NotFoundError

SLICE_PAGES = 32
"""Pages that one canary stands for."""
_SLICES = CHUNK_PAGES // SLICE_PAGES
SLICE = SLICE_PAGES * PAGE_SIZE

SECONDS = 4.0
"""A canary that stays out for so long says that its slice is cold."""
_LEAST_LOOK = 64 << 20
"""Bytes that canaries are put into at least, where anything is wanted at all."""
_LOOK = 3
"""Canaries are put into so many times what is wanted: a third of it being cold suffices."""
_REST = 30.0
"""Seconds for which a slice is left alone after it was seen in use; doubled each time, up to 16 minutes."""
_MOST_REST = 960.0

_TAKEABLE = bytes([PRESENT | MAPPED_ONCE])
_RUN = re.compile(b"\x81+")


@dataclass(slots=True)
class Watch:
    """What is known of one process's memory; lost with this program, which costs a few faults.

    Slices are numbered through all of `chunks`, the addresses of whole 2 MiB pieces. Times are monotonic seconds.
    """

    pid: int
    chunks: tuple[int, ...]
    swapped: int | None = None
    """Bytes in swap after the last step."""
    cursor: int = 0
    """The chunk that is looked at next."""
    canaries: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By slice: which page of its chunk is out, and since when."""
    resting: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By slice that was seen in use: until when it is left alone, and for how many seconds that was."""
    taken: set[int] = field(default_factory=set)
    """Slices that were paged out whole."""
    random: Random = field(default_factory=lambda: Random(0))  # noqa: S311  no secret


@dataclass(frozen=True, slots=True)
class Moved:
    """One step. Bytes, but for the counts of canaries."""

    asked: int
    moved: int
    """What went to swap, canaries too, as the kernel counts it."""
    returned: int
    """What had come back by itself since the last step: the guest uses it. The kernel's count, net of what left."""
    means: Literal["memory.reclaim", "madvise"]
    canaries: int = 0
    """How many are out now."""
    alarmed: int = 0
    """How many came back since the last step: their slices are in use."""


def watch(pid: int, size: int | None = None, proc: Path = PROC) -> Watch:
    """Begin to watch a guest with `size` bytes of memory, and what QEMU has beside it; nothing is touched yet."""
    whole = [
        address
        for start, length in (*pageout.guest_memory(pid, size, proc), *pageout.own_memory(pid, size, proc))
        for address in range(start, start + length - CHUNK + 1, CHUNK)
    ]
    return Watch(pid, tuple(whole))


def step(
    seen: Watch,
    most_bytes: int,
    haste: bool = False,
    merged: bool = True,
    reclaim_file: Path | None = None,
    proc: Path = PROC,
    now: float | None = None,
) -> Moved:
    """Page out at most `most_bytes` of what is known to be cold, and put out canaries for the next step.

    So the first step moves little, and the next moves what the first has found. `haste` takes memory that nothing is
    known of as well, though never what was just seen in use. `reclaim_file` lets the kernel choose instead, unless
    the guest has `merged` pages, which it would take too. Raises as `pageout.pageout`.
    """
    before = pageout.swapped(seen.pid, proc)
    returned = 0 if seen.swapped is None else max(0, seen.swapped - before)
    if reclaim_file and not merged:
        moved = pageout.reclaim(seen.pid, most_bytes, reclaim_file, proc) if most_bytes else 0
        seen.swapped = pageout.swapped(seen.pid, proc)
        return Moved(most_bytes, moved, returned, "memory.reclaim")
    at = time.monotonic() if now is None else now
    with Pagemap(seen.pid, proc) as pages:
        ranges, alarmed = cold_ranges(seen, most_bytes, pages, at)
        left = most_bytes - sum(length for _start, length in ranges)
        if haste and left > 0:
            ranges += _unknown(seen, left, pages, at)
        # Before canaries are chosen: what is still there afterwards of a slice that was taken counts as in use.
        pageout.advise(seen.pid, ranges)
        between = pageout.swapped(seen.pid, proc)
        put = _put(seen, max(_LOOK * most_bytes, _LEAST_LOOK) if most_bytes else 0, pages, at)
    pageout.advise(seen.pid, [one for _slice, one in put])
    seen.swapped = pageout.swapped(seen.pid, proc)
    if put and (seen.swapped - between) * 2 < len(put) * PAGE_SIZE:
        # Swap is full, or off: that a canary is at home says nothing then.
        for number, _range in put:
            seen.canaries.pop(number, None)
    return Moved(most_bytes, max(0, seen.swapped - before), returned, "madvise", len(seen.canaries), alarmed)


def cold_ranges(seen: Watch, most_bytes: int, pages: Pagemap, at: float) -> tuple[list[Range], int]:
    """What the canaries say: memory that is cold, what is cold for longest first, and how many canaries came back.

    A slice beside one that is in use needs twice the time.
    """
    cold: list[tuple[float, int, list[Range], int]] = []
    alarmed = 0
    for chunk, numbers in groupby(sorted(seen.canaries), key=lambda number: number // _SLICES):
        flags = pages.chunk(seen.chunks[chunk])
        slices = list(numbers)
        back = {number for number in slices if flags[seen.canaries[number][0]] & PRESENT}
        alarmed += len(back)
        for number in slices:
            page, since = seen.canaries[number]
            if number in back:
                del seen.canaries[number]
                _rest(seen, number, at)
            elif not flags[page] & IN_SWAP:
                del seen.canaries[number]  # a balloon, or the guest's end, took it
            elif at - since >= SECONDS * (2 if {number - 1, number + 1} & back else 1):
                ranges, length = _ranges(seen, number, flags)
                cold.append((since, number, ranges, length))
    return _first(seen, sorted(cold), most_bytes), alarmed


def _first(seen: Watch, cold: list[tuple[float, int, list[Range], int]], most_bytes: int) -> list[Range]:
    found: list[Range] = []
    for _since, number, ranges, length in cold:
        if length > most_bytes:
            break
        most_bytes -= length
        found += ranges
        del seen.canaries[number]
        seen.taken.add(number)
    return found


def _ranges(seen: Watch, number: int, flags: bytes) -> tuple[list[Range], int]:
    """The pages of a slice that can be taken, and their bytes."""
    address = seen.chunks[number // _SLICES]
    first = number % _SLICES * SLICE_PAGES
    runs = [match.span() for match in _RUN.finditer(flags, first, first + SLICE_PAGES)]
    ranges = [(address + start * PAGE_SIZE, (end - start) * PAGE_SIZE) for start, end in runs]
    return ranges, sum(length for _start, length in ranges)


def _rest(seen: Watch, number: int, at: float) -> None:
    last = seen.resting.get(number, (0.0, _REST / 2))[1]
    seen.resting[number] = (at + min(_MOST_REST, last * 2), min(_MOST_REST, last * 2))


def _visit(seen: Watch, pages: Pagemap, at: float) -> Iterator[tuple[int, bytes]]:
    """Slices of which nothing is known, with their chunk's flags: from the cursor on, each once."""
    for _count in range(len(seen.chunks)):
        chunk = seen.cursor
        flags = pages.chunk(seen.chunks[chunk])
        for number in range(chunk * _SLICES, (chunk + 1) * _SLICES) if _TAKEABLE in flags else ():
            first = number % _SLICES * SLICE_PAGES
            if number in seen.canaries or flags.find(_TAKEABLE, first, first + SLICE_PAGES) < 0:
                continue
            if number in seen.resting and at < seen.resting[number][0]:
                continue
            if number in seen.taken:
                # It was paged out whole, so what is here now came back.
                seen.taken.discard(number)
                _rest(seen, number, at)
                continue
            yield number, flags
        # Not before all of its slices had their turn.
        seen.cursor = (chunk + 1) % len(seen.chunks)


def _put(seen: Watch, most_bytes: int, pages: Pagemap, at: float) -> list[tuple[int, Range]]:
    """Choose canaries in `most_bytes` of memory."""
    found = []
    # Those whose slices there was no room for yet count: they say enough.
    count = most_bytes // SLICE - len(seen.canaries)
    for number, flags in _visit(seen, pages, at) if count > 0 else ():
        first = number % _SLICES * SLICE_PAGES
        page = flags.find(_TAKEABLE, first + seen.random.randrange(SLICE_PAGES), first + SLICE_PAGES)
        if page < 0:
            page = flags.find(_TAKEABLE, first, first + SLICE_PAGES)
        seen.canaries[number] = (page, at)
        found.append((number, (seen.chunks[number // _SLICES] + page * PAGE_SIZE, PAGE_SIZE)))
        if len(found) >= count:
            break
    return found


def _unknown(seen: Watch, most_bytes: int, pages: Pagemap, at: float) -> list[Range]:
    """Memory that nothing is known of, as a last resort."""
    found: list[Range] = []
    for number, flags in _visit(seen, pages, at):
        ranges, length = _ranges(seen, number, flags)
        most_bytes -= length
        if most_bytes < 0:
            break
        found += ranges
        seen.taken.add(number)
    return found


class Pager:
    """Pages guests out, and keeps what it has learned of each process from step to step."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._watched: dict[tuple[int, str], Watch] = {}

    def page_out(self, pid: int, size: int | None, most_bytes: int, haste: bool = False, merged: bool = True) -> Moved:
        """One `step` for the guest of `size` bytes whose QEMU is `pid`; with 0 `most_bytes` only the canaries that are
        out are looked at. Raises as `step`."""
        key = (pid, _started(pid, self._proc))
        if key not in self._watched:
            self._watched = {known: seen for known, seen in self._watched.items() if known[0] != pid}
            self._watched[key] = watch(pid, size, self._proc)
        file = None if merged else pageout.reclaim_file(pid, self._proc)
        return step(self._watched[key], most_bytes, haste, merged, file, self._proc)


def _started(pid: int, proc: Path) -> str:
    """What tells a process from a later one of the same number: field 22 of its `stat`."""
    text = read_permitted(proc / str(pid) / "stat")
    if text is None:
        raise NotFoundError(f"process {pid} is gone", "look at the guest: kvmctl list")
    return text.rpartition(")")[2].split()[19]
