"""A definition from elsewhere: what it may keep, and what would reach into this host."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.errors import UsageError
from kvmctl.xml.adopt import Adopted, Placed, adopt
from tests.archives import definition

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden"
PLACED = Placed({"vda": ("/pool/web1.qcow2", "qcow2"), "sda": ("/pool/seed.iso", "raw")})
INNER = """\
<emulator>/tmp/evil</emulator>
<interface type='network'><mac address='52:54:00:00:00:01'/>
  <source network='lan' portid='x'/><target dev='vnet1'/></interface>
<interface type='bridge'><source bridge='br0'/></interface>
<interface type='user'/>
<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
<serial type='pty'><source path='/dev/pts/3'/><log file='/var/log/web1.log'/><target port='0'/></serial>
<console type='pty' tty='/dev/pts/3'><target type='serial' port='0'/></console>
<channel type='unix'><source mode='bind' path='/run/x.sock'/>
  <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<graphics type='vnc' port='-1' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>
<memballoon model='virtio'/>
<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'>
  <active_pcr_banks><sha256/></active_pcr_banks></backend></tpm>
"""


def of(inside: str = "", devices: str = "", placed: Placed = PLACED) -> Adopted:
    return adopt(definition("web1", inside=inside, devices=devices), placed)


def test_what_a_guest_usually_has_is_kept() -> None:
    found = of(devices=INNER)
    assert found.foreign == ()
    assert (set(found.networks), set(found.bridges)) == ({"lan"}, {"br0"})
    assert found.notes == ("what it says on its serial device is not logged to /var/log/web1.log any more",)
    for gone in ("/tmp/evil", "/dev/pts", "vnet1", "portid", "/run/x.sock", "/elsewhere", "web1.log"):
        assert gone not in found.xml
    for kept in ("active_pcr_banks", "/pool/web1.qcow2", "org.qemu.guest_agent.0", "/dev/urandom", 'dev="sdb"'):
        assert kept in found.xml


def test_a_drive_whose_medium_is_not_in_the_file_is_empty_and_named() -> None:
    found = of(devices="<disk type='file' device='cdrom'><source file='/iso/a.iso'/><target dev='sdb'/></disk>")
    assert (found.foreign, found.notes) == ((), ("drive sdb is empty: what was in it is not in the file",))
    assert "/iso" not in found.xml


def test_adopting_again_changes_nothing() -> None:
    once = of(devices=INNER).xml
    assert adopt(once, PLACED).xml == once


def test_networks_get_the_names_that_they_have_here() -> None:
    placed = Placed(PLACED.drives, networks={"lan": "default", "br0": "br1"})
    found = of(devices=INNER, placed=placed)
    assert (set(found.networks), set(found.bridges)) == ({"default"}, {"br1"})


QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
FOREIGN = {
    "commands of QEMU's": (f"<qemu:commandline {QEMU}><qemu:arg value='-hda'/></qemu:commandline>", ""),
    "an override of QEMU's": (f"<qemu:override {QEMU}/>", ""),
    "a boot loader": ("<bootloader>/bin/sh</bootloader>", ""),
    "launch security": ("<launchSecurity type='sev'/>", ""),
    "a host's disk in its limits": ("<blkiotune><device><path>/dev/sda</path></device></blkiotune>", ""),
    "firmware configuration from a file": ("<sysinfo type='fwcfg'><entry name='a' file='/etc/shadow'/></sysinfo>", ""),
    "a host device": ("", "<hostdev mode='subsystem' type='pci'/>"),
    "a folder of the host": ("", "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>"),
    "shared memory": ("", "<shmem name='x'/>"),
    "a lease": ("", "<lease/>"),
    "a TPM": ("", "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"),
    "a TPM that a secret opens": (
        "",
        "<tpm model='tpm-crb'><backend type='emulator'><encryption secret='x'/></backend></tpm>",
    ),
    "a TPM of another program's": (
        "",
        "<tpm model='tpm-crb'><backend type='external'><source path='x'/></backend></tpm>",
    ),
    "a TPM that says more": ("", "<tpm model='tpm-crb'><backend type='emulator' debug='9'/></tpm>"),
    "a smart card": ("", "<smartcard mode='host'/>"),
    "a device of tomorrow": ("", "<teleporter/>"),
    "a disk that nobody sent": ("", "<disk type='file'><source file='/etc/shadow'/><target dev='vdb'/></disk>"),
    "a block device": ("", "<disk type='block'><source dev='/dev/sda'/><target dev='vdb'/></disk>"),
    "a volume": ("", "<disk type='volume'><source pool='default' volume='x'/><target dev='vdb'/></disk>"),
    "a disk of the network": ("", "<disk type='network'><source protocol='nbd'/><target dev='vdb'/></disk>"),
    "a LUN": ("", "<disk type='block' device='lun'><source dev='/dev/sda'/><target dev='vda'/></disk>"),
    "a serial port into a file": ("", "<serial type='file'><source path='/etc/cron.d/x'/></serial>"),
    "a serial port on a device": ("", "<serial type='dev'><source path='/dev/ttyS0'/></serial>"),
    "a serial port on the network": (
        "",
        "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='1'/></serial>",
    ),
    "a parallel port into a pipe": ("", "<parallel type='pipe'><source path='/tmp/x'/></parallel>"),
    "a console on a socket": ("", "<console type='unix'><source mode='connect' path='/run/docker.sock'/></console>"),
    "randomness from a file": ("", "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>"),
    "randomness from a program": ("", "<rng model='virtio'><backend model='egd' type='tcp'/></rng>"),
    "an interface of the host": ("", "<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>"),
    "an interface with a program": ("", "<interface type='bridge'><source bridge='b'/><script path='x'/></interface>"),
    "an interface with a device": ("", "<interface type='user'><backend tap='/dev/net/tun'/></interface>"),
    "a display on a socket": ("", "<graphics type='vnc' socket='/tmp/x'/>"),
    "a display on a socket, said inside": ("", "<graphics type='vnc'><listen type='socket'/></graphics>"),
    "a display of the host's": ("", "<graphics type='sdl' display=':0'/>"),
    "an input device of the host": ("", "<input type='evdev'><source dev='/dev/input/event1'/></input>"),
    "memory in a file": ("", "<memory model='nvdimm'><source><path>x</path></source></memory>"),
    "sound into a file": ("", "<audio id='1' type='file' path='/etc/cron.d/x'/>"),
    "a path in a place that nobody thought of": ("", "<video><model type='vga'><x y='/etc/shadow'/></model></video>"),
    "a way out in a place that nobody thought of": ("<clock x='a/../../b'/>", ""),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_would_reach_into_the_host(what: str) -> None:
    inside, devices = FOREIGN[what]
    found = of(inside, devices)
    assert len(found.foreign) == 1, found.foreign
    # It is out: what is left is fit for this host.
    again = adopt(found.xml, PLACED)
    assert again.foreign == ()
    assert again.xml == found.xml


BOOT = {
    "a kernel": "<kernel>/etc/shadow</kernel>",
    "an initial RAM disk": "<initrd>/etc/shadow</initrd>",
    "firmware": "<loader>/etc/shadow</loader>",
    "a device tree": "<dtb>/etc/shadow</dtb>",
    "a table": "<acpi><table type='slic'>/etc/shadow</table></acpi>",
}


@pytest.mark.parametrize("what", BOOT)
def test_what_it_would_boot_from_the_host(what: str) -> None:
    text = definition("web1").replace("hvm</type>", f"hvm</type>{BOOT[what]}")
    found = adopt(text, PLACED)
    assert len(found.foreign) == 1
    assert "shadow" not in found.xml


def test_variables_come_from_the_file_alone() -> None:
    nvram = "<nvram template='/etc/shadow'>/var/lib/libvirt/qemu/nvram/other_VARS.fd</nvram>"
    text = definition("web1").replace("hvm</type>", f"hvm</type><loader type='pflash'>/fw/CODE.fd</loader>{nvram}")
    without = adopt(text, Placed(PLACED.drives, loaders=frozenset({"/fw/CODE.fd"})))
    assert (without.foreign, "nvram" in without.xml) == ((), False)
    placed = Placed(PLACED.drives, nvram="/nv/web1_VARS.fd", loaders=frozenset({"/fw/CODE.fd"}))
    found = adopt(text, placed)
    assert found.foreign == ()
    assert "<nvram>/nv/web1_VARS.fd</nvram>" in found.xml


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<x",
        "<network/>",
        "<domain type='lxc'><os><type>exe</type></os></domain>",
        "<domain type='xen'><os><type>hvm</type></os></domain>",
        "<domain type='kvm'><os><type>hvm</type></os><os/></domain>",
        "<domain type='kvm'><os><type>hvm</type></os><devices/><devices/></domain>",
        "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/shadow'>]>" + definition("web1", inside="<title>&x;</title>"),
    ],
)
def test_what_is_no_definition(text: str) -> None:
    with pytest.raises(UsageError):
        adopt(text, PLACED)


def test_the_seed_is_where_it_came_to_lie() -> None:
    said = "<kvmctl:guest xmlns:kvmctl='urn:kvmctl:guest:1'><kvmctl:cloud-init seed='/old.iso'/></kvmctl:guest>"
    said = f"<metadata>{said}</metadata>"
    found = of(inside=said, placed=Placed(PLACED.drives, seed="/pool/seed.iso"))
    assert 'seed="/pool/seed.iso"' in found.xml
    assert "/old.iso" not in of(inside=said).xml


@given(st.text(alphabet="/~.abc ", max_size=12), st.sampled_from(["file", "dev", "path", "value", "x"]))
def test_no_path_is_left_anywhere(text: str, attribute: str) -> None:
    found = of(devices=f"<video><model><acceleration {attribute}='{text}'/></model></video>")
    foreign = text.strip().startswith(("/", "~")) or "../" in text
    assert bool(found.foreign) == foreign
    assert not (foreign and f"{attribute}=" in found.xml.partition("<video")[2])


@pytest.mark.parametrize("path", sorted((GOLDEN / "foreign").glob("*.xml")), ids=lambda path: path.name)
def test_real_definitions_are_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    try:
        found = adopt(text, PLACED)
    except UsageError as error:
        assert "virtual machine" in error.message or "twice" in error.message  # noqa: PT017 - others are read
        return
    assert adopt(found.xml, PLACED).foreign == ()
