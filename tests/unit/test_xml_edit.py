"""An edit changes what it should, in the smallest way, and says so when it cannot."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmctl.model.defaults import fill
from kvmctl.model.errors import RefusedError, UsageError
from kvmctl.model.spec import (
    UNLIMITED,
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
from kvmctl.xml.edit import edit
from kvmctl.xml.parse import parse
from kvmctl.xml.render import render
from tests.golden.specs import KVM, TCG

pytestmark = pytest.mark.unit

FOREIGN = Path(__file__).parent.parent / "golden" / "foreign"
BY_HAND = (FOREIGN / "by-hand.xml").read_text()
MANAGER = (FOREIGN / "virt-manager-uefi.xml").read_text()
BASE = GuestSpec(
    "web1",
    cpu=CpuSpec(count=2, max=4, shares=2000, limit=1.5, pin="0-1"),
    memory=MemorySpec(size=GIB, max=2 * GIB),
    disks=(DiskSpec("/srv/a.qcow2"), DiskSpec("/srv/b.raw", bus="scsi")),
    nics=(NicSpec("default", mac="52:54:00:00:00:01"), NicSpec(bridge="br0", mac="52:54:00:00:00:02")),
    console=ConsoleSpec(log="/var/log/web1.log"),
    vnc=VncSpec(),
)
XML = render(fill(BASE, TCG), TCG)


def changed(wish: GuestSpec, text: str = XML) -> tuple[list[str], list[str]]:
    """The lines that an edit takes out and puts in, quotes aside."""
    before, after = (
        [line.strip().replace("'", '"') for line in part.splitlines()] for part in (text, edit(text, wish, TCG))
    )
    delta = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    return [line[2:] for line in delta if line[0] == "-"], [line[2:] for line in delta if line[0] == "+"]


def guest(**said: Any) -> GuestSpec:
    return GuestSpec("web1", **said)


@pytest.mark.parametrize(
    ("wish", "out", "into"),
    [
        (guest(cpu=CpuSpec(shares=500)), ["<shares>2000</shares>"], ["<shares>500</shares>"]),
        (
            guest(cpu=CpuSpec(limit=0.25)),
            ["<global_quota>150000</global_quota>"],
            ["<global_quota>25000</global_quota>"],
        ),
        (
            guest(cpu=CpuSpec(limit=UNLIMITED)),
            ["<global_period>100000</global_period>", "<global_quota>150000</global_quota>"],
            [],
        ),
        (guest(cpu=CpuSpec(emulator_pin="0")), [], ['<emulatorpin cpuset="0"/>']),
        (
            guest(rebalance=False),
            [],
            [
                "<metadata>",
                '<kvmctl:guest xmlns:kvmctl="urn:kvmctl:guest:1" rebalance="no"/>',
                "</metadata>",
            ],
        ),
        (guest(rebalance=True), [], []),
        (
            guest(cpu=CpuSpec(count=4, pin="")),
            ['<vcpu placement="static" cpuset="0-1" current="2">4</vcpu>'],
            ['<vcpu placement="static">4</vcpu>'],
        ),
        (
            guest(cpu=CpuSpec(count=6)),
            ['<vcpu placement="static" cpuset="0-1" current="2">4</vcpu>'],
            ['<vcpu placement="static" cpuset="0-1">6</vcpu>'],
        ),
        (
            guest(memory=MemorySpec(size=512 * MIB)),
            ['<currentMemory unit="KiB">1048576</currentMemory>'],
            ['<currentMemory unit="KiB">524288</currentMemory>'],
        ),
        (
            guest(memory=MemorySpec(size=4 * GIB)),
            ['<memory unit="KiB">2097152</memory>', '<currentMemory unit="KiB">1048576</currentMemory>'],
            ['<memory unit="KiB">4194304</memory>', '<currentMemory unit="KiB">4194304</currentMemory>'],
        ),
        (
            guest(memory=MemorySpec(sharing=False)),
            [],
            ["<memoryBacking>", "<nosharepages/>", "</memoryBacking>"],
        ),
        (guest(description="a <b> & c"), [], ["<description>a &lt;b&gt; &amp; c</description>"]),
        (guest(rng=False), ['<rng model="virtio">', '<backend model="random">/dev/urandom</backend>', "</rng>"], []),
        (
            guest(boot=BootSpec(order=("network", "disk"))),
            [],
            ['<boot dev="network"/>'],
        ),
        (
            guest(console=ConsoleSpec(log="/var/log/new.log")),
            ['<log file="/var/log/web1.log" append="on"/>'],
            ['<log file="/var/log/new.log" append="on"/>'],
        ),
        (
            guest(project="shop"),
            [],
            [
                "<metadata>",
                '<kvmctl:guest xmlns:kvmctl="urn:kvmctl:guest:1" project="shop"/>',
                "</metadata>",
            ],
        ),
    ],
)  # fmt: skip
def test_only_what_is_said_changes(wish: GuestSpec, out: list[str], into: list[str]) -> None:
    assert changed(wish) == (out, into)


def test_an_edit_can_be_undone() -> None:
    wish = guest(
        cpu=CpuSpec(limit=UNLIMITED, reservation=0.5, emulator_pin="1"), description="d", rebalance=False,
        memory=MemorySpec(sharing=False, swap=False), labels=(("a", "b"),), project="p",
    )  # fmt: skip
    back = guest(
        cpu=CpuSpec(limit=1.5, reservation=0.0, emulator_pin=""), description="", rebalance=True,
        memory=MemorySpec(sharing=True, swap=True), labels=(), project="",
    )  # fmt: skip
    assert edit(edit(XML, wish, TCG), back, TCG).replace('"', "'") == XML.replace('"', "'")


def test_comments_prefixes_and_declaration_stay() -> None:
    edited = edit(BY_HAND, GuestSpec("everything", cpu=CpuSpec(shares=10)), TCG)
    assert edited.startswith("<?xml version='1.0' encoding='UTF-8'?>\n<!-- kept by hand;")
    assert edited.endswith("</domain>\n<!-- the end -->\n")
    assert "<!-- agreed with finance -->" in edited
    assert (
        '<app:inventory xmlns:app="http://example.org/inventory/1.0" rack="7"><app:owner>Bo &amp; co</app:owner>'
        in edited
    )
    assert '<qemu:env name="QEMU_AUDIO_DRV" value="none"/>' in edited


def test_a_level_follows_the_number_of_vcpus() -> None:
    text = render(fill(guest(cpu=CpuSpec(count=2, max=4, shares="high")), TCG), TCG)
    edited = edit(text, guest(cpu=CpuSpec(count=3)), TCG)
    assert "<shares>6000</shares>" in edited
    assert parse(edited).spec.cpu.shares == "high"


def test_a_guest_without_shares_gets_none_by_accident() -> None:
    assert "<shares>" not in edit(
        "<domain><name>g</name><vcpu>2</vcpu></domain>", GuestSpec("g", cpu=CpuSpec(count=1)), TCG
    )


def test_a_number_in_place_of_a_level_is_stored_as_one() -> None:
    text = render(fill(guest(cpu=CpuSpec(shares="normal")), TCG), TCG)
    edited = edit(text, guest(cpu=CpuSpec(shares=1000)), TCG)
    assert parse(edited).spec.cpu.shares == 1000
    assert "<metadata>" not in edited


def test_a_limit_below_what_the_kernel_takes() -> None:
    with pytest.raises(UsageError, match=r"0\.001 cores"):
        edit(XML, guest(cpu=CpuSpec(limit=0.001)), TCG)


def test_a_topology_grows_by_sockets_or_refuses() -> None:
    text = MANAGER.replace("sockets='1' dies='1' cores='4'", "sockets='2' dies='1' cores='2'")
    edited = edit(text, GuestSpec("g", cpu=CpuSpec(max=6)), TCG)
    assert '<topology sockets="3" dies="1" cores="2" threads="1"/>' in edited
    with pytest.raises(RefusedError, match="2 vCPUs in each socket"):
        edit(text, GuestSpec("g", cpu=CpuSpec(max=5)), TCG)


def test_numa_cells_fix_the_maximum_of_memory() -> None:
    wish = GuestSpec("everything", memory=MemorySpec(max=4 * GIB))
    with pytest.raises(RefusedError, match="NUMA"):
        edit(BY_HAND, wish, TCG)
    assert parse(edit(BY_HAND, replace(wish, memory=MemorySpec(size=GIB)), TCG)).spec.memory.size == GIB


def test_the_list_of_vcpus_that_are_on_goes_with_their_number() -> None:
    text = "<domain><name>g</name><vcpu current='1'>2</vcpu><vcpus><vcpu id='0' enabled='yes'/></vcpus></domain>"
    assert "<vcpus>" not in edit(text, GuestSpec("g", cpu=CpuSpec(count=2)), TCG)
    assert "<vcpus>" in edit(text, GuestSpec("g", cpu=CpuSpec(shares=7)), TCG)


def test_vcpus_that_can_be_unplugged_stay_so() -> None:
    text = render(fill(guest(cpu=CpuSpec(count=2, max=3)), KVM), KVM)
    assert text.count("hotpluggable='yes'") == 2
    edited = edit(text, guest(cpu=CpuSpec(count=4)), KVM)
    assert '\n  <vcpu placement="static">4</vcpu>\n  <vcpus>\n' in edited
    assert [line.strip() for line in edited.splitlines() if "<vcpu id=" in line] == [
        f'<vcpu id="{number}" enabled="yes" hotpluggable="{"yes" if number else "no"}"/>' for number in range(4)
    ]
    assert edit(edited, guest(cpu=CpuSpec(count=2, max=3)), KVM).replace('"', "'") == text.replace('"', "'")


@pytest.mark.parametrize(("machine", "becomes"), [("q35", "pc-q35-6.2"), ("pc-q35-7.2", "pc-q35-7.2")])
def test_a_machine_within_its_family(machine: str, becomes: str) -> None:
    assert parse(edit(MANAGER, GuestSpec("g", boot=BootSpec(machine=machine)), TCG)).spec.boot.machine == becomes


def test_a_machine_of_another_family_is_refused() -> None:
    with pytest.raises(RefusedError, match="cannot become pc"):
        edit(MANAGER, GuestSpec("g", boot=BootSpec(machine="pc")), TCG)


def test_what_the_platform_lacks_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="CPU model 'nonsense'"):
        edit(XML, guest(cpu=CpuSpec(model="nonsense")), TCG)
    with pytest.raises(UsageError, match="no uefi"):
        edit(XML, guest(boot=BootSpec(firmware="uefi")), replace(TCG, firmwares=("bios",)))


def test_a_model_keeps_topology_and_features() -> None:
    edited = edit(BY_HAND, GuestSpec("everything", cpu=CpuSpec(model="maximum")), TCG)
    assert '<cpu mode="maximum">' in edited
    assert "qemu64" not in edited
    assert '<feature policy="disable" name="svm"/>' in edited
    assert parse(edit(edited, GuestSpec("everything", cpu=CpuSpec(model="qemu64")), TCG)).spec.cpu.model == "qemu64"


def test_the_processor_goes_with_the_accelerator() -> None:
    text = render(fill(GuestSpec("g"), KVM), KVM)
    assert parse(edit(text, GuestSpec("g", accelerator="tcg"), TCG)).spec.cpu.model == "maximum"
    assert edit(text, GuestSpec("g", accelerator="auto"), KVM) is text


def test_firmware_there_and_back() -> None:
    uefi = edit(XML, guest(boot=BootSpec(firmware="uefi")), TCG)
    assert '<feature enabled="no" name="secure-boot"/>' in uefi
    assert edit(uefi, guest(boot=BootSpec(firmware="bios")), TCG).replace('"', "'") == XML.replace('"', "'")
    assert "OVMF" not in edit(BY_HAND, GuestSpec("everything", boot=BootSpec(firmware="bios")), TCG)


def test_a_kernel_goes_with_what_belongs_to_it() -> None:
    text = edit(XML, guest(boot=BootSpec(kernel="/k", initrd="/i", cmdline='a="1" <b>')), TCG)
    assert parse(text).spec.boot.cmdline == 'a="1" <b>'
    assert edit(text, guest(boot=BootSpec(kernel="")), TCG).replace('"', "'") == XML.replace('"', "'")


def test_a_disk_is_found_by_target_or_by_path() -> None:
    text = XML.replace(
        "<target dev='vda' bus='virtio'/>", "<target dev='vda' bus='virtio'/>\n      <serial>A1</serial>"
    )
    assert "A1" in text
    moved = guest(disks=(DiskSpec("/srv/c.qcow2", target="vda"), DiskSpec("/srv/b.raw")))
    edited = edit(text, moved, TCG)
    assert [(disk.path, disk.target) for disk in parse(edited).spec.disks or ()] == [
        ("/srv/c.qcow2", "vda"),
        ("/srv/b.raw", "sda"),
    ]
    assert "A1" in edited
    swapped = edit(text, guest(disks=(DiskSpec("/srv/b.raw"), DiskSpec("/srv/a.qcow2", cache="none"))), TCG)
    assert [disk.cache for disk in parse(swapped).spec.disks or ()] == ["none", None]
    assert "A1" not in edit(text, guest(disks=(DiskSpec("/srv/b.raw"),)), TCG)


def test_a_new_image_forgets_the_chain_of_the_old() -> None:
    text = XML.replace(
        "<source file='/srv/a.qcow2'/>",
        "<source file='/srv/a.qcow2'/><backingStore type='file'><source file='/base'/></backingStore>",
    )
    assert "/base" in text
    assert "/base" not in edit(text, guest(disks=(DiskSpec("/dev/vg/a", target="vda"), DiskSpec("/srv/b.raw"))), TCG)


def test_a_disk_that_moves_to_another_bus() -> None:
    edited = edit(
        MANAGER, GuestSpec("g", disks=(DiskSpec("/var/lib/libvirt/images/ubuntu22.04.qcow2", bus="scsi"),)), TCG
    )
    disk = (parse(edited).spec.disks or ())[0]
    assert (disk.bus, disk.target) == ("scsi", "sda")
    assert 'type="scsi" index="0" model="virtio-scsi"' in edited


def test_targets_that_are_taken() -> None:
    wish = GuestSpec("everything", disks=(DiskSpec("/srv/new.raw", target="sdb", bus="scsi"),))
    with pytest.raises(UsageError, match="cannot be sdb"):
        edit(BY_HAND, wish, TCG)
    edited = edit(BY_HAND, replace(wish, disks=(DiskSpec("/srv/new.raw", bus="scsi"),)), TCG)
    assert [disk.target for disk in parse(edited).spec.disks or ()] == ["sda"]


def test_nics_by_address_then_by_place() -> None:
    wish = guest(nics=(NicSpec(user=True), NicSpec("default", mac="52:54:00:00:00:01", model="e1000e")))
    nics = parse(edit(XML, wish, TCG)).spec.nics or ()
    assert [(nic.mac, nic.network, nic.user, nic.model) for nic in nics] == [
        ("52:54:00:00:00:01", "default", None, "e1000e"),
        ("52:54:00:00:00:02", None, True, "virtio"),
    ]
    assert parse(edit(XML, guest(nics=()), TCG)).spec.nics == ()


def test_queues_of_a_nic_that_has_but_one_are_refused() -> None:
    emulated = edit(XML, guest(nics=(NicSpec("default", model="e1000e"),)), TCG)
    with pytest.raises(UsageError, match="only a virtio nic has more queues"):
        edit(emulated, guest(nics=(NicSpec("default", queues=2),)), TCG)
    nics = parse(edit(emulated, guest(nics=(NicSpec("default", queues=2, model="virtio"),)), TCG)).spec.nics or ()
    assert [(nic.model, nic.queues) for nic in nics] == [("virtio", 2)]


def test_an_iso_goes_into_the_empty_drive_and_out_again() -> None:
    edited = edit(MANAGER, GuestSpec("g", boot=BootSpec(iso="/srv/new.iso")), TCG)
    spec = parse(edited).spec
    assert spec.boot.iso == "/srv/new.iso"
    assert spec.boot.order == ("cdrom", "disk")
    assert edited.count("<disk ") == 2
    again = edit(edited, GuestSpec("g", boot=BootSpec(iso="/srv/other.iso", order=("disk", "cdrom"))), TCG)
    assert parse(again).spec.boot.order == ("disk", "cdrom")
    assert again.count("<disk ") == 2
    gone = parse(edit(again, GuestSpec("g", boot=BootSpec(iso="")), TCG)).spec
    assert (gone.boot.iso, gone.boot.order, len(gone.disks or ())) == (None, ("disk",), 1)


def test_an_iso_leaves_drives_alone_that_the_file_lists() -> None:
    wish = GuestSpec("g", boot=BootSpec(iso="/srv/new.iso"), disks=(DiskSpec(device="cdrom", target="sda"),))
    spec = parse(edit(MANAGER, wish, TCG)).spec
    assert [(disk.target, disk.path) for disk in spec.disks or ()] == [("sda", None)]
    assert spec.boot.iso == "/srv/new.iso"


def test_a_seed_is_added_then_replaced() -> None:
    first = edit(XML, guest(cloud_init=CloudInitSpec(hostname="h", seed="/srv/1.iso", digest="1")), TCG)
    second = edit(first, guest(cloud_init=CloudInitSpec(hostname="i", seed="/srv/2.iso", digest="2")), TCG)
    assert first.count("<disk ") == second.count("<disk ") == 3
    assert "/srv/1.iso" not in second
    found = parse(second).spec
    assert found.cloud_init == CloudInitSpec(hostname="i", seed="/srv/2.iso", digest="2")
    assert found.disks == parse(XML).spec.disks


def test_vnc_comes_and_goes_with_its_video() -> None:
    without = edit(XML, guest(vnc=VncSpec(enabled=False)), TCG)
    assert "<video>" not in without
    assert edit(without, guest(vnc=VncSpec()), TCG).replace('"', "'") == XML.replace('"', "'")
    moved = parse(edit(XML, guest(vnc=VncSpec(listen="::1", port=5999)), TCG)).spec
    assert moved.vnc == VncSpec(listen="::1", port=5999)


def test_no_video_is_taken_from_another_display() -> None:
    edited = edit(BY_HAND, GuestSpec("everything", vnc=VncSpec(enabled=False)), TCG)
    assert "<video>" in edited
    assert 'type="spice"' in edited


def test_what_others_wrote_may_have_several_lines() -> None:
    text = XML.replace("<name>web1</name>", "<name>web&#10;1</name>").replace("/srv/b.raw", "/srv/b&#9;c.raw")
    assert edit(text, parse(text).spec, TCG) is text
    wish = replace(parse(text).spec, cpu=CpuSpec(shares=7))
    assert "b&#9;c.raw" in edit(text, wish, TCG)


def test_only_a_domain_is_edited() -> None:
    with pytest.raises(UsageError, match="XML of a network"):
        edit("<network/>", guest(), TCG)
