"""Devices of the host in guests, on a machine that can pass none: what is refused, and what libvirt has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.spec import PassedSpec
from kvmctl.xml.parse import parse
from tests.conftest import Kvmctl, Ran
from tests.paused.test_pci import ABSENT, HERE, xml

pytestmark = pytest.mark.paused

MDEV = "4b20d080-1b54-4048-85b3-a6a62d165c01"
NO_IOMMU = not any(Path("/sys/kernel/iommu_groups").glob("*"))
Apply = Callable[..., Ran]


@pytest.fixture
def apply(kvmctl: Kvmctl, tmp_path: Path) -> Apply:
    """Applies a guest that has these devices."""

    def run(name: str, keys: str, code: int, state: str = "stopped") -> Ran:
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            f"guests:\n- {{name: {name}, accelerator: tcg, memory: {{size: 64MiB}}, state: {state}, {keys}}}\n"
        )
        return kvmctl("apply", "-f", file, code=code)

    return run


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        (f"passthrough: [{{pci: '{ABSENT}'}}]", 3, f"there is no PCI device {ABSENT}"),
        (f"passthrough: [{{vf-of: '{ABSENT}'}}]", 3, f"there is no PCI device {ABSENT}"),
        (f"passthrough: [{{mdev: {MDEV}}}]", 3, f"there is no mdev {MDEV}"),
        (f"nics: [{{mode: passthrough, pci: '{ABSENT}'}}]", 3, f"there is no PCI device {ABSENT}"),
        (f"disks: [{{mode: passthrough, vf-of: '{ABSENT}'}}]", 3, f"there is no PCI device {ABSENT}"),
        ("nics: [{mode: passthrough, network: default}]", 2, "unknown key 'passthrough.0.network'"),
    ],
)
def test_what_is_not_there(
    apply: Apply, make_name: Callable[..., str], hypervisor: Hypervisor, keys: str, code: int, said: str
) -> None:
    name = make_name("passed")
    assert said in apply(name, keys, code).err
    assert name not in domains.names(hypervisor)


@pytest.mark.skipif(not (HERE and NO_IOMMU), reason="this machine has an IOMMU, or no PCI devices")
def test_nothing_can_be_passed_without_an_iommu(apply: Apply, make_name: Callable[..., str]) -> None:
    for address in HERE:
        refused = apply(make_name("passed"), f"passthrough: [{{pci: '{address}'}}]", 5).err
        assert f"{address} cannot be passed through" in refused
    for address in HERE:
        if not Path(f"/sys/bus/pci/devices/{address}/sriov_totalvfs").exists():
            assert "has no SR-IOV" in apply(make_name("passed"), f"passthrough: [{{vf-of: '{address}'}}]", 2).err


def test_a_guest_of_somebody_elses_is_shown_changed_and_not_started(
    kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str]
) -> None:
    name = make_name("passed")
    domains.define(hypervisor, name, xml(name, ABSENT))
    shown = kvmctl("show", name, "-o", "json").json()
    assert shown["devices"] == [{"device": "pci", "name": ABSENT, "model": "vfio", "mode": "passthrough"}]
    assert (shown["spec"]["passthrough"], shown["beyond_the_guest_file"]) == ([{"pci": ABSENT}], [])
    assert f"pci {ABSENT} (vfio)" in kvmctl("show", name).out
    kvmctl("set", name, "memory.size=80MiB", "description=x")
    assert f"there is no PCI device {ABSENT}" in kvmctl("start", name, code=3).err
    assert domains.state(domains.find(hypervisor, name)) == "stopped"
    kvmctl("diff", "-f", "-", stdin=kvmctl("spec", name).out)
    kvmctl("detach", name, ABSENT.upper())
    assert parse(domains.definition(domains.find(hypervisor, name))).spec.passthrough == ()
    assert "has no " in kvmctl("detach", name, ABSENT, code=3).err


def test_libvirt_keeps_what_it_is_told_of_a_function(
    kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str]
) -> None:
    name = make_name("passed")
    text = xml(name, ABSENT).replace("<hostdev mode='subsystem' type='pci' managed='yes'>", "<interface type='hostdev' "
        "managed='yes'><mac address='52:54:00:00:07:01'/><vlan><tag id='7'/></vlan>")  # fmt: skip
    text = text.replace("<address domain", "<address type='pci' domain").replace("</hostdev>", "</interface>")
    domain = domains.define(hypervisor, name, text)
    (one,) = parse(domains.definition(domain)).spec.passthrough or ()
    assert one == PassedSpec(pci=ABSENT, mac="52:54:00:00:07:01", vlan=7)
    assert "nic 52:54:00:00:07:01" in kvmctl("show", name).out
    kvmctl("detach", name, "52:54:00:00:07:01")
    assert parse(domains.definition(domain)).spec.passthrough == ()
