from __future__ import annotations

from xml.etree import ElementTree

import pytest

from kvmctl.model.guest_disk import GuestDisk
from kvmctl.xml import snapshot as xml
from kvmctl.xml.copied import copied, renamed, seed_of
from kvmctl.xml.identity import Identity

pytestmark = pytest.mark.unit

DOMAIN = """\
<domain type='kvm'>
  <name>web1</name>
  <uuid>5f0c6aa0-2c11-4f0f-8f0a-111111111111</uuid>
  <metadata><kvmctl:guest xmlns:kvmctl="urn:kvmctl:guest:1" project="lab">
    <kvmctl:label key="a">b</kvmctl:label>
    <kvmctl:cloud-init hostname="web1" seed="/p/web1-seed-0123456789ab.iso" digest="d"/>
  </kvmctl:guest></metadata>
  <os><type machine='q35'>hvm</type><loader type='pflash'>/x</loader></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/p/a.qcow2' index='1'/>
      <backingStore type='file'><source file='/p/base'/></backingStore><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/x'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='a'/><target dev='vdc'/></disk>
    <disk type='file' device='disk'><source file='/p/ro'/><target dev='vdd'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/p/web1-seed-0123456789ab.iso'/><target dev='sda'/></disk>
    <serial type='pty'><log file='/var/log/web1.log'/></serial>
    <serial type='file'><source path='/var/log/console'/></serial>
    <graphics type='vnc' port='5905' autoport='no'/>
    <tpm model='tpm-crb'><backend type='emulator'/></tpm>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
  </devices>
</domain>
"""
TAKEN = """\
<domainsnapshot>
  <name>s2</name><description>why</description><state>disk-snapshot</state><parent><name>s1</name></parent>
  <creationTime>1700000000</creationTime><memory snapshot='no'/>
  <disks><disk name='vda' snapshot='external' type='file'><source file='/p/web1-vda.s2.qcow2'/></disk>
    <disk name='sda' snapshot='no'/></disks>
  <domain><devices><disk><source file='/p/a.qcow2'/><target dev='vda'/></disk></devices></domain>
</domainsnapshot>
"""


def test_what_of_a_guest_matters() -> None:
    facts = xml.facts(DOMAIN, None, "web1", "u", "stopped")
    assert facts.disks == (
        GuestDisk("vda", "/p/a.qcow2", "qcow2"),
        GuestDisk("vdb", "/dev/x", "raw", block_device=True),
        GuestDisk("vdc", None, "raw"),
    )
    assert facts.skipped == ("vdd", "sda")
    assert facts.flash
    assert facts.agent
    assert not facts.active
    assert not xml.facts(DOMAIN.replace("connected", "disconnected"), None, "web1", "u", "running").agent


def test_what_libvirt_says_of_a_snapshot() -> None:
    one = xml.snapshot(TAKEN, current=True)
    assert (one.name, one.parent, one.kind, one.memory, one.state) == ("s2", "s1", "external", False, "running")
    assert one.overlays == (("vda", "/p/web1-vda.s2.qcow2"),)
    assert one.frozen == (("vda", "/p/a.qcow2"),)
    internal = xml.snapshot(TAKEN.replace("'external'", "'internal'").replace("'no'/>\n", "'internal'/>\n"), False)
    assert (internal.kind, internal.memory, internal.overlays) == ("internal", True, ())


def test_texts_are_escaped_and_what_is_left_out_is_said() -> None:
    text = xml.render_snapshot("s", 'a <b> & "c"', False, {"vda": "/p/<x>"}, ["sda"])
    root = ElementTree.fromstring(text)
    assert root.findtext("description") == 'a <b> & "c"'
    assert [(disk.get("name"), disk.get("snapshot")) for disk in root.iter("disk")] == [
        ("sda", "no"),
        ("vda", "external"),
    ]
    backup = ElementTree.fromstring(xml.render_backup({"vda": "/b"}, "c1", ["sda"]))
    assert backup.findtext("incremental") == "c1"
    assert [disk.get("backup") for disk in backup.iter("disk")] == ["yes", "no"]


def test_a_copy_has_nothing_that_is_the_originals_alone() -> None:
    own = Identity("web2", "5f0c6aa0-2c11-4f0f-8f0a-222222222222")
    seed = ("/p/web1-seed-0123456789ab.iso", "/p/web2-seed-ba9876543210.iso")
    assert seed_of(DOMAIN) == (seed[0], "sda")
    text, notes = copied(DOMAIN, own, {"vda": ("/p/web2-vda.qcow2", "qcow2"), "vdb": ("/p/b", "raw")}, seed)
    assert "web1" not in text
    assert "/p/base" not in text
    assert "lab" not in text.replace("label", "")
    assert "5905" not in text
    assert "/p/web2-vda.qcow2" in text
    assert seed[1] in text
    assert 'log file="/var/log/web2.log"' in text
    assert "/var/log/web2-console" in text
    assert '<disk type="file" device="disk"><driver type="raw"/><source file="/p/b"/>' in " ".join(
        text.split()
    ).replace("> <", "><")
    assert [note for note in notes if "TPM" in note]


def test_files_of_a_copy_lie_beside_the_originals() -> None:
    assert renamed("/a/web1.log", "web1", "web2") == "/a/web2.log"
    assert renamed("/a/console", "web1", "web2") == "/a/web2-console"
