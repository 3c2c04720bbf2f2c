"""Guests that kvmctl did not make, and what others do to guests behind its back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lxml import etree

from kvmctl.hypervisor import domains, live
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml import metadata
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

Names = Callable[..., str]
SHAPES = sorted((Path(__file__).parent / "foreign").glob("*.xml"))
CAN_START = [shape for shape in SHAPES if shape.stem != "devices"]
"""The others name a network disk and host devices that are not there."""


@pytest.fixture
def define(hypervisor: Hypervisor, make_name: Names, pool: tuple[str, Path]) -> Callable[..., Guest]:
    """Defines a guest from a file, as its owner would with virsh."""

    def make(shape: Path, start: bool = False) -> Guest:
        name = make_name(f"fa-{shape.stem}")
        text = shape.read_text().replace("NAME", name).replace("FOLDER", str(pool[1]))
        (pool[1] / "one.img").write_bytes(bytes(1 << 20))
        domain = hypervisor.connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        if start:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        return Guest(hypervisor, name)

    return make


def by_name(path: Path) -> str:
    return path.stem


def rest(definition: str, *paths: str) -> str:
    """The definition without what lies at the paths, and without the whitespace and elements that are left empty."""
    root = etree.fromstring(definition, etree.XMLParser(remove_blank_text=True))
    for path in paths:
        for found in root.findall(path):
            parent = found.getparent()
            assert parent is not None
            parent.remove(found)
            if not len(parent) and not parent.attrib:
                root.remove(parent)
    return etree.tostring(root, pretty_print=True, encoding="unicode")


def secure(guest: Guest) -> str:
    return domains.definition(guest.domain, secure=True)


@pytest.mark.parametrize("shape", SHAPES, ids=by_name)
def test_its_spec_applies_with_no_change(kvmctl: Kvmctl, define: Callable[..., Guest], shape: Path) -> None:
    guest = define(shape)
    before = secure(guest)
    spec = kvmctl("spec", guest.name).out
    assert "secret" not in spec + kvmctl("xml", guest.name).out + kvmctl("show", guest.name).out
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []
    assert secure(guest) == before


ASSIGNMENTS = {
    "cpu.shares=1234": ("cputune/shares",),
    "cpu.limit=0.5": ("cputune/global_quota", "cputune/global_period"),
    "memory.size=48MiB": ("currentMemory",),
    "labels.tier=front": (metadata.PATH,),
    "cpu.reservation=0.01": (metadata.PATH,),
    "description=other": ("description",),
}


@pytest.mark.parametrize("shape", SHAPES, ids=by_name)
def test_what_the_file_cannot_say_is_kept(kvmctl: Kvmctl, define: Callable[..., Guest], shape: Path) -> None:
    guest = define(shape)
    for assignment, paths in ASSIGNMENTS.items():
        before = secure(guest)
        assert "1 change" in kvmctl("set", guest.name, assignment).err
        after = secure(guest)
        assert after != before
        assert rest(after, *paths) == rest(before, *paths), assignment
        assert kvmctl("-o", "json", "set", guest.name, assignment).json() == []


@pytest.mark.parametrize("shape", CAN_START, ids=by_name)
def test_one_that_runs_has_no_changes_and_takes_some(kvmctl: Kvmctl, define: Callable[..., Guest], shape: Path) -> None:
    guest = define(shape)
    kvmctl("start", guest.name, "--paused")
    spec = kvmctl("spec", guest.name).out
    assert kvmctl("-o", "json", "diff", "-f", "-", stdin=spec).json() == []
    kvmctl("list", guest.name)
    assert kvmctl("-o", "json", "show", guest.name).json()["pending_restart"] == []
    outcome = kvmctl("-o", "json", "set", guest.name, "cpu.limit=0.5", "labels.a=b").json()
    assert {one["field"]: one["result"] for one in outcome} == {"cpu.limit": "changed", "labels.a": "changed"}
    assert live.limit(guest.domain) == 0.5
    kvmctl("stop", guest.name, "--force")
    kvmctl("--yes", "delete", guest.name)
    kvmctl("show", guest.name, code=3)


PLAIN = next(shape for shape in SHAPES if shape.stem == "virt-install-generic")


@pytest.fixture
def plain(define: Callable[..., Guest]) -> Guest:
    """A guest of virt-install's, with two vCPUs, paused."""
    return define(PLAIN, start=True)


