"""`kvmctl pci` on the machine that runs the tests, whatever it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.host.journal import Journal, boot_id
from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

KEYS = [
    "name", "ids", "title", "class", "class_name", "driver", "numa_node", "iommu_group", "passthrough", "reason",
    "companions", "uses", "guests", "vfs_total", "vfs", "vf_of", "mdev_types", "mdevs",
]  # fmt: skip
SYS = Path("/sys/bus/pci/devices")
HERE = sorted(path.name for path in SYS.iterdir()) if SYS.is_dir() else []
ABSENT = "ffff:ff:1f.7"

needs_devices = pytest.mark.skipif(not HERE, reason="this machine has no PCI devices")


def test_the_list_is_that_of_the_kernel(kvmctl: Kvmctl) -> None:
    rows = kvmctl("pci", "list", "-o", "json").json()
    assert sorted(row["name"] for row in rows) == HERE
    for row in rows:
        assert list(row) == KEYS
        assert row["ids"] == ":".join((SYS / row["name"] / one).read_text()[2:6] for one in ("vendor", "device"))
        driver = SYS / row["name"] / "driver"
        assert row["driver"] == (driver.resolve().name if driver.exists() else None)
    assert kvmctl("pci", "list", "-o", "name").out.split() == [row["name"] for row in rows]


@needs_devices
def test_the_table_has_a_line_for_each(kvmctl: Kvmctl) -> None:
    lines = kvmctl("pci", "list").out.splitlines()
    assert lines[0].split()[:5] == ["ADDRESS", "GROUP", "NODE", "DRIVER", "PASS"]
    assert sorted(line.split()[0] for line in lines[1:]) == HERE


@needs_devices
def test_filters_leave_out_the_others(kvmctl: Kvmctl) -> None:
    rows = kvmctl("pci", "list", "-o", "json").json()
    base = rows[0]["class"]
    found = kvmctl("pci", "list", "--class", base, "-o", "json").json()
    assert [row["name"] for row in found] == [row["name"] for row in rows if row["class"] == base]
    assert kvmctl("pci", "list", "--group", 10**6, "-o", "json").json() == []


@pytest.mark.parametrize("verb", [("bind",), ("release",), ("vfs", "1")])
@pytest.mark.parametrize(("address", "code"), [("nonsense", 2), ("01:00.8", 2), ("", 2), (ABSENT, 3)])
def test_malformed_and_absent_addresses(kvmctl: Kvmctl, verb: tuple[str, ...], address: str, code: int) -> None:
    ran = kvmctl("pci", verb[0], "--dry-run", "--", address, *verb[1:], code=code)
    assert ran.out == ""
    assert (repr(address) if code == 2 else address) in ran.err


def test_wrong_numbers_of_functions_are_usage_errors(kvmctl: Kvmctl) -> None:
    for count in ("-1", "four", "1.5", ""):
        kvmctl("pci", "vfs", "--", "01:00.0", count, code=2)
    kvmctl("pci", "bind", code=2)


def test_another_machines_devices_are_out_of_reach(kvmctl: Kvmctl) -> None:
    for words in (("list",), ("bind", "01:00.0"), ("release", "01:00.0"), ("vfs", "01:00.0", "1")):
        ran = kvmctl("-c", "qemu+ssh://elsewhere/system", "pci", *words, code=5)
        assert "is not on this machine" in ran.err


@pytest.mark.skipif(any((SYS / name / "iommu_group").exists() for name in HERE), reason="this machine has an IOMMU")
@needs_devices
def test_without_an_iommu_binding_is_refused_with_what_to_switch_on(kvmctl: Kvmctl) -> None:
    rows = kvmctl("pci", "list", "-o", "json").json()
    assert {row["passthrough"] for row in rows} == {"no"}
    free = [row["name"] for row in rows if not row["class"].startswith("06")]
    ran = kvmctl("pci", "bind", "--dry-run", "--yes", free[0], code=5)
    assert "iommu" in ran.err.lower()
    assert "vfio" in ran.err


@needs_devices
def test_restoring_settles_what_a_killed_run_had_begun(kvmctl: Kvmctl, state: Path) -> None:
    link = SYS / HERE[0] / "driver"
    driver = link.resolve().name if link.exists() else "none"
    devices = {one: {"driver": driver, "override": "", "known": False} for one in (HERE[0], ABSENT)}
    journal = Journal(state / "journal.json")
    journal.begin("pci-driver", HERE[0], {"action": "bind", "devices": devices, "boot": boot_id()})
    journal.begin("sriov", ABSENT, {"old": 0, "new": 4, "known": False, "boot": boot_id()})
    planned = kvmctl("host", "restore", "--dry-run", "-o", "json", code=10).json()
    assert [(row["name"], row["result"]) for row in planned if row["name"] == HERE[0]] == [(HERE[0], "pending")]
    assert len(journal.unfinished()) == 2
    done = kvmctl("host", "restore", "-o", "json").json()
    assert [(row["kind"], row["name"], row["found"]) for row in done] == [("pci-driver", HERE[0], driver)]
    assert journal.unfinished() == ()
