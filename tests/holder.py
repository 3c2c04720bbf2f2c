"""A process that holds memory as a guest's QEMU does: one part in use, one that nobody touches, one equal throughout.

Run as a program it takes their sizes in MiB, says `ready`, and goes over the first until its standard input ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_PAGE = mmap.PAGESIZE
_MERGEABLE = 12
_PAUSE = 0.1


@dataclass(frozen=True)
class Holder:
    """Such a process; addresses of its parts."""

    pid: int
    hot: range
    cold: range
    same: range

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return len(self.hot) + len(self.cold) + len(self.same)

    def flags(self, part: range) -> bytes:
        """The highest byte of each page's entry in its pagemap."""
        with Path(f"/proc/{self.pid}/pagemap").open("rb", buffering=0) as file:
            file.seek(part.start // _PAGE * 8)
            return file.read(len(part) // _PAGE * 8)[7::8]

    def in_swap(self, part: range) -> int:
        """Pages of a part that are in swap."""
        return sum(bool(flag & 0x40) for flag in self.flags(part))


@contextlib.contextmanager
def holder(hot: int, cold: int, same: int = 0) -> Iterator[Holder]:
    """Start one with parts of so many MiB, and end it."""
    words = [sys.executable, __file__, str(hot), str(cold), str(same)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            start = int(process.stdout.readline())
            first, second = start + hot * MIB, start + (hot + cold) * MIB
            last = second + same * MIB
            yield Holder(process.pid, range(start, first), range(first, second), range(second, last))
        finally:
            process.stdin.close()
            process.wait()


def _main(hot: int, cold: int, same: int) -> None:
    import ctypes

    memory = mmap.mmap(-1, (hot + cold + same) * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for position in range(0, (hot + cold) * MIB, MIB):
        memory[position : position + MIB] = os.urandom(MIB)
    if same:
        memory.madvise(_MERGEABLE, (hot + cold) * MIB, same * MIB)
        memory[(hot + cold) * MIB :] = (b"kvmctl" + bytes(_PAGE - 6)) * (same * MIB // _PAGE)
    print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
    while not select.select([sys.stdin], [], [], _PAUSE)[0]:
        memory[0 : hot * MIB : _PAGE]


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
