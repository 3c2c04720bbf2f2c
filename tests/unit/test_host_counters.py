"""Where the kernel counts what a guest's threads run and wait, on each layout, and that what is gone is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.host.cgroup import Mount
from kvmctl.host.counters import Counters, place, read

pytestmark = pytest.mark.unit

V1 = "machine/qemu-1-web1.libvirt-qemu"
V2 = "machine.slice/machine-qemu\\x2d1\\x2dweb1.scope"


def fill(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def threads(root: Path, groups: Path, tasks: str) -> None:
    """Two vCPUs of process 7, and what the kernel says of their threads; the tenth comes after the second."""
    for number, tid in ((0, 71), (10, 72)):
        fill(groups / f"vcpu{number}" / tasks, f"{tid}\n")
        fill(root / f"proc/7/task/{tid}/schedstat", f"{tid}000 {number}5 3\n")
    fill(groups / "emulator" / tasks, "7\n")


def hybrid(root: Path, *accounting: Mount) -> tuple[Mount, ...]:
    fill(root / "proc/7/cgroup", f"4:cpu:/{V1}/emulator\n0::/{V1}/emulator\n")
    threads(root, root / "cpu" / V1, "tasks")
    return (Mount(root / "cpu", "/", 1, frozenset({"cpu"})), *accounting)


def test_v1_counts_in_the_accounting_hierarchy(tmp_path: Path) -> None:
    visible = hybrid(tmp_path, Mount(tmp_path / "acct", "/", 1, frozenset({"cpuacct"})))
    fill(tmp_path / "acct" / V1 / "cpuacct.usage", "12345\n")
    found = place(7, visible, tmp_path / "proc")
    assert found
    assert read(found) == Counters(12345, (71000, 72000), (5, 105))


def test_a_hybrid_host_may_count_in_the_unified_hierarchy_alone(tmp_path: Path) -> None:
    visible = hybrid(
        tmp_path,
        Mount(tmp_path / "acct", "/", 1, frozenset({"cpuacct"})),
        Mount(tmp_path / "unified", "/", 2, frozenset()),
    )
    fill(tmp_path / "unified" / V1 / "cpu.stat", "usage_usec 17\nuser_usec 9\n")
    found = place(7, visible, tmp_path / "proc")
    assert found
    assert read(found) == Counters(17_000, (71000, 72000), (5, 105))


def test_v2_counts_in_the_scope(tmp_path: Path) -> None:
    fill(tmp_path / "proc/7/cgroup", f"0::/{V2}/libvirt/emulator\n")
    fill(tmp_path / "unified/cgroup.controllers", "cpu memory\n")
    threads(tmp_path, tmp_path / "unified" / V2 / "libvirt", "cgroup.threads")
    fill(tmp_path / "unified" / V2 / "cpu.stat", "usage_usec 17\n")
    found = place(7, (Mount(tmp_path / "unified", "/", 2, frozenset()),), tmp_path / "proc")
    assert found
    assert found.directory == tmp_path / "unified" / V2
    assert read(found) == Counters(17_000, (71000, 72000), (5, 105))


def test_what_is_gone_is_unknown(tmp_path: Path) -> None:
    visible = hybrid(tmp_path, Mount(tmp_path / "acct", "/", 1, frozenset({"cpuacct"})))
    usage = tmp_path / "acct" / V1 / "cpuacct.usage"
    fill(usage, "12345\n")
    found = place(7, visible, tmp_path / "proc")
    assert found
    (tmp_path / "proc/7/task/72/schedstat").unlink()
    assert read(found) is None
    fill(tmp_path / "proc/7/task/72/schedstat", "1 2 3")
    usage.unlink()
    assert read(found) is None
    assert place(8, visible, tmp_path / "proc") is None
