"""How much of a process's memory holds anything: real memory of this process and a child's."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from kvmctl.host.content import content
from kvmctl.host.files import PAGE_SIZE

pytestmark = pytest.mark.unit
SIZE = 512 << 20


@pytest.fixture(scope="module")
def memory() -> mmap.mmap:
    """Memory of which a quarter holds something, a quarter zeroes, and the rest was never touched."""
    made = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, SIZE // 8, PAGE_SIZE):
        made[offset] = 1
        made[offset + SIZE // 8] = 0
    return made


def test_an_eighth_is_filled(memory: mmap.mmap) -> None:
    before = Path("/proc/self/status").read_text()
    found = content(os.getpid(), SIZE)
    assert found is not None
    assert found == pytest.approx(SIZE / 8, rel=0.03)
    assert _resident(before) + 2048 > _resident(Path("/proc/self/status").read_text()), "looking made no pages"


def test_a_process_that_cannot_be_seen() -> None:
    assert content(os.getpid(), 1 << 50) in (None, 0)
    assert content(2**22 + 1, SIZE) is None


def _resident(status: str) -> int:
    return int(status.partition("VmRSS:")[2].split()[0])
