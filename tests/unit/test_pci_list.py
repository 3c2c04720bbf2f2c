"""What is read of a machine's devices, and what is said of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control import pci
from kvmctl.host import pci_net
from kvmctl.host.pci_ids import PciIds
from kvmctl.model.errors import ConflictError, NotFoundError, RefusedError
from kvmctl.model.pci import GuestUse, Use
from tests.pcihost import FUNCTIONS, PCI_IDS, PciHost, desktop, server, server_kernel, virtual
from tests.trees import fill

pytestmark = pytest.mark.unit


def rows(host: PciHost, guests: pci.Guests | None = None) -> dict[str, dict[str, Any]]:
    machine = pci.observe(guests or {}, host.root, host.addresses)
    return {row["name"]: row for row in pci.rows(machine)}


def uses(host: PciHost, address: str) -> set[Use]:
    return set(pci.observe({}, host.root, host.addresses).device(address).uses)


def passes(host: PciHost, guests: pci.Guests | None = None) -> dict[str, str]:
    return {address: row["passthrough"] for address, row in rows(host, guests).items()}


# What there is


def test_a_device_is_read_with_all_that_the_kernel_tells(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    fill(host.root / "usr/share/misc", **{"pci.ids": PCI_IDS})
    found = rows(host)["0000:01:00.0"]
    assert found == {
        "name": "0000:01:00.0", "ids": "10de:2204", "title": "NVIDIA Corporation GA102 [GeForce RTX 3090]",
        "class": "0300", "class_name": "VGA compatible controller", "driver": "nouveau", "numa_node": 0,
        "iommu_group": 1, "passthrough": "group", "reason": "only together with 0000:01:00.1",
        "companions": ["0000:01:00.1"], "uses": [], "guests": [], "vfs_total": None, "vfs": [], "vf_of": None,
        "mdev_types": [], "mdevs": [],
    }  # fmt: skip


def test_devices_come_in_the_order_of_their_numbers_and_large_domains_last(tmp_path: Path) -> None:
    found = list(rows(server(tmp_path)))
    assert found[0] == "0000:00:0e.0"
    assert found[-2:] == ["10000:00:06.0", "10000:01:00.0"]


def test_what_is_not_set_is_none(tmp_path: Path) -> None:
    found = rows(desktop(tmp_path))["0000:03:00.0"]
    assert (found["driver"], found["numa_node"], found["passthrough"]) == (None, None, "yes")


def test_a_machine_without_pci_has_no_devices(tmp_path: Path) -> None:
    assert pci.observe({}, tmp_path).devices == ()


def test_a_device_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"0000:0f:00\.0"):
        pci.observe({}, desktop(tmp_path).root).device("0000:0f:00.0")


def test_names_are_those_of_their_own_vendor_and_class(tmp_path: Path) -> None:
    fill(tmp_path / "usr/share/hwdata", **{"pci.ids": PCI_IDS})
    names = PciIds(tmp_path)
    assert names.device(0x8086, 0x10D3) == "Intel Corporation 82574L Gigabit Network Connection"
    assert names.device(0x10DE, 0x10D3) == "NVIDIA Corporation Not Intel's"
    assert names.device(0x8086, 0x2204) == "Intel Corporation device 2204"
    assert names.device(0x8086, 0xA01F) == "Intel Corporation device a01f"
    assert names.device(0x1234, 0x5678) == "1234:5678"
    assert [names.class_(code) for code in (0x0200, 0x0302, 0x0280)] == [
        "Ethernet controller", "3D controller", "Network controller",
    ]  # fmt: skip


def test_without_pci_ids_there_are_numbers_and_common_classes(tmp_path: Path) -> None:
    fill(tmp_path / "usr/share/misc")
    (tmp_path / "usr/share/misc/pci.ids").touch()
    names = PciIds(tmp_path)
    assert names.device(0x8086, 0x10D3) == "8086:10d3"
    assert (names.class_(0x0108), names.class_(0xFF00)) == ("Non-Volatile memory controller", "class ff00")


# Who uses them


def test_disks_are_found_through_partitions_and_lvm(tmp_path: Path) -> None:
    assert uses(desktop(tmp_path), "0000:00:1f.2") == {
        Use("mount", "/", "dm-0"), Use("mount", "/boot", "sda1"), Use("swap", "/dev/dm-1", "dm-1"),
    }  # fmt: skip


def test_a_disk_behind_vmd_hangs_on_both_and_the_port_between_stays(tmp_path: Path) -> None:
    host = server(tmp_path)
    for address in ("10000:01:00.0", "0000:00:0e.0"):
        assert uses(host, address) == {Use("mount", "/srv", "dm-0")}
        assert rows(host)[address]["passthrough"] == "no"


def test_md_over_two_disks_hangs_on_both(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    for number, address in ((0, "0000:02:00.0"), (1, "0000:03:00.0")):
        host.disk(f"nvme{number}n1", f"259:{number}", host.folder(address) / f"nvme/nvme{number}")
    host.stacked("md0", "9:0", "nvme0n1", "nvme1n1")
    assert uses(host, "0000:03:00.0") == {Use("volume", "md0", "md0")}
    host.stacked("dm-5", "254:5", "md0", title="vg-data")
    assert uses(host, "0000:02:00.0") == {Use("volume", "vg-data", "dm-5")}
    host.mount("254:5", "/data", "/dev/mapper/vg-data")
    assert uses(host, "0000:02:00.0") == {Use("mount", "/data", "dm-5")}


def test_an_nvme_namespace_hangs_on_the_controllers_that_lead_to_it(tmp_path: Path) -> None:
    host = server(tmp_path)
    subsystem = host.root / "sys/devices/virtual/nvme-subsystem/nvme-subsys1"
    for number, address in ((1, "0000:05:00.1"), (2, "0000:07:00.0")):
        controller = host.folder(address) / f"nvme/nvme{number}"
        controller.mkdir(parents=True)
        (subsystem / f"nvme{number}").parent.mkdir(parents=True, exist_ok=True)
        (subsystem / f"nvme{number}").symlink_to(controller)
    host.disk("nvme1n1", "259:8", subsystem)
    host.mount("259:8", "/fast", "/dev/nvme1n1")
    assert Use("mount", "/fast", "nvme1n1") in uses(host, "0000:07:00.0")
    (host.folder("0000:05:00.1") / "nvme/nvme1/nvme1c1n1").mkdir()
    assert Use("mount", "/fast", "nvme1n1") in uses(host, "0000:05:00.1")
    assert uses(host, "0000:07:00.0") == set()


def test_every_disk_of_a_btrfs_counts(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    for name, number, address in (("sdb", "8:16", "0000:02:00.0"), ("sdc", "8:32", "0000:03:00.0")):
        disk = host.disk(name, number, host.folder(address) / "block")
        (host.root / "sys/fs/btrfs/9c2b/devices").mkdir(parents=True, exist_ok=True)
        (host.root / "sys/fs/btrfs/9c2b/devices" / name).symlink_to(disk)
    host.mount("0:45", "/data", "/dev/sdb", "btrfs", top="/@data")
    assert uses(host, "0000:03:00.0") == {Use("mount", "/data", "sdc")}


def test_bind_mounts_do_not_crowd_out_the_mount_itself(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    for number in range(20):
        host.mount("8:1", f"/container/{number}", "/dev/sda1", top=f"/folder/{number}")
    mounted = {use.name for use in uses(host, "0000:00:1f.2") if use.through == "sda1"}
    assert mounted == {"/boot"}


def test_a_bonded_and_bridged_nic_carries_what_is_on_top_of_it(tmp_path: Path) -> None:
    host = server(tmp_path)
    host.nic("bond0")
    host.nic("br0", None, "192.0.2.77")
    host.on_top("bond0", "eno2")
    host.on_top("br0", "bond0")
    host.default_route("br0")
    assert uses(host, "0000:05:00.1") == {
        Use("carries", "bond0", "eno2"), Use("carries", "br0", "eno2"), Use("route", through="br0"),
        Use("address", "192.0.2.77", "br0"),
    }  # fmt: skip


def test_an_ipv6_default_route_counts_and_one_that_rejects_does_not(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    line = "0" * 32 + " 00 " + "0" * 32 + " 00 fd" + "0" * 29 + "1 00000400 00000002 00000000 {} enp2s0"
    fill(host.root / "proc/net", ipv6_route=line.format("00200200"))
    assert uses(host, "0000:02:00.0") == set()
    fill(host.root / "proc/net", ipv6_route=line.format("00000003"))
    assert uses(host, "0000:02:00.0") == {Use("route", through="enp2s0")}


def test_the_firmwares_card_and_a_serial_console_are_consoles(tmp_path: Path) -> None:
    host = server(tmp_path)
    assert uses(host, "0000:06:00.0") == {Use("console")}
    tty = host.folder("0000:05:00.1") / "tty/ttyS4"
    tty.mkdir(parents=True)
    (host.root / "sys/class/tty/console").mkdir(parents=True)
    (host.root / "sys/class/tty/ttyS4").symlink_to(tty)
    (host.root / "sys/class/tty/console/active").write_text("tty0 ttyS4\n")
    assert uses(host, "0000:05:00.1") == {Use("console", through="ttyS4")}


def test_processes_are_named_by_the_guest_that_they_are(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    host.unbind("0000:02:00.0")
    host.bind("0000:02:00.0", "vfio-pci")
    host.process(77, "qemu-system-x86", "/dev/vfio/6", cmdline=("qemu", "-name", "guest=web1,debug-threads=on"))
    assert uses(host, "0000:02:00.0") == {Use("process", "77 (qemu-system-x86 of guest web1)", "/dev/vfio/6")}
    host.process(78, "dd", "/dev/sda2")
    assert Use("process", "78 (dd)", "/dev/sda2") in uses(host, "0000:00:1f.2")


# What is said of each


def test_a_desktop(tmp_path: Path) -> None:
    assert passes(desktop(tmp_path)) == {
        "0000:00:00.0": "no", "0000:00:01.0": "no", "0000:01:00.0": "group", "0000:01:00.1": "group",
        "0000:00:1c.0": "no", "0000:02:00.0": "yes", "0000:03:00.0": "yes", "0000:00:1f.0": "no",
        "0000:00:1f.2": "no", "0000:00:1f.4": "no",
    }  # fmt: skip


def test_a_companion_is_refused_for_what_its_group_holds(tmp_path: Path) -> None:
    reason = rows(desktop(tmp_path / "desktop"))["0000:00:1f.4"]["reason"]
    assert reason.startswith("0000:00:1f.2 is in its group: the host lives on it: / is mounted from it (dm-0)")
    assert "the default route leads through it (eno1)" in rows(server(tmp_path / "server"))["0000:05:00.1"]["reason"]


def test_a_bridge_with_a_driver_of_its_own_keeps_its_group(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    host.device("0000:00:1e.0", "8086:a143", "0601", "lpc_ich", 6)
    found = rows(host)["0000:02:00.0"]
    assert found["passthrough"] == "no"
    assert "lpc_ich" in found["reason"]
    host.unbind("0000:00:1e.0")
    assert rows(host)["0000:02:00.0"]["passthrough"] == "yes"


def test_without_an_iommu_nothing_passes_and_the_switch_is_named(tmp_path: Path) -> None:
    host = virtual(tmp_path)
    machine = pci.observe({}, host.root, host.addresses)
    assert {row["reason"] for row in pci.rows(machine)} == {"this machine has no IOMMU that is switched on"}
    with pytest.raises(RefusedError, match="no IOMMU") as caught:
        pci.plan_bind(["0000:00:03.0"], machine)
    assert "amd_iommu" in caught.value.hint
    assert "itself a guest" in caught.value.hint
    fill(host.root / "proc", cpuinfo="vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx\n")
    assert "intel_iommu=on" in pci.observe({}, host.root).iommu_hint


def test_a_group_that_vfio_made_up_isolates_nothing(tmp_path: Path) -> None:
    host = virtual(tmp_path)
    host.device("0000:00:04.0", "8086:10d3", "0200", "e1000e", group=0)
    assert passes(host)["0000:00:04.0"] == "yes"
    fill(host.root / "sys/kernel/iommu_groups/0", name="vfio-noiommu")
    assert passes(host)["0000:00:04.0"] == "no"


def test_a_physical_function_goes_only_without_its_virtual_ones(tmp_path: Path) -> None:
    host = server(tmp_path)
    assert passes(host)["0000:07:00.0"] == "yes"
    server_kernel(host).write("sys/bus/pci/devices/0000:07:00.0/sriov_numvfs", "4")
    found = rows(host)
    assert found["0000:07:00.0"]["vfs"] == list(FUNCTIONS[:4])
    assert (found["0000:07:10.4"]["vf_of"], found["0000:07:10.4"]["passthrough"]) == ("0000:07:00.0", "yes")
    with pytest.raises(ConflictError, match="4 virtual functions") as caught:
        pci.plan_bind(["0000:07:00.0"], pci.observe({}, host.root, host.addresses))
    assert caught.value.hint == "kvmctl pci vfs 0000:07:00.0 0 removes them"


def test_guests_are_shown_and_only_one_that_runs_keeps_a_device(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    off, on = GuestUse("web1", False, True), GuestUse("web2", True, True)
    assert passes(host, {"0000:02:00.0": [off]})["0000:02:00.0"] == "yes"
    found = rows(host, {"0000:02:00.0": [off, on]})["0000:02:00.0"]
    assert (found["passthrough"], found["reason"]) == ("no", "guest web2 runs with it")
    assert found["guests"][0] == {"name": "web1", "running": False, "managed": True}
    assert passes(host, {"0000:01:00.1": [on]})["0000:01:00.0"] == "no"


# On the machine that runs the tests


def free_disk() -> int | None:
    """A disk that nobody uses, claimed by us until this file is closed."""
    for path in sorted(Path("/dev").glob("loop[0-9]*")):
        try:
            return os.open(path, os.O_RDONLY | os.O_EXCL)
        except OSError:
            continue
    return None


def test_a_disk_that_is_claimed_is_found_by_asking(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    host.disk("sdb", "8:16", host.folder("0000:03:00.0") / "block")
    claimed = Use("claimed", through="sdb")
    file = free_disk()
    if file is None:
        pytest.skip("there is no loop device that may be opened")
    try:
        (host.root / "dev/sdb").unlink()
        (host.root / "dev/sdb").symlink_to(Path(f"/proc/self/fd/{file}").readlink())
        assert claimed in pci.observe({}, host.root, {}, probe=True).device("0000:03:00.0").uses
        assert claimed not in pci.observe({}, host.root, {}).device("0000:03:00.0").uses
    finally:
        os.close(file)
    assert claimed not in pci.observe({}, host.root, {}, probe=True).device("0000:03:00.0").uses


def test_this_machines_addresses_are_those_of_more_than_a_link() -> None:
    found = pci_net.addresses()
    assert "127.0.0.1" in found["lo"]
    assert not any(address.startswith("fe80") or "%" in address for each in found.values() for address in each)
