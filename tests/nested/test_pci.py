"""PCI devices listed, given to real guests and back, on a machine with an IOMMU."""

from __future__ import annotations

import re

import pytest

from kvmctl.bootstrap.nested.host import E1000E_MAC, GATEWAY, MARKS, NVME
from tests.nested.support import Nested

pytestmark = pytest.mark.nested


def test_the_list_says_who_uses_what(nested: Nested) -> None:
    rows, devices = nested.rows(), nested.devices
    card = rows[devices.e1000e]
    assert (card["driver"], card["passthrough"], card["uses"]) == ("e1000e", "yes", [])
    assert "82574L" in card["title"]
    groups = [rows[one]["iommu_group"] for one in (devices.e1000e, devices.virtio, devices.nvme, devices.sriov)]
    assert None not in groups
    assert len(set(groups)) == 4
    own = rows[devices.own]
    assert own["passthrough"] == "no"
    assert {use["kind"] for use in own["uses"]} >= {"route", "address"}
    (root,) = [row for row in rows.values() if any(use["name"] == "/" for use in row["uses"])]
    assert (root["passthrough"], root["ids"][:4]) == ("no", "1af4")
    assert rows[devices.sriov]["vfs_total"] == 4


def test_a_network_card_goes_to_a_guest_and_back(nested: Nested) -> None:
    card = nested.devices.e1000e
    (done,) = nested.kvmctl("pci", "bind", card[5:], "-o", "json").json()
    assert (done["old"], done["found"], done["result"]) == ("e1000e", "vfio-pci", "changed")
    assert nested.driver(card) == "vfio-pci"
    guest = nested.guest("card", card)
    nested.ask(guest, "for n in 1 2 3 4 5 6 7 8 9; do ip addr show eth0 | grep -q 10.77.1 && break; sleep 1; done")
    assert nested.ask(guest, "cat /sys/class/net/eth0/address").strip() == E1000E_MAC
    before = interrupts(nested, guest)
    assert "3 packets received" in nested.ask(guest, f"ping -c 3 {GATEWAY}")
    assert interrupts(nested, guest) > before
    row = nested.rows()[card]
    assert (row["passthrough"], row["guests"]) == ("no", [{"name": guest, "running": True, "managed": False}])
    refused = nested.kvmctl("pci", "release", card, code=4)
    assert guest in refused.err
    nested.stop(guest)
    (back,) = nested.kvmctl("pci", "release", card, "-o", "json").json()
    assert (back["old"], back["found"], back["result"]) == ("vfio-pci", "e1000e", "changed")
    assert nested.driver(card) == "e1000e"
    assert nested.override(card) == "(null)"
    assert E1000E_MAC in nested.sh("cat /sys/class/net/*/address")


def interrupts(nested: Nested, guest: str) -> int:
    lines = re.findall(r"^\s*\d+:\s+(\d+).*eth0", nested.ask(guest, "cat /proc/interrupts"), re.MULTILINE)
    return sum(map(int, lines))


def test_what_a_guest_wrote_on_a_disk_is_there_afterwards(nested: Nested) -> None:
    disk = nested.devices.nvme
    nested.kvmctl("pci", "bind", disk)
    guest = nested.guest("disk", disk)
    mark = MARKS[NVME].decode().strip()
    assert mark in nested.ask(guest, "head -c 16 /dev/nvme0n1")
    nested.ask(guest, "echo written-by-the-guest | dd of=/dev/nvme0n1 bs=512 seek=8 conv=sync,fsync 2>/dev/null; sync")
    nested.stop(guest)
    nested.kvmctl("pci", "release", disk)
    assert nested.driver(disk) == "nvme"
    name = nested.disk_name(disk)
    assert "written-by-the-guest" in nested.sh(f"dd if=/dev/{name} bs=512 skip=8 count=1 2>/dev/null")
    assert mark in nested.sh(f"head -c 16 /dev/{name}")
