"""QEMU's own memory is told from the guest's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.host import overhead as module
from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.overhead import overhead
from tests.holder import MIB, Holder, holder

pytestmark = pytest.mark.unit

HERE, AWAY = bytes(7) + b"\x81", bytes(8)


@pytest.fixture
def real() -> Iterator[Holder]:
    with holder(hot=4, cold=12) as found:
        yield found


def resident(pid: int, start: int) -> tuple[int, int]:
    """What the kernel itself says is resident in the mapping at an address, and in the whole process."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    found = {int(m[1], 16): int(m[2]) * 1024 for m in re.finditer(r"^([0-9a-f]+)-.*?^Rss:\s+(\d+)", text, re.M | re.S)}
    return found[max(first for first in found if first <= start)], sum(found.values())


def test_it_is_what_the_kernel_has_resident_beside_the_guests_memory(real: Holder) -> None:
    guest, total = resident(real.pid, real.hot.start)
    assert guest >= real.size
    # Pages may come and go meanwhile: the process goes over its memory.
    assert overhead(real.pid, real.size) == pytest.approx(total - guest, abs=MIB // 2)


def test_of_a_process_that_is_gone_nothing_is_known(tmp_path: Path) -> None:
    assert overhead(1, 64 * MIB, tmp_path) is None


MAPS = """\
1000-3000 r-xp 00000000 fe:01 123 /usr/bin/qemu-system-x86_64
60000000-62000000 rw-p 00000000 fe:01 123 /usr/bin/qemu-system-x86_64
4000-5000 rw-p 00000000 00:00 0 [heap]
10000000-14000000 {mode} 00000000 00:01 99 {name}
20000000-20002000 rwxp 00000000 00:00 0
20002000-30000000 ---p 00000000 00:00 0
40000000-40001000 rw-s 00000000 00:0f 7 anon_inode:kvm-vcpu:0
50000000-50001000 rw-s 00000000 00:06 8 /dev/vfio/1
"""


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("rw-p", ""),
        ("rw-s", "/memfd:memory-backend-memfd (deleted)"),
        ("rw-p", "/memfd:memory-backend-memfd (deleted)"),
        ("rw-s", "/var/lib/libvirt/qemu/ram/1-guest/pc.ram"),
        ("rw-p", "/dev/hugepages/libvirt/qemu/1-guest/x (deleted)"),
    ],
)
def test_whatever_stands_behind_the_guests_memory(tmp_path: Path, mode: str, name: str) -> None:
    text = MAPS.format(mode=mode, name=name)
    if not name:
        text = text.replace("00:01 99", "00:00 0")
    process = tmp_path / "7"
    process.mkdir()
    (process / "maps").write_text(text)
    with (process / "pagemap").open("wb") as file:
        for address in (
            0x1000,
            0x4000,
            0x10000000,
            0x13FFF000,
            0x20001000,
            0x20002000,
            0x40000000,
            0x50000000,
            0x60000000,
        ):
            file.seek(address // PAGE_SIZE * 8)
            file.write(HERE)
    assert overhead(7, 64 * MIB, tmp_path) == 4 * PAGE_SIZE


@settings(max_examples=50)
@given(st.text(max_size=300), st.binary(max_size=64))
def test_whatever_the_files_hold_there_is_an_answer(
    tmp_path_factory: pytest.TempPathFactory, text: str, pages: bytes
) -> None:
    process = tmp_path_factory.mktemp("proc") / "7"
    process.mkdir()
    (process / "maps").write_text(f"{text}\n1000-3000 rw-p 0 00:00 0\n")
    (process / "pagemap").write_bytes(pages)
    found = overhead(7, 64 * MIB, process.parent)
    assert found is not None
    assert 0 <= found <= 2 * PAGE_SIZE + len(text) * PAGE_SIZE


def test_pages_are_counted_across_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_PAGES", 3)
    process = tmp_path / "7"
    process.mkdir()
    (process / "maps").write_text("0-8000 rw-p 00000000 00:00 0\n")
    (process / "pagemap").write_bytes((HERE + AWAY + HERE) * 3)
    assert overhead(7, 64 * MIB, tmp_path) == 5 * PAGE_SIZE
