"""Virtual functions of a real NVMe controller, and one of them in a guest."""

from __future__ import annotations

import pytest

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


def test_udev_makes_them_again(nested: Nested) -> None:
    pf = nested.devices.sriov
    nested.kvmctl("pci", "vfs", pf, 1, "--persist")
    nested.sh(f"echo 0 >/sys/bus/pci/devices/{pf}/sriov_numvfs")
    # As at boot, when the driver has taken the device.
    nested.sh(f"echo {pf} >/sys/bus/pci/devices/{pf}/driver/unbind; echo {pf} >/sys/bus/pci/drivers/nvme/bind")
    nested.until(lambda: nested.sh(f"cat /sys/bus/pci/devices/{pf}/sriov_numvfs").strip(), "1".__eq__, 30, "the number")
    nested.kvmctl("pci", "vfs", pf, 0, "--persist")
