"""OVF as VMware and VirtualBox write it, as we write it, and as nobody should."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.host import vmdk
from kvmctl.model.errors import KvmctlError, RefusedError, UsageError
from kvmctl.xml import ovf
from kvmctl.xml.ovf import Card, Disk, Machine, Written

pytestmark = pytest.mark.unit

GIB, MIB = 1 << 30, 1 << 20
VMWARE = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope vmw:buildId="build-1" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <References><File ovf:href="web-disk1.vmdk" ovf:id="file1" ovf:size="68608"/></References>
  <DiskSection><Info>Disks</Info>
    <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection><Info>Networks</Info><Network ovf:name="VM Network"/></NetworkSection>
  <VirtualSystem ovf:id="web">
    <Info>A VM</Info><Name>web</Name>
    <VirtualHardwareSection>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>8</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:ElementName>CD</rasd:ElementName><rasd:InstanceID>9</rasd:InstanceID>
        <rasd:ResourceType>15</rasd:ResourceType></Item>
      <Item><rasd:Connection>VM Network</rasd:Connection><rasd:InstanceID>10</rasd:InstanceID>
        <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
      <Item ovf:required="false"><rasd:ElementName>SVGA</rasd:ElementName><rasd:InstanceID>11</rasd:InstanceID>
        <rasd:ResourceType>24</rasd:ResourceType></Item>
      <Item ovf:required="false"><rasd:ElementName>VMCI</rasd:ElementName><rasd:InstanceID>12</rasd:InstanceID>
        <rasd:ResourceType>1</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""
VIRTUALBOX = """<?xml version="1.0"?>
<Envelope ovf:version="2.0" xmlns="http://schemas.dmtf.org/ovf/envelope/2"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/2"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:sasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_StorageAllocationSettingData.xsd"
    xmlns:epasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_EthernetPortAllocationSettingData.xsd">
  <References><File ovf:id="file1" ovf:href="box-disk001.vmdk"/></References>
  <DiskSection><Disk ovf:capacity="1073741824" ovf:diskId="vmdisk1" ovf:fileRef="file1"/></DiskSection>
  <VirtualSystem ovf:id="box">
    <VirtualHardwareSection>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>PIIX4</rasd:ResourceSubType>
        <rasd:ResourceType>5</rasd:ResourceType></Item>
      <StorageItem><sasd:HostResource>/disk/vmdisk1</sasd:HostResource><sasd:InstanceID>7</sasd:InstanceID>
        <sasd:Parent>3</sasd:Parent><sasd:ResourceType>17</sasd:ResourceType></StorageItem>
      <EthernetPortItem><epasd:Connection>NAT</epasd:Connection><epasd:InstanceID>8</epasd:InstanceID>
        <epasd:ResourceSubType>Am79C973</epasd:ResourceSubType><epasd:ResourceType>10</epasd:ResourceType>
        </EthernetPortItem>
      <Item><rasd:ElementName>sound</rasd:ElementName><rasd:InstanceID>9</rasd:InstanceID>
        <rasd:ResourceType>35</rasd:ResourceType></Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


def test_vmwares() -> None:
    assert ovf.parse(VMWARE) == Machine(
        "web",
        2,
        2 * GIB,
        "uefi",
        (Disk("web-disk1.vmdk", 16 * GIB, "scsi"),),
        (Card("VM Network", "vmxnet3"),),
        ("left out: CD-ROM drive",),
    )


def test_virtualboxs() -> None:
    assert ovf.parse(VIRTUALBOX) == Machine(
        "box",
        1,
        512 * MIB,
        "bios",
        (Disk("box-disk001.vmdk", GIB, "ide"),),
        (Card("NAT", "e1000"),),
        ("network card Am79C973 becomes an e1000", "left out: a sound card (sound)"),
    )


machines = st.builds(
    Machine,
    name=st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
    cpus=st.integers(1, 64),
    memory=st.integers(1, 1 << 20).map(lambda size: size * MIB),
    firmware=st.sampled_from(["bios", "uefi"]),
    disks=st.integers(0, 4).map(lambda count: tuple(Disk(f"d{n}.vmdk", (n + 1) * MIB) for n in range(count))),
    cards=st.lists(
        st.builds(
            Card,
            network=st.sampled_from(["default", "VM Network", "a & b <c>"]),
            model=st.sampled_from(["e1000", "e1000e", "vmxnet3", "pcnet", "virtio"]),
        ),
        max_size=3,
    ).map(tuple),
)


@given(machines)
def test_what_we_write_is_read_again(machine: Machine) -> None:
    files = tuple(Written(disk.file, 100, disk.capacity) for disk in machine.disks)
    assert ovf.parse(ovf.render(machine, files, machine.name)) == machine


