"""Huge pages of which a part was given back: found in a real process; the kernel frees what is left over of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmctl.host import thp
from kvmctl.host.pagemap import CHUNK
from kvmctl.host.thp import Splitter
from kvmctl.model.errors import NotFoundError
from tests.conftest import cannot
from tests.support import until

pytestmark = pytest.mark.unit

MIB = 1 << 20
SIZE = 64 * MIB
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
GIVER = f"""
import ctypes, mmap, sys
held = mmap.mmap(-1, {SIZE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, {SIZE}, 4096):
    held[at] = 7
first = -ctypes.addressof(ctypes.c_char.from_buffer(held)) % {CHUNK}
for at in range(first, {SIZE} - {CHUNK} + 1, {CHUNK}):
    held.madvise(mmap.MADV_DONTNEED, at, {CHUNK // 2})
print("given", flush=True)
sys.stdin.read()
here = [held[at] for at in range(first + {CHUNK // 2}, {SIZE} - {CHUNK} + 1, {CHUNK})]
print(set(here), flush=True)
"""


@pytest.fixture
def giver() -> Iterator[subprocess.Popen[str]]:
    """A process that holds huge pages, and has given back half of each."""
    if not ENABLED.exists() or "[never]" in ENABLED.read_text():
        cannot("this kernel gives no huge pages")
    with subprocess.Popen(
        [sys.executable, "-c", GIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "given\n"
            yield process
        finally:
            process.kill()


def splits() -> int:
    """How many huge pages the kernel has split since it was booted."""
    text = Path("/proc/vmstat").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("thp_split_page ")))


def test_what_is_left_over_is_freed_and_what_is_held_stays(giver: subprocess.Popen[str]) -> None:
    found = thp.parts(giver.pid, SIZE)
    assert len(found) >= SIZE // CHUNK - 2
    assert all(start % CHUNK == 0 and length == CHUNK for start, length in found)
    before = splits()
    Splitter().split({giver.pid: SIZE})
    # Not all were huge: the kernel gives what it has.
    until(lambda: splits() - before, lambda count: count > SIZE // CHUNK // 4, 10, "huge pages that were split")
    assert giver.communicate("")[0] == "{7}\n"


def test_a_process_that_is_gone_is_passed_over(giver: subprocess.Popen[str]) -> None:
    giver.kill()
    giver.wait()
    with pytest.raises(NotFoundError):
        thp.split(giver.pid, SIZE)
    Splitter().split({giver.pid: SIZE})


def test_everybody_has_a_turn_and_then_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    monkeypatch.setattr(thp, "split", lambda pid, size, proc: turns.append(pid))
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    splitter, guests = Splitter(), {11: SIZE, 12: SIZE, 13: SIZE}
    splitter.split(guests, budget=-1.0)
    splitter.split(guests, budget=-1.0)
    assert turns == [11, 12], "no time was left for more than one each"
    splitter.split(guests)
    assert turns == [11, 12, 13]
    clock[0] += thp.REST + 1
    splitter.split({12: SIZE, 14: SIZE})
    assert turns[3:] == [14, 12], "who has never been looked at comes first"
