"""Page-out without swap: what is chosen of a real process, and what the kernel is asked. The move itself is tested with
real swap."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmctl.host import cold, pageout
from kvmctl.host.cold import SLICE, SLICE_PAGES, Watch
from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.pagemap import Pagemap
from kvmctl.host.pageout import guest_memory
from kvmctl.model.errors import NotFoundError
from tests.holder import Holder, holder
from tests.trees import PID, fill, plain_host, systemd_host

pytestmark = pytest.mark.unit

MIB = 1 << 20
BASE = 0x7F0000000000
CHUNK = 2 * MIB
HERE, MERGED, SWAPPED, SHARED = 0x81, 0x80, 0x40, 0xA1
MAPS = """\
555500000000-555500800000 r-xp 00000000 fe:00 1234                       /usr/bin/qemu-system-x86_64
555501000000-555503000000 rw-p 00000000 00:00 0                          [heap]
7e0000000000-7e0040000000 rwxp 00000000 00:00 0
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
7f0030000000-7f0038000000 rw-p 00000000 00:00 0                          [anon:glibc: malloc arena]
7f0040000000-7f0060000000 rw-s 00000000 00:01 77                         /memfd:shared (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def entry(flag: int) -> bytes:
    return struct.pack("<Q", flag << 56)


class Process:
    """/proc of one process with one mapping, whose pagemap is a sparse file."""

    def __init__(self, proc: Path, chunks: int = 1) -> None:
        self.proc = proc
        self.folder = fill(proc / str(PID), status="Name:\tqemu\nVmSwap:\t       0 kB", stat=f"{PID} (q) S" + " 0" * 30)
        self.map = self.folder / "pagemap"
        self.map.touch()
        self.chunks = tuple(BASE + number * CHUNK for number in range(chunks))

    def set(self, page: int, flags: list[int]) -> None:
        with self.map.open("r+b") as file:
            file.seek((BASE // PAGE_SIZE + page) * 8)
            file.write(b"".join(map(entry, flags)))

    def swap(self, kib: int) -> None:
        fill(self.folder, status=f"Name:\tqemu\nVmSwap:\t {kib} kB")

    def watch(self) -> Watch:
        return Watch(PID, self.chunks)


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path / "proc", chunks=2)


@pytest.fixture
def real() -> Iterator[Holder]:
    with holder(hot=4, cold=12) as found:
        yield found


def put(process: Process, seen: Watch, most: int, at: float = 0.0) -> dict[int, int]:
    """The canaries that would be put out: slice and page of it."""
    with Pagemap(PID, process.proc) as pages:
        chosen = cold._put(seen, most, pages, at)
    return {number: (start - BASE) // PAGE_SIZE for number, (start, _length) in chosen}


def ask(process: Process, seen: Watch, at: float, most: int = 1 << 30) -> tuple[list[pageout.Range], int]:
    with Pagemap(PID, process.proc) as pages:
        return cold.cold_ranges(seen, most, pages, at)


# The guest's memory among QEMU's own


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (512 * MIB, ((0x7F0000000000, 512 * MIB),)),
        (None, ((0x7F0000000000, 512 * MIB),)),
        (511 * MIB, ((0x7F0000000000, 512 * MIB),)),
        (640 * MIB, ((0x7F0000000000, 512 * MIB), (0x7F0030000000, 128 * MIB))),
        (8192 * MIB, ((0x7F0000000000, 512 * MIB),)),
        (16 * MIB, ()),
    ],
)
def test_the_guests_memory_is_found_by_its_size(
    tmp_path: Path, size: int | None, expected: tuple[pageout.Range, ...]
) -> None:
    fill(tmp_path / str(PID), maps=MAPS)
    assert guest_memory(PID, size, tmp_path) == expected


def test_a_real_process_has_its_memory_where_it_says(real: Holder) -> None:
    ((start, length),) = guest_memory(real.pid, real.size)
    assert start <= real.hot.start
    assert start + length >= real.cold.stop
    assert set(real.flags(real.cold)) == {HERE}


def test_a_process_that_is_gone_is_not_found() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert guest_memory(ended.pid) == ()
    with pytest.raises(NotFoundError, match="is gone"):
        pageout.swapped(ended.pid)
    with pytest.raises(NotFoundError, match="is gone"):
        pageout.advise(ended.pid, [(BASE, PAGE_SIZE)])
    with pytest.raises(NotFoundError):
        cold.Pager().page_out(ended.pid, None, MIB)


def test_ranges_that_are_not_mapped_are_passed_over(real: Holder) -> None:
    holes = [(PAGE_SIZE * number, PAGE_SIZE) for number in range(1, 2000, 2)]
    inside = [(real.cold.start + PAGE_SIZE * number, PAGE_SIZE) for number in range(0, 2000, 2)]
    mixed = [one for pair in zip(holes, inside, strict=False) for one in pair]
    assert len(mixed) > 1024
    assert pageout.pageout(real.pid, 1 << 30, mixed) == pageout.swapped(real.pid)


def test_no_more_is_asked_for_than_is_wanted() -> None:
    ranges = [(0, 3 * PAGE_SIZE), (MIB, 5 * PAGE_SIZE), (2 * MIB, PAGE_SIZE)]
    assert pageout._cut(ranges, 5 * PAGE_SIZE + 17) == [(0, 3 * PAGE_SIZE), (MIB, 2 * PAGE_SIZE)]
    assert pageout._cut(ranges, 0) == []


# Canaries


def test_one_page_of_each_slice_is_put_out_and_none_of_merged_shared_or_absent_ones(process: Process) -> None:
    process.set(0, [HERE] * SLICE_PAGES + [MERGED] * SLICE_PAGES + [SHARED] * SLICE_PAGES + [0] * SLICE_PAGES)
    process.set(4 * SLICE_PAGES, [MERGED] * 7 + [HERE] + [SWAPPED] * (SLICE_PAGES - 8))
    found = put(process, process.watch(), CHUNK)
    assert sorted(found) == [0, 4]
    assert found[0] < SLICE_PAGES
    assert found[4] == 4 * SLICE_PAGES + 7


def test_no_more_canaries_are_out_than_the_wish_needs(process: Process) -> None:
    process.set(0, [HERE] * 1024)
    seen = process.watch()
    assert len(put(process, seen, 5 * SLICE)) == 5
    assert put(process, seen, 5 * SLICE) == {}
    assert len(put(process, seen, 9 * SLICE)) == 4
    assert len(seen.canaries) == 9


def test_a_slice_whose_canary_stayed_out_is_cold_but_for_what_is_merged(process: Process) -> None:
    process.set(0, [SWAPPED] + [HERE] * 9 + [MERGED] * 2 + [HERE] * 20)
    seen = process.watch()
    seen.canaries[0] = (0, 100.0)
    assert ask(process, seen, at=100.0 + cold.SECONDS / 2) == ([], 0)
    assert ask(process, seen, at=100.0 + cold.SECONDS) == (
        [(BASE + PAGE_SIZE, 9 * PAGE_SIZE), (BASE + 12 * PAGE_SIZE, 20 * PAGE_SIZE)],
        0,
    )
    assert (seen.canaries, seen.taken) == ({}, {0})


def test_a_slice_whose_canary_came_back_is_left_alone_each_time_for_longer(process: Process) -> None:
    process.set(0, [HERE] * SLICE_PAGES)
    seen = process.watch()
    at, rests = 0.0, []
    for _time in range(8):
        assert put(process, seen, CHUNK, at)
        assert ask(process, seen, at + cold.SECONDS) == ([], 1)
        until, rest = seen.resting[0]
        assert put(process, seen, CHUNK, until - 0.1) == {}
        rests.append(rest)
        at = until
    assert rests == [30, 60, 120, 240, 480, 960, 960, 960]


def test_beside_a_slice_in_use_it_takes_twice_the_time(process: Process) -> None:
    process.set(0, [SWAPPED] + [HERE] * (SLICE_PAGES - 1) + [HERE] * SLICE_PAGES)
    seen = process.watch()
    seen.canaries = {0: (0, 0.0), 1: (SLICE_PAGES, 0.0)}
    assert ask(process, seen, at=cold.SECONDS) == ([], 1)
    assert ask(process, seen, at=cold.SECONDS * 2)[0] == [(BASE + PAGE_SIZE, 31 * PAGE_SIZE)]


def test_what_is_cold_for_longest_goes_first_and_the_rest_waits(process: Process) -> None:
    process.set(0, ([SWAPPED] + [HERE] * (SLICE_PAGES - 1)) * 3)
    seen = process.watch()
    seen.canaries = {0: (0, 3.0), 1: (SLICE_PAGES, 1.0), 2: (2 * SLICE_PAGES, 2.0)}
    ranges, _back = ask(process, seen, at=60.0, most=2 * SLICE)
    assert [(start - BASE) // SLICE for start, _length in ranges] == [1, 2]
    assert set(seen.canaries) == {0}


def test_a_canary_that_the_guest_gave_away_says_nothing(process: Process) -> None:
    process.set(0, [0] + [HERE] * (SLICE_PAGES - 1))
    seen = process.watch()
    seen.canaries[0] = (0, 0.0)
    assert ask(process, seen, at=60.0) == ([], 0)
    assert (seen.canaries, seen.resting) == ({}, {})


def test_what_was_taken_and_came_back_counts_as_in_use(process: Process) -> None:
    process.set(0, [SWAPPED] * 16 + [HERE] * 16)
    seen = process.watch()
    seen.taken.add(0)
    assert put(process, seen, CHUNK, at=10.0) == {}
    assert seen.resting[0][0] == 40.0
    assert list(put(process, seen, CHUNK, at=41.0)) == [0]


def test_all_of_memory_is_looked_at_in_turn(process: Process) -> None:
    process.set(0, [HERE] * 1024)
    seen = process.watch()
    found: set[int] = set()
    for step in range(8):
        found |= set(put(process, seen, 5 * SLICE, at=step))
        seen.taken |= set(seen.canaries)
        seen.canaries.clear()
    assert found == set(range(32))


def test_without_swap_canaries_stay_at_home_and_say_nothing(real: Holder) -> None:
    if pageout.swapped(real.pid) or Path("/proc/swaps").read_text().count("\n") > 1:
        pytest.skip("this host swaps")
    pager = cold.Pager()
    for _time in range(2):
        moved = pager.page_out(real.pid, real.size, 4 * MIB)
        assert (moved.moved, moved.canaries, moved.alarmed) == (0, 0, 0)


# memory.reclaim


def test_only_a_unified_host_reclaims_by_control_group(tmp_path: Path) -> None:
    v1, v2 = plain_host(tmp_path / "v1"), systemd_host(tmp_path / "v2")
    v1.process("2:cpu:/machine/qemu-1-web1.libvirt-qemu/emulator", "0::/machine/qemu-1-web1.libvirt-qemu")
    v2.process("0::/machine.slice/machine-qemu\\x2d1\\x2dweb1.scope/libvirt/emulator")
    own = v2.top / "cgroup/machine.slice/machine-qemu\\x2d1\\x2dweb1.scope"
    assert pageout.reclaim_file(PID, v2.proc) is None
    (own / "memory.reclaim").touch()
    assert pageout.reclaim_file(PID, v2.proc) == own / "memory.reclaim"
    assert pageout.reclaim_file(PID, v1.proc) is None


def test_the_kernel_chooses_where_nothing_is_merged(process: Process) -> None:
    file = process.proc / "memory.reclaim"
    file.touch()
    seen = process.watch()
    moved = cold.step(seen, 3 * MIB, merged=False, reclaim_file=file, proc=process.proc)
    assert (moved.means, moved.moved, moved.asked) == ("memory.reclaim", 0, 3 * MIB)
    assert file.read_text() == f"{3 * MIB} swappiness=200"
    process.swap(2048)
    cold.step(seen, 0, merged=False, reclaim_file=file, proc=process.proc)
    process.swap(512)
    moved = cold.step(seen, 0, merged=False, reclaim_file=file, proc=process.proc)
    assert moved.returned == 1536 * 1024


def test_a_file_that_is_gone_is_a_guest_that_is_gone(process: Process) -> None:
    with pytest.raises(NotFoundError, match="is gone"):
        pageout.reclaim(PID, MIB, process.proc / "nothing/memory.reclaim", process.proc)


def test_a_process_that_started_anew_is_watched_anew(process: Process) -> None:
    pager = cold.Pager(process.proc)
    for start in ("1", "1", "2"):
        fill(process.folder, stat=f"{PID} (a b) c) S" + " 0" * 18 + f" {start} 0", maps=MAPS)
        pager.page_out(PID, 512 * MIB, 0)
    assert list(pager._watched) == [(PID, "2")]
    assert os.getpid() != PID
