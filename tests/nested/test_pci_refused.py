"""What is refused on a machine with an IOMMU, and what is put back after failures, crashes and by `host restore`."""

from __future__ import annotations

import pytest

from tests.nested.support import Nested, hostdev

pytestmark = pytest.mark.nested

KILLED = """
import os, signal, sys
sys.path[:0] = ["/opt/kvmctl", "/usr/local/lib/python3/dist-packages"]
from kvmctl.host import pci_kernel
real, left = pci_kernel.Kernel.write, int(sys.argv.pop(1))
def write(self, *words, **more):
    global left
    real(self, *words, **more)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
pci_kernel.Kernel.write = write
from kvmctl.__main__ import main
main()
"""
"""kvmctl, killed just after it has written to the kernel as often as its first argument says."""


def test_a_group_that_the_host_needs_is_refused_with_its_members_named(nested: Nested) -> None:
    rows = nested.rows()
    disk, *others = sorted(
        (one for one in rows if one.startswith("0000:00:1f.")), key=lambda one: rows[one]["class"] != "0106"
    )
    assert {rows[one]["iommu_group"] for one in (disk, *others)} == {rows[disk]["iommu_group"]}
    assert rows[disk]["passthrough"] == "no"
    before = nested.drivers()
    for words in ((), ("--yes",), ("--dry-run",)):
        refused = nested.kvmctl("pci", "bind", disk, *words, code=5)
        bridge = next(one for one in others if rows[one]["class"] == "0601")
        assert bridge in refused.err
        assert "ISA bridge" in refused.err
    assert nested.drivers() == before


def test_a_mounted_disk_and_the_way_in_are_refused(nested: Nested) -> None:
    disk = nested.devices.sriov
    name = nested.disk_name(disk)
    nested.sh(f"mkfs.ext4 -qF /dev/{name} && mkdir -p /mnt/spare && mount /dev/{name} /mnt/spare")
    try:
        refused = nested.kvmctl("pci", "bind", disk, "--yes", code=5)
        assert "/mnt/spare is mounted from it" in refused.err
        assert "default route" in nested.kvmctl("pci", "bind", nested.devices.own, "--yes", code=5).err
    finally:
        nested.sh("umount /mnt/spare")
    assert nested.driver(disk) == "nvme"


def test_bad_addresses_have_their_exit_codes(nested: Nested) -> None:
    assert "not a PCI address" in nested.kvmctl("pci", "bind", "01:00", code=2).err
    assert "there is no PCI device 0000:7f:00.0" in nested.kvmctl("pci", "bind", "7f:00.0", code=3).err


def kill_in_bind(nested: Nested, card: str, writes: int) -> None:
    killed = nested.try_sh(f"python3 - {writes} pci bind {card}", stdin=KILLED.encode())
    assert killed.code in (137, 255)
    # The order alone, then no driver, then vfio-pci without a word in the journal that all is done.
    assert (nested.override(card), nested.driver(card)) == ("vfio-pci", ["e1000e", "", "vfio-pci"][writes - 1])


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_bind_that_was_killed_is_undone_by_restore(nested: Nested, writes: int) -> None:
    card = nested.devices.e1000e
    kill_in_bind(nested, card, writes)
    (row,) = nested.kvmctl("host", "restore", "-o", "json").json()
    assert (row["kind"], row["result"]) == ("pci-driver", "changed")
    assert (nested.override(card), nested.driver(card)) == ("(null)", "e1000e")


def test_a_bind_that_was_killed_is_settled_by_the_next_run(nested: Nested) -> None:
    card = nested.devices.e1000e
    kill_in_bind(nested, card, 2)
    assert "a run that was interrupted had" in nested.kvmctl("pci", "bind", card).err
    assert nested.driver(card) == "vfio-pci"
    nested.kvmctl("pci", "release", card)
    assert (nested.override(card), nested.driver(card)) == ("(null)", "e1000e")


def test_host_restore_gives_back_what_was_bound_and_made(nested: Nested) -> None:
    card, disk = nested.devices.e1000e, nested.devices.sriov
    before = nested.drivers()
    nested.kvmctl("pci", "bind", card)
    nested.kvmctl("pci", "vfs", disk, 1)
    rows = nested.kvmctl("host", "restore", "-o", "json").json()
    assert {(row["kind"], row["result"]) for row in rows} == {("pci-driver", "changed"), ("sriov", "changed")}
    assert nested.drivers() == before


def test_two_guests_cannot_have_one_device(nested: Nested) -> None:
    card = nested.devices.e1000e
    nested.kvmctl("pci", "bind", card)
    first = nested.guest("first", card)
    second = nested.guest("second", card, start=False)
    refused = nested.kvmctl("start", second, code=None)
    assert refused.code
    assert first in refused.err
    row = nested.rows()[card]
    assert [(guest["name"], guest["running"]) for guest in row["guests"]] == [(first, True), (second, False)]


def test_what_libvirt_has_bound_itself_is_seen_and_left_to_it(nested: Nested) -> None:
    card = nested.devices.e1000e
    # What a guest had before, that kvmctl gave it, libvirt is not to take for bound for ever.
    nested.kvmctl("pci", "bind", card)
    nested.stop(nested.guest("before", card))
    nested.kvmctl("pci", "release", card)
    guest = nested.guest("managed", card, managed=True)
    row = nested.rows()[card]
    assert row["driver"] == "vfio-pci"
    assert {"name": guest, "running": True, "managed": True} in row["guests"]
    assert guest in nested.kvmctl("pci", "release", card, code=4).err
    nested.stop(guest)
    assert nested.driver(card) == "e1000e"


def test_a_device_is_plugged_into_a_running_guest_and_out_again(nested: Nested) -> None:
    disk = nested.devices.nvme
    nested.kvmctl("pci", "bind", disk)
    guest = nested.guest("hot")
    nested.ask(guest, "! ls /dev/nvme0n1 2>/dev/null")
    nested.sh(f"virsh -q attach-device {guest} /dev/stdin --live", stdin=hostdev(disk).encode())
    seen = "for n in 1 2 3 4 5 6 7 8 9; do [ -b /dev/nvme0n1 ] && break; sleep 1; done; head -c 10 /dev/nvme0n1"
    assert "NVME-PLAIN" in nested.ask(guest, seen)
    assert guest in nested.kvmctl("pci", "release", disk, code=4).err
    nested.sh(f"virsh -q detach-device {guest} /dev/stdin --live", stdin=hostdev(disk).encode())
    nested.until(
        lambda: "hostdev" in nested.sh(f"virsh dumpxml {guest}"), lambda there: not there, 60, "the guest's XML"
    )
    nested.ask(guest, "! ls /dev/nvme0n1 2>/dev/null")
    nested.kvmctl("pci", "release", disk)
    assert nested.driver(disk) == "nvme"
