"""Virtual functions of a real NVMe controller, and one of them in a guest."""

from __future__ import annotations

import pytest

from tests.conftest import cannot
from tests.nested.support import Nested

pytestmark = pytest.mark.nested


def test_functions_are_made_listed_refused_and_removed(nested: Nested) -> None:
    pf = nested.devices.sriov
    done = nested.kvmctl("pci", "vfs", pf, 2, "-o", "json").json()
    assert (done["old"], done["found"], done["result"]) == (0, 2, "changed")
    links = nested.sh(f"readlink /sys/bus/pci/devices/{pf}/virtfn0 /sys/bus/pci/devices/{pf}/virtfn1").split()
    assert done["vfs"] == [link.rpartition("/")[2] for link in links]
    assert nested.kvmctl("pci", "vfs", pf, 2, "-o", "json").json()["result"] == "unchanged"
    rows = nested.rows()
    assert [rows[vf]["vf_of"] for vf in done["vfs"]] == [pf, pf]
    assert "can have 4" in nested.kvmctl("pci", "vfs", pf, 5, code=2).err
    assert "no SR-IOV" in nested.kvmctl("pci", "vfs", nested.devices.nvme, 1, code=5).err
    assert "2 virtual functions, which would go with it" in nested.kvmctl("pci", "bind", pf, code=4).err
    assert nested.kvmctl("pci", "vfs", pf, 0, "-o", "json").json()["vfs"] == []
    assert not [row for row in nested.rows().values() if row["vf_of"]]


def test_a_function_works_in_a_guest(nested: Nested) -> None:
    pf = nested.devices.sriov
    first, _second = nested.kvmctl("pci", "vfs", pf, 2, "-o", "name").out.split()
    nested.kvmctl("pci", "bind", first)
    guest = nested.guest("function", first)
    refused = nested.kvmctl("pci", "vfs", pf, 1, code=4)
    assert guest in refused.err
    nested.ask(guest, "echo by-a-function | dd of=/dev/nvme0n1 bs=512 seek=16 conv=sync,fsync 2>/dev/null; sync")
    nested.stop(guest)
    name = nested.disk_name(pf)
    assert "by-a-function" in nested.sh(f"dd if=/dev/{name} bs=512 skip=16 count=1 iflag=direct 2>/dev/null")
    nested.kvmctl("pci", "release", first)
    nested.kvmctl("pci", "vfs", pf, 0)


@pytest.fixture
def igb(nested: Nested) -> str:
    if not nested.devices.igb:
        cannot("this emulator has no network card with virtual functions: there is no QEMU in Debian's backports")
    return nested.devices.igb


def test_udev_makes_functions_again(nested: Nested, igb: str) -> None:
    made = nested.kvmctl("pci", "vfs", igb, 2, "--persist", "-o", "json").json()
    assert (made["found"], made["persistent"]) == (2, 2)
    nested.sh(f"echo 0 >/sys/bus/pci/devices/{igb}/sriov_numvfs; udevadm control --reload")
    # As at boot, when the driver has taken the device.
    nested.sh(f"echo {igb} >/sys/bus/pci/devices/{igb}/driver/unbind; echo {igb} >/sys/bus/pci/drivers/igb/bind")
    nested.until(
        lambda: nested.sh(f"cat /sys/bus/pci/devices/{igb}/sriov_numvfs").strip(), "2".__eq__, 30, "the number"
    )
    assert nested.kvmctl("pci", "vfs", igb, 0, "--persist", "-o", "json").json()["persistent"] is None
    assert "queues" in nested.kvmctl("pci", "vfs", nested.devices.sriov, 1, "--persist", code=5).err


def test_a_network_function_works_in_a_guest(nested: Nested, igb: str) -> None:
    nested.sh(f"ip link set $(ls /sys/bus/pci/devices/{igb}/net) up")
    function, _other = nested.kvmctl("pci", "vfs", igb, 2, "-o", "name").out.split()
    nested.kvmctl("pci", "bind", function)
    guest = nested.guest("net-function", function)
    nested.ask(guest, "for n in 1 2 3 4 5 6 7 8 9; do ip addr show eth0 | grep -q 10.77.3 && break; sleep 1; done")
    assert "3 packets received" in nested.ask(guest, "ping -c 3 10.77.3.2")
    assert guest in nested.kvmctl("pci", "vfs", igb, 0, code=4).err
    nested.stop(guest)
    nested.kvmctl("pci", "vfs", igb, 0)
    assert not [row for row in nested.rows().values() if row["vf_of"]]
