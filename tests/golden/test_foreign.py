"""Guests that kvmctl did not make: read, changed, and never robbed of what a guest file cannot say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import libvirt
import pytest

from kvmctl.model.fields import Context
from kvmctl.model.guestfile import dump, load
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
from kvmctl.model.units import MIB
from kvmctl.policy.diff import diff
from kvmctl.xml import devices
from kvmctl.xml.edit import edit
from kvmctl.xml.parse import parse
from tests.golden.specs import TCG
from tests.golden.test_rendered import INACTIVE, PREFIX, defined

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor

FOREIGN = sorted((Path(__file__).parent / "foreign").glob("*.xml"))
QEMU = [path for path in FOREIGN if "type='lxc'" not in path.read_text() and "type='test'" not in path.read_text()]
WISHES = {
    "promises": GuestSpec(
        "",
        cpu=CpuSpec(shares=50_000, limit=0.5, reservation=0.25, pin="1", emulator_pin="0"),
        memory=MemorySpec(size=128 * MIB, reservation=64 * MIB, shares="low"),
        labels=(("role", "<web>"),),
        project="shop",
        rebalance=False,
        description="changed & <kept>",
    ),
    "lifted": GuestSpec("", cpu=CpuSpec(limit=UNLIMITED, pin="", emulator_pin="", shares="high"), description=""),
    "devices": GuestSpec(
        "",
        disks=(DiskSpec(path="/srv/new.qcow2"), DiskSpec(path="/srv/scsi.raw", bus="scsi")),
        nics=(NicSpec(network="default"), NicSpec(user=True), NicSpec(bridge="br1"), NicSpec(network="extra")),
        boot=BootSpec(order=("network", "disk")),
        console=ConsoleSpec(log="/var/log/libvirt/qemu/new.log"),
        vnc=VncSpec(listen="127.0.0.1", port=5999),
        agent=True,
        rng=True,
    ),
    "bare": GuestSpec(
        "", disks=(), nics=(), console=ConsoleSpec(False), vnc=VncSpec(enabled=False), agent=False, rng=False
    ),
    "install": GuestSpec(
        "",
        boot=BootSpec(iso="/srv/install.iso"),
        cloud_init=CloudInitSpec(hostname="h", seed="/srv/seed.iso", digest="d"),
    ),
}  # fmt: skip

CASES = [
    (path, what)
    for path in FOREIGN
    for what in WISHES
    # A container starts from nothing, and an ISO goes with no kernel: the file's rules refuse that before.
    if (path.stem, what) not in {("container", "devices"), ("container", "install"), ("vagrant", "install")}
]


def wish(what: str, path: Path) -> GuestSpec:
    name = parse(path.read_text()).spec.name
    spec = WISHES[what]
    return GuestSpec(**{key: getattr(spec, key) for key in spec.__dataclass_fields__} | {"name": name})


def inexpressible(xml: str) -> Counter[str]:
    """Everything in a definition that no field of a spec is about, as canonical XML."""
    root = ElementTree.fromstring(xml)
    ours = {
        "name",
        "uuid",
        "description",
        "metadata",
        "memory",
        "currentMemory",
        "vcpu",
        "vcpus",
        "cpu",
        "os",
        "devices",
    }
    parts = [child for child in root if child.tag not in ours | {"cputune", "memoryBacking", "features"}]
    parts += [child for path in ("cputune", "memoryBacking", "features", "cpu") for child in _beyond(root, path)]
    parts += [child for child in root.iterfind("metadata/*") if "kvmctl" not in child.tag]
    parts += [device for device in root.iterfind("devices/*") if not _is_expressible(device, root)]
    return Counter(
        re.sub(r"\s+", " ", ElementTree.canonicalize(ElementTree.tostring(part), strip_text=True)) for part in parts
    )


def _beyond(root: ElementTree.Element, path: str) -> list[ElementTree.Element]:
    said = {"shares", "global_quota", "global_period", "emulatorpin", "hugepages", "nosharepages", "model", "topology"}
    return [child for child in root.iterfind(f"{path}/*") if child.tag not in said]


def _is_expressible(device: ElementTree.Element, root: ElementTree.Element) -> bool:
    known = {
        "disk": lambda: not isinstance(devices.disk(device), str),
        "interface": lambda: not isinstance(devices.nic(device), str),
        "serial": lambda: device in devices.consoles(root),
        "console": lambda: device in devices.consoles(root),
        "graphics": lambda: devices.is_vnc(device),
        "video": lambda: not any(not devices.is_vnc(graphics) for graphics in root.iterfind("devices/graphics")),
        "channel": lambda: devices.is_agent(device),
        "rng": lambda: devices.is_rng(device),
    }  # fmt: skip
    return device.tag in known and known[device.tag]()


@pytest.mark.unit
@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_what_is_read_changes_nothing(path: Path) -> None:
    text = path.read_text()
    assert edit(text, parse(text).spec, TCG) is text


@pytest.mark.unit
@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_what_is_read_can_be_said_in_a_file(path: Path) -> None:
    # An odd quota and odd memory, as virsh takes them.
    text = path.read_text().replace("<cputune>", "<cputune><global_quota>33333</global_quota>")
    text = re.sub(r"<memory( unit=.KiB.)?>(\d+)<", r"<memory\1>\g<2>7<", text)
    found = parse(text)
    (said,) = load([("file", dump([found.spec]).encode())], Context()).guests
    assert diff(said, found.spec) == ()
    assert edit(text, said, TCG) is text


@pytest.mark.unit
@pytest.mark.parametrize(("path", "what"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_an_edit_does_what_it_should_and_loses_nothing(path: Path, what: str) -> None:
    text, desired = path.read_text(), wish(what, path)
    edited = edit(text, desired, TCG)
    assert diff(desired, parse(edited).spec) == ()
    assert edit(edited, desired, TCG) is edited
    assert inexpressible(text) - inexpressible(edited) == Counter()
    for comment in re.findall(r"<!--.*?-->", text, re.DOTALL):
        assert comment in edited


@pytest.mark.golden
@pytest.mark.parametrize(
    ("path", "what"), [case for case in CASES if case[0] in QEMU], ids=lambda value: getattr(value, "stem", value)
)
def test_libvirt_takes_the_edited_guest(path: Path, what: str, hypervisor: Hypervisor) -> None:
    name = f"{PREFIX}{path.stem}"
    text = re.sub(r"<name>.*</name>", f"<name>{name}</name>", path.read_text())
    text = re.sub(r"\s*<uuid>.*</uuid>", "", text)
    desired = wish(what, path)
    with defined(hypervisor.connection, text) as domain:
        # Read and defined once more, libvirt numbers consoles anew.
        hypervisor.connection.defineXML(domain.XMLDesc(INACTIVE))
        before = domain.XMLDesc(INACTIVE)
        assert edit(before, parse(before).spec, TCG) is before
        edited = edit(before, desired, TCG)
        hypervisor.connection.defineXMLFlags(edited, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        after = domain.XMLDesc(INACTIVE)
    assert diff(desired, parse(after).spec) == ()
    assert inexpressible(before) - inexpressible(after) == Counter()