def test_one_without_a_definition(kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor) -> None:
    name = make_name("fa-transient")
    text = PLAIN.read_text().replace("NAME", name)
    hypervisor.connection.createXML(text, libvirt.VIR_DOMAIN_START_PAUSED)
    assert kvmctl("-o", "json", "list", name).json()[0]["state"] == "paused"
    assert kvmctl("-o", "json", "show", name).json()["persistent"] is False
    spec = kvmctl("spec", name).out
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []
    refused = kvmctl("set", name, "cpu.limit=0.5", code=4).err
    assert "transient" in refused
    assert "virsh define" in refused
    kvmctl("--yes", "delete", name, "--force")
    kvmctl("show", name, code=3)


def test_one_that_is_saved_takes_changes_after_it_was_resumed(kvmctl: Kvmctl, plain: Guest) -> None:
    plain.domain.managedSave(0)
    ran = kvmctl("-o", "json", "set", plain.name, "cpu.limit=0.5", "labels.a=b").json()
    results = {one["field"]: one["result"] for one in ran}
    assert results == {"cpu.limit": "pending restart", "labels.a": "changed"}
    assert "managedsave-remove" in next(one["reason"] for one in ran if one["field"] == "cpu.limit")
    kvmctl("start", plain.name, "--paused")
    assert live.limit(plain.domain) == float("inf")
    spec = kvmctl("spec", plain.name).out
    mended = kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json()
    assert [(one["field"], one["result"]) for one in mended] == [("cpu.limit", "changed")]
    assert live.limit(plain.domain) == 0.5


def test_one_with_a_snapshot_and_a_saved_state_is_deleted_whole(
    kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor, pool: tuple[str, Path]
) -> None:
    name = make_name("fa-snapshot")
    disk = f"disks: [{{volume: {name}.qcow2, pool: {pool[0]}, size: 1MiB}}]"
    kvmctl("apply", "-f", "-", stdin=f"guests: [{{name: {name}, accelerator: tcg, state: stopped, {disk}}}]")
    domain = Guest(hypervisor, name).domain
    domain.snapshotCreateXML("<domainsnapshot><name>one</name></domainsnapshot>")
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=kvmctl("spec", name).out).json() == []
    kvmctl("set", name, "cpu.shares=1234")
    assert domain.snapshotListNames() == ["one"]
    kvmctl("--yes", "delete", name)
    kvmctl("show", name, code=3)


def schedinfo(domain: Any) -> None:
    domain.setSchedulerParametersFlags({"global_quota": 30000}, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def unplug(domain: Any) -> None:
    domain.setVcpusFlags(1, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def pin_all(domain: Any) -> None:
    for vcpu in range(2):
        pin_one(domain, vcpu)


def pin_one(domain: Any, vcpu: int = 1) -> None:
    cpus = domain.connect().getCPUMap()[0]
    domain.pinVcpuFlags(vcpu, (True,) + (False,) * (cpus - 1), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def redefine(domain: Any) -> None:
    text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain.connect().defineXML(text.replace("<on_reboot>restart<", "<on_reboot>destroy<").replace("'hd'", "'cdrom'"))


@pytest.mark.parametrize(
    ("meddle", "field", "result"),
    [
        (schedinfo, "cpu.limit", "changed"),
        (pin_all, "cpu.pin", "changed"),
        (pin_one, "cpu.pin", "changed"),
        (redefine, "boot.order", "changed"),
    ],
)
def test_what_virsh_changed_is_seen_and_mended(
    kvmctl: Kvmctl, plain: Guest, meddle: Callable[[Any], None], field: str, result: str
) -> None:
    spec = kvmctl("spec", plain.name).out
    meddle(plain.domain)
    pending = kvmctl("-o", "json", "diff", "-f", "-", stdin=spec, code=10).json()
    assert [one["field"] for one in pending] == [field]
    mended = kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json()
    assert [(one["field"], one["result"]) for one in mended] == [(field, result)]
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []


def test_vcpus_that_are_pinned_each_to_its_own_stay_so(kvmctl: Kvmctl, define: Callable[..., Guest]) -> None:
    guest = define(PLAIN)
    pins = "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune><os>"
    guest.domain.connect().defineXML(secure(guest).replace("<os>", pins))
    kvmctl("start", guest.name, "--paused")
    before = guest.domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=kvmctl("spec", guest.name).out).json() == []
    assert kvmctl("-o", "json", "show", guest.name).json()["pending_restart"] == []
    assert guest.domain.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE) == before
