"""What a new guest gets where its owner says nothing."""

from dataclasses import replace

import pytest

from kvmctl.model.defaults import Drives, drives, fill
from kvmctl.model.errors import UsageError
from kvmctl.model.spec import (
    BootSpec,
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestSpec,
    MemorySpec,
    NicSpec,
    VncSpec,
)
from kvmctl.model.units import GIB, MIB
from tests.golden.specs import KVM, TCG, TEST

pytestmark = pytest.mark.unit


def test_a_guest_that_says_nothing() -> None:
    full = fill(GuestSpec("web1"), TCG)
    assert full.cpu == CpuSpec(1, 1, "normal", float("inf"), 0.0, "", "", "maximum")
    assert full.memory == MemorySpec(GIB, GIB, 0, "normal", True, True, 0)
    assert full.boot == BootSpec(order=("disk",), firmware="bios", machine="pc-q35-7.2")
    assert (full.accelerator, full.agent, full.rng, full.autostart, full.state) == ("tcg", True, True, False, "running")
    assert (full.console, full.vnc) == (ConsoleSpec(), VncSpec(enabled=False))
    assert (full.disks, full.nics, full.labels) == ((), (), ())


def test_the_accelerator_decides_the_processor() -> None:
    assert fill(GuestSpec("web1"), KVM).cpu.model == "host-passthrough"
    assert fill(GuestSpec("web1"), TEST).cpu.model is None


def test_a_maximum_alone_is_the_size() -> None:
    assert fill(GuestSpec("web1", memory=MemorySpec(max=2 * GIB)), TCG).memory.size == 2 * GIB


def test_huge_pages_neither_merge_nor_swap() -> None:
    memory = fill(GuestSpec("web1", memory=MemorySpec(hugepages=2 * MIB)), TCG).memory
    assert (memory.sharing, memory.swap) == (False, False)


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        (GuestSpec("g", boot=BootSpec(iso="/a.iso"), disks=(DiskSpec("/a"),)), ("cdrom", "disk")),
        (GuestSpec("g", disks=(DiskSpec("/a"),), nics=(NicSpec(),)), ("disk",)),
        (GuestSpec("g", disks=(DiskSpec("/a.iso", device="cdrom"),)), ("cdrom",)),
        (GuestSpec("g", nics=(NicSpec(),)), ("network",)),
        (GuestSpec("g", nics=(NicSpec(),), boot=BootSpec(kernel="/k")), ("disk",)),
        (GuestSpec("g", boot=BootSpec(order=("network", "disk"), iso="/a.iso")), ("network", "disk")),
    ],
)
def test_what_it_starts_from(spec: GuestSpec, order: tuple[str, ...]) -> None:
    assert fill(spec, TCG).boot.order == order


def test_targets_are_the_first_free_ones() -> None:
    wanted = (
        DiskSpec("/a"), DiskSpec("/b", target="vda"), DiskSpec("/c"), DiskSpec("/d", bus="scsi"),
        DiskSpec("/e", bus="sata"), DiskSpec("/f.iso", device="cdrom"), DiskSpec("/g", target="sdz"),
    )  # fmt: skip
    disks = fill(GuestSpec("g", disks=wanted), TCG).disks or ()
    assert [disk.target for disk in disks] == ["vdb", "vda", "vdc", "sda", "sdb", "sdc", "sdz"]
    assert [disk.bus for disk in disks] == ["virtio", "virtio", "virtio", "scsi", "sata", "sata", "scsi"]


def test_after_z_comes_aa() -> None:
    many = tuple(DiskSpec(f"/{number}") for number in range(28))
    targets = [disk.target for disk in fill(GuestSpec("g", disks=many), TCG).disks or ()]
    assert targets[25:] == ["vdz", "vdaa", "vdab"]


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (DiskSpec("/a.qcow2"), "qcow2"),
        (DiskSpec("/a.img"), "raw"),
        (DiskSpec("/dev/vg/a"), "raw"),
        (DiskSpec(volume="a"), "qcow2"),
        (DiskSpec("/a.qcow2", device="cdrom"), "raw"),
        (DiskSpec(device="cdrom"), None),
        (DiskSpec("/a.img", format="qcow2"), "qcow2"),
    ],
)
def test_formats(disk: DiskSpec, expected: str | None) -> None:
    assert [disk.format for disk in fill(GuestSpec("g", disks=(disk,)), TCG).disks or ()] == [expected]


@pytest.mark.parametrize(("machine", "bus"), [("q35", "sata"), ("pc", "ide")])
def test_drives_for_iso_and_seed(machine: str, bus: str) -> None:
    spec = GuestSpec(
        "g", boot=BootSpec(iso="/a.iso", machine=machine), cloud_init=CloudInitSpec(seed="/s.iso"),
        disks=(DiskSpec("/a", bus="scsi"),),
    )  # fmt: skip
    found = drives(fill(spec, TCG))
    assert [drive.path for drive in found.all] == ["/a", "/a.iso", "/s.iso"]
    assert found.iso is not None
    assert found.seed is not None
    assert (found.iso.device, found.iso.bus) == ("cdrom", bus)
    # Kernels of cloud images have no driver for the controllers of CD-ROM drives.
    assert (found.seed.device, found.seed.bus, found.seed.read_only) == ("disk", "virtio", True)
    assert len({drive.target for drive in found.all}) == 3


def test_no_drives_where_nothing_needs_them() -> None:
    assert drives(fill(GuestSpec("g"), TCG)) == Drives((), None, None)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (GuestSpec("g", boot=BootSpec(machine="pc-q35-99.0")), "machine type"),
        (GuestSpec("g", cpu=CpuSpec(model="host-passthrough")), "host-passthrough"),
        (GuestSpec("g", cpu=CpuSpec(max=289)), "at most 288 vCPUs"),
        (GuestSpec("g", cpu=CpuSpec(reservation=2.0)), "guest g: cpu.reservation"),
        (GuestSpec("g", memory=MemorySpec(reservation=2 * GIB)), "guest g: memory.reservation"),
        (GuestSpec("g", disks=(DiskSpec("/a", bus="ide"),)), "no ide"),
    ],
)
def test_what_the_platform_or_a_default_contradicts(spec: GuestSpec, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        fill(spec, TCG)


def test_firmware_that_is_not_installed() -> None:
    with pytest.raises(UsageError, match="no uefi firmware"):
        fill(GuestSpec("g", boot=BootSpec(firmware="uefi")), replace(TCG, firmwares=("bios",)))


def test_a_qemu_without_vnc() -> None:
    with pytest.raises(UsageError, match="without VNC"):
        fill(GuestSpec("g", vnc=VncSpec()), replace(TCG, graphics=("spice",)))


def test_a_disk_with_a_volume_and_its_path_is_no_fault() -> None:
    full = fill(GuestSpec("g", disks=(DiskSpec(path="/pool/a", volume="a", format="raw"),)), TCG)
    assert [disk.path for disk in full.disks or ()] == ["/pool/a"]
