"""What of a definition matters when its guest moves."""

from __future__ import annotations

import pytest

from kvmctl.xml import moving, tree

pytestmark = pytest.mark.unit

XML = """
<domain type='kvm'><name>web1</name>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>/fw/code.fd</loader>
<nvram>/nvram/web1.fd</nvram><kernel>/boot/vmlinuz</kernel></os>
<cpu mode='custom' match='exact'><model>EPYC</model><topology sockets='1' cores='2' threads='1'/>
<feature policy='require' name='invtsc'/></cpu>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/images/a.qcow2'/>
<backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/></backingStore>
<target dev='vda' bus='virtio'/></disk>
<disk type='volume' device='disk'><source pool='default' volume='b'/><backingStore/><target dev='vdb'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='pool/c'/><target dev='vdc'/></disk>
<disk type='file' device='cdrom'><source file='/iso/d.iso'/><target dev='sda'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
<disk type='block' device='disk'><source dev='/dev/vg/e'/><target dev='vde'/><shareable/></disk>
<interface type='network'><source network='default'/></interface>
<interface type='network'><source network='default'/></interface>
<interface type='bridge'><source bridge='br0'/></interface>
<interface type='direct'><source dev='eth1' mode='bridge'/></interface>
<interface type='hostdev'><source/></interface>
<interface type='vhostuser'/>
<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>
</hostdev>
<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
<shmem name='ivshmem'/>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
</devices></domain>
"""


def test_disks() -> None:
    found = {disk.target: disk for disk in moving.disks(tree.read(XML))}
    assert sorted(found) == ["sda", "vda", "vdb", "vdc", "vde"]
    assert (found["vda"].path, found["vda"].form, found["vda"].cache) == ("/images/a.qcow2", "qcow2", "none")
    assert found["vda"].backing
    assert not found["vdb"].backing
    assert found["vdb"].path == "default/b"
    assert [name for name, disk in sorted(found.items()) if disk.copied] == ["vda", "vdb"]


def test_the_rest() -> None:
    root = tree.read(XML)
    assert moving.networks(root) == ("default",)
    assert moving.interfaces(root) == ("br0", "eth1")
    assert moving.host_devices(root) == ("pci device 0000:01:00.0", "network interface of type hostdev")
    assert len(moving.immovable(root)) == 4
    assert moving.files(root) == ("/boot/vmlinuz", "/fw/code.fd")
    assert moving.is_uefi(root)
    assert moving.has_nvram(root)
    assert moving.has_tpm(root)


def test_the_cpu_that_is_compared() -> None:
    text = moving.cpu(tree.read(XML))
    assert text is not None
    assert "EPYC" in text
    assert "topology" not in text
    assert moving.cpu(tree.read("<domain/>")) is None
    assert moving.cpu(tree.read("<domain><cpu><topology sockets='1' cores='1' threads='1'/></cpu></domain>")) is None
    assert moving.cpu(tree.read("<domain><cpu mode='maximum'/></domain>")) == '<cpu mode="maximum" />'


def test_the_host() -> None:
    text = "<capabilities><host><uuid>u-1</uuid><cpu><arch>x86_64</arch><model>EPYC</model></cpu></host></capabilities>"
    assert moving.host_uuid(text) == "u-1"
    assert "EPYC" in (moving.host_cpu(text) or "")
    assert moving.host_cpu("<capabilities/>") is None
