import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.process import find_guests, sample
from kvmctl.model.units import MIB
from kvmctl.policy.memory import kept_in_place

pytestmark = pytest.mark.unit

UUID = "302ee087-116f-4579-b971-b29bd0c9f82b"
OTHER = "11111111-2222-3333-4444-555555555555"
STATUS = "Name:\tqemu-system-x86\nVmPeak:\t 1487156 kB\nVmRSS:\t   39776 kB\nRssAnon:\t 1 kB\nVmSwap:\t     128 kB\n"


def process(proc: Path, pid: int, *arguments: str, **files: str) -> Path:
    directory = proc / str(pid)
    directory.mkdir(parents=True)
    (directory / "cmdline").write_text("".join(f"{argument}\0" for argument in arguments))
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def test_guests_are_found_by_the_uuid_on_their_command_line(tmp_path: Path) -> None:
    process(tmp_path, 10, "/usr/bin/qemu-system-x86_64", "-name", "guest=web1", "-uuid", UUID, "-m", "64")
    process(tmp_path, 11, "/usr/libexec/qemu-kvm", "-uuid", OTHER)
    process(tmp_path, 12, "sleep", "60")
    process(tmp_path, 13)
    (tmp_path / "meminfo").touch()
    assert find_guests([UUID], tmp_path) == {UUID: 10}
    assert find_guests([OTHER.upper(), UUID], tmp_path) == {OTHER.upper(): 11, UUID: 10}
    assert find_guests([], tmp_path) == {}


def test_a_command_line_that_only_ends_in_the_option_is_nobody(tmp_path: Path) -> None:
    process(tmp_path, 10, "qemu", "-uuid")
    process(tmp_path, 11, "-uuid", UUID[:-1])
    assert find_guests([UUID], tmp_path) == {}


def test_of_two_with_one_uuid_the_one_in_a_guests_cgroup_is_taken(tmp_path: Path) -> None:
    cpu = tmp_path / "cgroup"
    (cpu / "machine/qemu-1-web1.libvirt-qemu").mkdir(parents=True)
    process(tmp_path / "proc", 1, "init")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(f"32 31 0:29 / {cpu} rw - cgroup cgroup rw,cpu\n")
    process(tmp_path / "proc", 10, "impostor", "-uuid", UUID, cgroup="1:cpu:/user\n")
    process(tmp_path / "proc", 20, "qemu", "-uuid", UUID, cgroup="1:cpu:/machine/qemu-1-web1.libvirt-qemu/emulator\n")
    assert find_guests([UUID], tmp_path / "proc") == {UUID: 20}


def test_sizes_are_bytes_and_ksm_as_the_kernel_counts_it(tmp_path: Path) -> None:
    stat = "ksm_rmap_items 76800\nksm_zero_pages 0\nksm_merging_pages 20000\nksm_process_profit 77004800\n"
    process(tmp_path, 10, "qemu", status=STATUS, ksm_stat=stat)
    found = sample(10, tmp_path)
    assert found is not None
    assert (found.rss, found.swapped) == (39776 * 1024, 128 * 1024)
    assert (found.ksm_merging_pages, found.ksm_process_profit) == (20000, 77004800)
    assert (found.weight, found.quota) == (None, None)


def test_what_cannot_leave_memory_is_told_apart(tmp_path: Path) -> None:
    process(tmp_path, 10, "qemu", status=f"{STATUS}VmLck:\t  0 kB\nVmPin:\t  300000 kB\nHugetlbPages:\t  2048 kB\n")
    found = sample(10, tmp_path)
    assert found is not None
    assert (found.locked, found.hugetlb) == (300000 * 1024, 2 * MIB)
    assert "it is locked" in kept_in_place(found, 384 * MIB)
    assert kept_in_place(found, 1024 * MIB) == "", "QEMU may lock a little of its own"
    assert "huge pages" in kept_in_place(replace(found, locked=0, hugetlb=384 * MIB), 384 * MIB)
    assert kept_in_place(None, 384 * MIB) == kept_in_place(found, None) == ""


def test_a_process_with_locked_memory_says_so() -> None:
    code = "import ctypes, mmap; m = mmap.mmap(-1, 8 << 20); print(ctypes.CDLL(None).mlockall(1), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as real:
        assert real.stdout is not None
        assert real.stdout.readline() == b"0\n"
        found = sample(real.pid)
        assert found is not None
        assert (found.locked or 0) > 8 * MIB
        assert "it is locked" in kept_in_place(found, 8 * MIB)
        real.kill()


def test_an_older_kernels_profit_is_computed_by_its_formula(tmp_path: Path) -> None:
    process(tmp_path, 10, "qemu", status=STATUS, ksm_stat="ksm_rmap_items 1000\n", ksm_merging_pages="300\n")
    found = sample(10, tmp_path)
    assert found is not None
    assert (found.ksm_merging_pages, found.ksm_process_profit) == (300, 300 * PAGE_SIZE - 1000 * 64)


def test_a_kernel_without_ksm_figures_leaves_them_unknown(tmp_path: Path) -> None:
    process(tmp_path, 10, "qemu", status=STATUS)
    found = sample(10, tmp_path)
    assert found is not None
    assert (found.ksm_merging_pages, found.ksm_process_profit) == (None, None)


def test_a_process_that_ended_is_none_and_one_that_is_ending_has_no_sizes(tmp_path: Path) -> None:
    assert sample(10, tmp_path) is None
    process(tmp_path, 10, "qemu", status="Name:\tqemu\nState:\tZ (zombie)\n")
    found = sample(10, tmp_path)
    assert found is not None
    assert (found.rss, found.swapped) == (None, None)