def test_a_model_that_they_have_not_becomes_one_that_they_have() -> None:
    machine = Machine("a", 1, MIB, "bios", (), (Card("default", "rtl8139"),))
    assert ovf.parse(ovf.render(machine, (), "a")) == replace(machine, cards=(Card("default", "e1000"),))


BAD = {
    "no XML": "<Envelope",
    "another document": "<domain/>",
    "an entity": VMWARE.replace("<Envelope", "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><Envelope"),
    "no guest": VMWARE.replace("VirtualSystem", "System"),
    "two guests": VMWARE.replace("</Envelope>", "<VirtualSystem/></Envelope>"),
    "no hardware": VMWARE.replace("VirtualHardwareSection", "Hardware"),
    "a file elsewhere": VMWARE.replace("web-disk1.vmdk", "../web-disk1.vmdk"),
    "an absolute file": VMWARE.replace("web-disk1.vmdk", "/etc/passwd"),
    "a file of the network": VMWARE.replace("web-disk1.vmdk", "http://example.org/x"),
    "a hidden file": VMWARE.replace("web-disk1.vmdk", ".x"),
    "an option": VMWARE.replace("web-disk1.vmdk", "-x"),
    "no image": VMWARE.replace("ovf:/disk/vmdisk1", "ovf:/disk/other"),
    "no file": VMWARE.replace('fileRef="file1"', 'fileRef="file2"'),
    "no size": VMWARE.replace('capacity="16"', 'capacity="x"'),
    "a negative size": VMWARE.replace('capacity="16"', 'capacity="-16"'),
    "a size beyond every disk": VMWARE.replace("2^30", "2^60"),
    "a unit that is none": VMWARE.replace("byte * 2^30", "stones"),
    "no CPUs": VMWARE.replace("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>0<"),
    "CPUs without end": VMWARE.replace("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>99999<"),
    "no memory": VMWARE.replace(">2048<", "><"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(what: str) -> None:
    with pytest.raises(UsageError):
        ovf.parse(BAD[what])


@given(data=st.data())
def test_any_change_is_read_or_refused(data: st.DataObject) -> None:
    text = list(data.draw(st.sampled_from([VMWARE, VIRTUALBOX])))
    for _ in range(data.draw(st.integers(1, 5))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.characters())
    try:
        found = ovf.parse("".join(text))
    except UsageError:
        return
    assert all("/" not in disk.file and disk.capacity > 0 for disk in found.disks)


# VMDK


def made(folder: Path, subformat: str = "streamOptimized") -> Path:
    path = folder / f"{subformat}.vmdk"
    empty = str(folder / "empty.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", empty, "3M"], check=True)
    options = ["-f", "qcow2", "-O", "vmdk", "-o", f"subformat={subformat}"]
    subprocess.run(["qemu-img", "convert", *options, empty, str(path)], check=True)
    return path


@pytest.mark.parametrize("subformat", ["streamOptimized", "monolithicSparse"])
def test_one_file_that_holds_everything(tmp_path: Path, subformat: str) -> None:
    path = made(tmp_path, subformat)
    vmdk.check(path, 3 * MIB)
    with pytest.raises(UsageError, match="shows"):
        vmdk.check(path, 4 * MIB)


def test_a_text_that_names_other_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one file"):
        vmdk.check(made(tmp_path, "monolithicFlat"), 3 * MIB)
    path = tmp_path / "evil.vmdk"
    path.write_text('# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2 FLAT "/etc/passwd" 0\n')
    with pytest.raises(UsageError, match="one file"):
        vmdk.check(path, 1024)


def test_a_header_without_a_capacity_is_a_text_as_well(tmp_path: Path) -> None:
    path = made(tmp_path, "monolithicSparse")
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 12, 0)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="header"):
        vmdk.check(path, 3 * MIB)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"parentCID=ffffffff", b"parentCID=12345678"), (b"#DDB\n", b'parentFileNameHint="/etc/passwd"\n#DDB\n')],
)
@pytest.mark.parametrize("subformat", ["streamOptimized", "monolithicSparse"])
def test_a_parent(tmp_path: Path, old: bytes, new: bytes, subformat: str) -> None:
    path = made(tmp_path, subformat)
    data = path.read_bytes()
    at = data.index(old)
    path.write_bytes(data[:at] + new + data[at + len(old) : -(len(new) - len(old)) or None])
    with pytest.raises(KvmctlError) as caught:
        vmdk.check(path, 3 * MIB)
    assert isinstance(caught.value, RefusedError) or subformat == "streamOptimized"


@settings(deadline=None)  # each example runs qemu-img
@given(data=st.data())
def test_any_damage_is_seen_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = made(tmp_path_factory.mktemp("vmdk"))
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        vmdk.check(path, 3 * MIB)
    except KvmctlError:
        return
    command = ["qemu-img", "info", "--output=json", "-f", "vmdk", str(path)]
    said = subprocess.run(command, capture_output=True, check=False).stdout
    assert b"backing-filename" not in said
