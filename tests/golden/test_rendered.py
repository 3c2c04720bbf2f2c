"""What is rendered is what the files say, libvirt accepts it, and gives the same guest back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import libvirt
import pytest

from kvmctl.model.defaults import fill
from kvmctl.model.platform import Platform
from kvmctl.model.spec import GuestSpec, NicSpec
from kvmctl.policy.diff import diff
from kvmctl.xml.capabilities import accelerators, parse_platform
from kvmctl.xml.edit import edit
from kvmctl.xml.parse import parse
from kvmctl.xml.render import SPARE_ROOT_PORTS, render
from tests.golden.specs import SPECS, platform_of, stored

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor

pytestmark = pytest.mark.golden

RENDERED = Path(__file__).parent / "rendered"
PREFIX = "kvmctl-test-golden-"
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


@contextmanager
def defined(connection: Any, xml: str) -> Iterator[Any]:
    domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        yield domain
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def real_platform(connection: Any, spec: GuestSpec) -> Platform:
    capabilities = connection.getCapabilities()
    accelerator = spec.accelerator or "tcg"
    if accelerator not in accelerators(capabilities):
        pytest.skip(f"no {accelerator} here")
    virt_type = {"kvm": "kvm", "tcg": "qemu"}[accelerator]
    machine = spec.boot.machine or "q35"
    return parse_platform(capabilities, connection.getDomainCapabilities(None, None, machine, virt_type))


@pytest.mark.parametrize("name", SPECS)
def test_rendered_as_in_the_file(name: str, refresh: bool) -> None:
    platform = platform_of(SPECS[name])
    text = render(fill(SPECS[name], platform), platform)
    path = RENDERED / f"{name}.xml"
    if refresh:
        path.write_text(text)
    assert text == path.read_text()


def test_no_file_without_a_guest() -> None:
    assert {path.stem for path in RENDERED.iterdir()} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_libvirt_gives_back_the_same_guest(name: str, hypervisor: Hypervisor) -> None:
    platform = real_platform(hypervisor.connection, SPECS[name])
    full = fill(replace(SPECS[name], name=PREFIX + name), platform)
    with defined(hypervisor.connection, render(full, platform)) as domain:
        text = domain.XMLDesc(INACTIVE)
    found = parse(text)
    macs = tuple(nic.mac for nic in found.spec.nics or ())
    assert all(macs)
    expected = stored(replace(full, nics=tuple(map(_with_mac, full.nics or (), macs))))
    assert found.spec == replace(expected, disks=found.spec.disks)
    # libvirt sorts disks of the same bus by target.
    assert sorted(found.spec.disks or (), key=str) == sorted(expected.disks or (), key=str)
    assert found.unexpressed == ()
    assert diff(replace(full, autostart=None, disks=expected.disks), found.spec) == ()
    assert edit(text, full, platform) is text


def _with_mac(nic: NicSpec, mac: str | None) -> NicSpec:
    return nic if nic.mac else replace(nic, mac=mac)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.boot.machine != "pc"])
def test_devices_can_be_plugged_in_later(name: str, hypervisor: Hypervisor) -> None:
    platform = real_platform(hypervisor.connection, SPECS[name])
    full = fill(replace(SPECS[name], name=PREFIX + name), platform)
    with defined(hypervisor.connection, render(full, platform)) as domain:
        devices = ElementTree.fromstring(domain.XMLDesc(INACTIVE)).find("devices")
    assert devices is not None
    ports = {int(port.get("index", "")) for port in devices.iterfind("controller[@model='pcie-root-port']")}
    used = {int(address.get("bus", ""), 16) for address in devices.iterfind("*/address[@type='pci']")}
    assert len(ports - used) >= SPARE_ROOT_PORTS
    assert len(ports - used) <= SPARE_ROOT_PORTS + 1


def test_libvirts_test_driver_takes_a_guest() -> None:
    connection = libvirt.open("test:///default")
    try:
        platform = parse_platform(connection.getCapabilities(), None)
        full = fill(replace(SPECS["promises"], name="promised"), platform)
        domain = connection.defineXMLFlags(render(full, platform), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        found = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        domain.undefine()
    finally:
        connection.close()
    assert found.spec == stored(full)
    assert found.unexpressed == ()
