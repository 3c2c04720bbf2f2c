"""Devices that guest files name: taken for a real guest, and back by themselves when it ends."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kvmctl.bootstrap.nested.host import E1000E_MAC, GATEWAY, MARKS, NVME
from kvmctl.bootstrap.nested.image import GUEST
from tests.conftest import Ran, cannot
from tests.nested.support import Nested
from tests.support import PREFIX

pytestmark = pytest.mark.nested

MAC = "52:54:00:aa:01:01"
LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


def file(what: str, keys: str, state: str = "running") -> str:
    return (
        f"guests:\n- name: {PREFIX}{what}\n  accelerator: kvm\n  memory: {{size: 192MiB}}\n  state: {state}\n  {keys}\n"
        f"  boot: {{kernel: {GUEST}/vmlinuz, initrd: {GUEST}/initrd.gz, cmdline: 'console=ttyS0 quiet'}}\n"
    )


def apply(nested: Nested, what: str, keys: str, state: str = "running", code: int = 0) -> Ran:
    return nested.kvmctl("apply", "-f", "-", stdin=file(what, keys, state), code=code)


def passed(nested: Nested, what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = nested.kvmctl("show", f"{PREFIX}{what}", "-o", "json").json()["spec"]["passthrough"]
    return found


def kept(nested: Nested) -> list[str]:
    """The devices of which kvmctl would put something back."""
    rows = nested.kvmctl("host", "restore", "--dry-run", "-o", "json", code=None).json()
    return [row["name"] for row in rows if row["kind"] in ("pci-driver", "sriov-function")]


def test_a_card_and_a_disk_are_a_guests_while_it_runs_and_the_hosts_after(nested: Nested) -> None:
    card, disk = nested.devices.e1000e, nested.devices.nvme
    keys = f"nics: [{{mode: passthrough, pci: '{card}'}}]\n  disks: [{{mode: passthrough, pci: '{disk}'}}]"
    apply(nested, "own", keys)
    guest = f"{PREFIX}own"
    assert passed(nested, "own") == [{"pci": one} for one in sorted((card, disk))]
    assert f"pci {card} (vfio)" in nested.kvmctl("show", guest).out
    assert [nested.driver(one) for one in (card, disk)] == ["vfio-pci", "vfio-pci"]
    assert kept(nested) == []
    nested.ask(guest, "for n in 1 2 3 4 5 6 7 8 9; do ip addr show eth0 | grep -q 10.77.1 && break; sleep 1; done")
    assert nested.ask(guest, "cat /sys/class/net/eth0/address").strip() == E1000E_MAC
    assert "3 packets received" in nested.ask(guest, f"ping -c 3 {GATEWAY}")
    assert MARKS[NVME].decode().strip() in nested.ask(guest, "head -c 16 /dev/nvme0n1")
    assert nested.kvmctl("diff", "-f", "-", stdin=file("own", keys)).out == ""
    assert "is in use" in apply(nested, "other", f"passthrough: [{{pci: '{card}'}}]", code=4).err
    apply(nested, "other", f"passthrough: [{{pci: '{card}'}}]", "stopped")
    assert guest in nested.kvmctl("start", f"{PREFIX}other", code=4).err
    nested.stop(guest)
    nested.until(lambda: nested.driver(card), "e1000e".__eq__, 30, "the driver of the card")
    assert nested.driver(disk) == "nvme"
    # In the other order, started by virsh: kvmctl sees it as well.
    nested.sh(f"virsh -q start {PREFIX}other")
    assert f"{PREFIX}other runs with it" in nested.kvmctl("start", guest, code=4).err
    nested.stop(f"{PREFIX}other")
    nested.kvmctl("start", guest)
    assert nested.sh(f"virsh start {PREFIX}other 2>&1 || true").count(guest)


def test_two_guests_get_different_functions_and_a_third_none(nested: Nested) -> None:
    pf = nested.devices.sriov
    plain = f"disks: [{{mode: passthrough, vf-of: '{nested.devices.nvme}'}}]"
    assert "no SR-IOV" in apply(nested, "vf1", plain, code=2).err
    assert "has no virtual functions now" in apply(nested, "vf1", f"passthrough: [{{vf-of: '{pf}'}}]", code=4).err
    functions = nested.kvmctl("pci", "vfs", pf, 2, "-o", "name").out.split()
    for what in ("vf1", "vf2"):
        apply(nested, what, f"disks: [{{mode: passthrough, vf-of: '{pf}'}}]", "running" if what == "vf1" else "stopped")
    found = [passed(nested, what)[0] for what in ("vf1", "vf2")]
    assert found == [{"pci": function, "vf-of": pf} for function in functions]
    refused = apply(nested, "vf3", f"passthrough: [{{vf-of: '{pf}'}}]", code=4).err
    assert f"guest {PREFIX}vf1 has it" in refused
    assert f"guest {PREFIX}vf2 has it" in refused
    nested.ask(f"{PREFIX}vf1", "echo by-vf-of | dd of=/dev/nvme0n1 bs=512 seek=24 conv=sync,fsync 2>/dev/null; sync")
    assert f"{PREFIX}vf1" in nested.kvmctl("pci", "vfs", pf, 0, code=4).err
    nested.stop(f"{PREFIX}vf1")
    name = nested.disk_name(pf)
    assert "by-vf-of" in nested.sh(f"dd if=/dev/{name} bs=512 skip=24 count=1 iflag=direct 2>/dev/null")
    nested.kvmctl("pci", "vfs", pf, 0)
    assert "there is no PCI device" in nested.kvmctl("start", f"{PREFIX}vf1", code=3).err


@pytest.fixture
def igb(nested: Nested) -> str:
    if not nested.devices.igb:
        cannot("this emulator has no network card with virtual functions")
    nested.sh(f"ip link set $(ls /sys/bus/pci/devices/{nested.devices.igb}/net) up")
    return nested.devices.igb


def function(nested: Nested, pf: str, number: int) -> dict[str, Any]:
    """What the kernel says of a function of a card."""
    links = json.loads(nested.sh(f"ip -j link show dev $(ls /sys/bus/pci/devices/{pf}/net)"))
    return next(one for one in links[0]["vfinfo_list"] if one["vf"] == number)


def test_a_network_function_has_what_the_file_says_and_loses_it_with_the_guest(nested: Nested, igb: str) -> None:
    nested.kvmctl("pci", "vfs", igb, 2)
    before = function(nested, igb, 0)
    apply(
        nested,
        "net",
        f"nics: [{{mode: passthrough, vf-of: '{igb}', mac: {MAC}, vlan: 7, spoof-check: false, trust: true}}]",
    )
    guest = f"{PREFIX}net"
    now = function(nested, igb, 0)
    assert now.get("address", now.get("mac")) == MAC
    assert now["vlan_list"][0]["vlan"] == 7
    assert (now["spoofchk"], now["trust"]) == (False, True)
    seen = "for n in 1 2 3 4 5 6 7 8 9; do [ -e /sys/class/net/eth0 ] && break; sleep 1; done"
    assert nested.ask(guest, f"{seen}; cat /sys/class/net/eth0/address").strip() == MAC
    assert re.search(rf"nic {MAC} \(vfio .*, of {igb}\)", nested.kvmctl("show", guest).out)
    assert kept(nested) == [passed(nested, "net")[0]["pci"]]
    nested.stop(guest)
    after = function(nested, igb, 0)
    assert after["vlan_list"] == before["vlan_list"]
    nested.kvmctl("delete", guest, "--yes")
    after = function(nested, igb, 0)
    assert (after["spoofchk"], after["trust"]) == (before["spoofchk"], before["trust"])
    assert kept(nested) == []
    nested.kvmctl("pci", "vfs", igb, 0)


def test_a_disk_is_plugged_in_and_out_and_what_qemu_refuses_is_undone(nested: Nested) -> None:
    disk = nested.devices.nvme
    apply(nested, "plug", "agent: false")
    guest = f"{PREFIX}plug"
    nested.ask(guest, "! ls /dev/nvme0n1 2>/dev/null")
    nested.sh(f"modprobe vfio_iommu_type1; echo 1 >{LIMIT}")
    try:
        refused = nested.kvmctl("attach", guest, "--pci", disk[5:], code=None)
    finally:
        nested.sh(f"echo 65535 >{LIMIT}")
    assert "pending restart" in refused.out
    nested.until(lambda: nested.driver(disk), "nvme".__eq__, 30, "the driver of the disk")
    assert nested.override(disk) == "(null)"
    nested.kvmctl("detach", guest, disk)
    nested.kvmctl("attach", guest, "--pci", disk[5:])
    seen = "for n in 1 2 3 4 5 6 7 8 9; do [ -b /dev/nvme0n1 ] && break; sleep 1; done; head -c 10 /dev/nvme0n1"
    assert "NVME-PLAIN" in nested.ask(guest, seen)
    assert passed(nested, "plug") == [{"pci": disk}]
    nested.kvmctl("detach", guest, disk[5:])
    nested.until(lambda: nested.driver(disk), "nvme".__eq__, 30, "the driver of the disk")
    assert passed(nested, "plug") == []
    nested.ask(guest, "! ls /dev/nvme0n1 2>/dev/null")
