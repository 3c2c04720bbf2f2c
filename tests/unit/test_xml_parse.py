"""Reading definitions that others wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from kvmctl.model.errors import UsageError
from kvmctl.model.spec import ConsoleSpec, DiskSpec, NicSpec, VncSpec
from kvmctl.model.units import GIB, MIB
from kvmctl.xml.parse import Parsed, parse
from kvmctl.xml.resources import fixed_vcpus

pytestmark = pytest.mark.unit

FOREIGN = Path(__file__).parent.parent / "golden" / "foreign"


def foreign(name: str) -> Parsed:
    return parse((FOREIGN / f"{name}.xml").read_text())


def domain(body: str = "", attributes: str = "type='qemu'") -> Parsed:
    return parse(f"<domain {attributes}><name>g</name>{body}</domain>")


def test_a_guest_with_everything() -> None:
    spec = foreign("by-hand").spec
    assert (spec.cpu.count, spec.cpu.max, spec.cpu.shares, spec.cpu.limit) == (2, 4, 3000, math.inf)
    assert (spec.cpu.pin, spec.cpu.emulator_pin, spec.cpu.model) == ("0-1", "1", "qemu64")
    assert (spec.memory.size, spec.memory.max, spec.memory.hugepages) == (1536 * MIB, 2 * GIB, 2 * MIB)
    assert (spec.memory.sharing, spec.memory.swap) == (False, False)
    assert (spec.boot.firmware, spec.boot.machine, spec.boot.order) == ("uefi", "pc-q35-5.2", ("network", "disk"))
    virtio = DiskSpec(bus="virtio", device="disk", read_only=False)
    assert spec.disks == (
        replace(
            virtio, path="/srv/images/root.qcow2", format="qcow2", target="vda", cache="none", iothread=True, iops=500
        ),
        replace(virtio, volume="data.raw", pool="default", format="raw", target="vdb", iothread=False),
        DiskSpec(bus="sata", device="cdrom", target="sda", read_only=True),
    )
    assert spec.nics == (
        NicSpec(bridge="br0", model="virtio", mac="52:54:00:00:00:02", queues=2, bandwidth_in=1_000_000),
        NicSpec(network="default", model="e1000", mac="52:54:00:00:00:04"),
    )
    assert [(one.pci, one.mac) for one in spec.passthrough or ()] == [
        ("0000:01:00.0", None),
        ("0000:03:10.1", "52:54:00:00:00:03"),
    ]
    assert spec.vnc == VncSpec(listen="0.0.0.0", port=5907)
    assert (spec.console, spec.agent, spec.rng) == (ConsoleSpec(enabled=False), False, False)
    assert spec.description == "first line\n  second & last"
    assert (spec.accelerator, spec.autostart, spec.state) == ("tcg", None, None)


def test_what_it_cannot_say_is_named() -> None:
    named = foreign("by-hand").unexpressed
    for line in (
        "title All there is",
        "iothreads 2",
        "numatune",
        "resource: partition /production",
        "disk sdb: network source rbd rbd/everything",
        "disk sdc: lun",
        "disk vdc: format vmdk",
        "nic 52:54:00:00:00:01: direct eth0",
        "hostdev usb 1234:beef",
        "filesystem /srv/share as share",
        "serial tcp",
        "graphics spice",
        "sound ich9",
        "memballoon none",
        "rng egd",
        "qemu:commandline",
    ):
        assert line in named
    text = "\n".join(named)
    for word in (
        "vcpupin vcpu=0",
        "quota 50000",
        "topology sockets=2",
        "hyperv",
        "boot order=2",
    ):
        assert word in text
    assert "nvram /var/lib/libvirt/qemu/nvram/everything_VARS.fd" in text
    assert "hunter2" not in text


def test_furniture_is_not_named() -> None:
    assert foreign("test-driver").unexpressed == ()
    assert [line.partition(":")[0] for line in foreign("running").unexpressed] == ["os", "features"]


def test_a_running_guest_reads_like_a_stopped_one() -> None:
    spec = foreign("running").spec
    assert [disk.path for disk in spec.disks or ()] == [
        f"/var/lib/libvirt/images/live.{end}" for end in ("iso", "qcow2")
    ]
    assert [(nic.network, nic.user) for nic in spec.nics or ()] == [("default", None), (None, True)]
    assert (spec.vnc, spec.console, spec.agent, spec.rng) == (VncSpec(), ConsoleSpec(), True, True)
    assert (spec.boot.firmware, spec.cpu.shares) == ("uefi", 700)


def test_a_container() -> None:
    found = foreign("container")
    assert (found.spec.accelerator, found.spec.boot.order, found.spec.boot.firmware) == (None, None, None)
    assert found.unexpressed == ("os: init /sbin/init", "filesystem /srv/container as /")


def test_a_domain_that_says_nothing() -> None:
    spec = domain().spec
    assert (spec.cpu.count, spec.cpu.max, spec.cpu.shares, spec.cpu.limit, spec.cpu.pin) == (
        1,
        1,
        "normal",
        math.inf,
        "",
    )
    assert (spec.memory.size, spec.memory.max) == (None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("<memory>2048</memory>", 2 * MIB),
        ("<memory unit='b'>2097152</memory>", 2 * MIB),
        ("<memory unit='KB'>3000</memory>", 3 * MIB),
        ("<memory unit='KiB'>1025</memory>", 2 * MIB),
        ("<memory unit='m'>3</memory>", 3 * MIB),
        ("<memory unit='GiB'>2</memory>", 2 * GIB),
        ("<memory unit='parsec'>2</memory>", None),
        ("<memory>lots</memory>", None),
    ],
)
def test_libvirts_units_of_memory(text: str, size: int | None) -> None:
    assert domain(text).spec.memory.max == size


def test_no_more_memory_than_the_maximum() -> None:
    memory = domain("<memory>1024</memory><currentMemory>4096</currentMemory>").spec.memory
    assert memory.size == memory.max == MIB


@pytest.mark.parametrize(
    ("tune", "limit"),
    [
        ("<global_period>100000</global_period><global_quota>150000</global_quota>", 1.5),
        ("<global_period>50000</global_period><global_quota>150000</global_quota>", 3.0),
        ("<global_quota>25000</global_quota>", 0.25),
        ("<global_quota>-1</global_quota>", math.inf),
        ("<global_period>0</global_period><global_quota>10</global_quota>", 0.001),
        ("<global_quota>33333</global_quota>", 0.333),
        ("<quota>25000</quota>", math.inf),
    ],
)
def test_limits(tune: str, limit: float) -> None:
    assert domain(f"<cputune>{tune}</cputune>").spec.cpu.limit == limit


def test_huge_pages_of_the_hosts_default_size_are_unknown() -> None:
    found = domain("<memoryBacking><hugepages/></memoryBacking>")
    memory = found.spec.memory
    assert found.unexpressed == ("memoryBacking: hugepages of the host's default size",)
    assert (memory.hugepages, memory.sharing, memory.swap) == (None, False, False)


@pytest.mark.parametrize(
    ("cpu", "model"),
    [
        ("<cpu mode='host-passthrough' migratable='on'/>", "host-passthrough"),
        ("<cpu mode='custom'><model>EPYC</model></cpu>", "EPYC"),
        ("<cpu match='exact'><model>EPYC</model></cpu>", "EPYC"),
        ("<cpu mode='host-model'><model fallback='allow'/></cpu>", "host-model"),
        ("<cpu><topology sockets='1' cores='2' threads='1'/></cpu>", None),
        ("", None),
    ],
)
def test_cpu_models(cpu: str, model: str | None) -> None:
    assert domain(cpu).spec.cpu.model == model


@pytest.mark.parametrize(
    ("kind", "vcpus", "fixed"),
    [
        ("kvm", "", 3),
        ("kvm", "<vcpu id='0' enabled='yes' hotpluggable='no'/>", 3),
        (
            "kvm",
            "<vcpu id='0' enabled='yes'/><vcpu id='1' enabled='yes' hotpluggable='yes'/>"
            "<vcpu id='2' enabled='yes' hotpluggable='yes'/><vcpu id='3' enabled='no' hotpluggable='yes'/>",
            1,
        ),
        ("qemu", "<vcpu id='1' enabled='yes' hotpluggable='yes'/>", 3),
        ("xen", "", 1),
    ],
)
def test_vcpus_that_a_running_guest_keeps(kind: str, vcpus: str, fixed: int) -> None:
    found = domain(f"<vcpu current='3'>4</vcpu><vcpus>{vcpus}</vcpus>", f"type='{kind}'")
    assert fixed_vcpus(found.root, found.spec.cpu.count or 0) == fixed


@pytest.mark.parametrize(
    ("boot", "order"),
    [
        ("<boot dev='cdrom'/><boot dev='hd'/>", ("cdrom", "disk")),
        ("<boot dev='hd'/><boot dev='hd'/>", ("disk",)),
        ("<boot dev='fd'/>", ("disk",)),
        ("", ("disk",)),
    ],
)
def test_boot_order(boot: str, order: tuple[str, ...]) -> None:
    assert domain(f"<os><type>hvm</type>{boot}</os>").spec.boot.order == order


def test_secure_boot_cannot_be_said() -> None:
    firmware = (
        "<firmware><feature enabled='yes' name='secure-boot'/><feature enabled='no' name='enrolled-keys'/></firmware>"
    )
    found = domain(f"<os firmware='efi'><type>hvm</type>{firmware}</os>")
    assert found.spec.boot.firmware == "uefi"
    assert found.unexpressed == ("os: firmware feature secure-boot",)


def test_a_floppy_cannot_be_said() -> None:
    assert domain("<os><type>hvm</type><boot dev='fd'/></os>").unexpressed == ("os: boot dev=fd",)


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ("<disk type='dir' device='disk'><source dir='/x'/><target dev='vda' bus='virtio'/></disk>", "dir source"),
        ("<disk type='file' device='floppy'><source file='/x'/><target dev='fda' bus='fdc'/></disk>", "floppy"),
        ("<disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>", "without a source"),
        ("<disk type='file' device='disk'><source file='/x'/><target dev='sda' bus='usb'/></disk>", "bus usb"),
        ("<disk type='file' device='disk'><source file='x'/><target dev='sda' bus='scsi'/></disk>", "path x"),
        ("<disk type='file' device='disk'><source file='/x'/><target dev='xvda' bus='xen'/></disk>", "bus xen"),
    ],
)
def test_disks_that_cannot_be_said(disk: str, reason: str) -> None:
    found = domain(f"<devices>{disk}</devices>")
    assert found.spec.disks == ()
    assert found.unexpressed[0].endswith(reason)


def test_what_is_new_in_libvirt_is_named() -> None:
    found = domain(
        "<holodeck type='x'/><devices><warpdrive model='w9'/></devices><cputune><tachyon>7</tachyon></cputune>"
    )
    assert found.unexpressed == ("holodeck x", "warpdrive w9", "cputune: tachyon 7")


@pytest.mark.parametrize(
    "text", ["", "no", "<domain>", "<domain/><domain/>", "<network/>", "<!DOCTYPE x [<!ENTITY a 'b'>"]
)
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(UsageError, match="XML"):
        parse(text)


def test_entities_do_not_explode() -> None:
    levels = "".join(f"<!ENTITY e{n + 1} '{f'&e{n};' * 10}'>" for n in range(12))
    bomb = f"<!DOCTYPE domain [<!ENTITY e0 'boom'>{levels}]><domain><name>&e12;</name></domain>"
    with pytest.raises(UsageError, match="XML"):
        parse(bomb)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("treasure")
    text = f"<!DOCTYPE domain [<!ENTITY x SYSTEM 'file://{secret}'>]><domain><name>g</name><description>&x;</description></domain>"
    with pytest.raises(UsageError, match="XML"):
        parse(text)
