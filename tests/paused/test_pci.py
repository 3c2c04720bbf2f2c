"""Guests that name a PCI device, as libvirt tells of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control.pci import guests_of
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.pci import GuestUse
from tests.conftest import Kvmctl

pytestmark = pytest.mark.paused

SYS = Path("/sys/bus/pci/devices")
HERE = sorted(path.name for path in SYS.iterdir()) if SYS.is_dir() else []
ABSENT = "ffff:ff:1f.7"


def xml(name: str, address: str) -> str:
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
      <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
      <hostdev mode='subsystem' type='pci' managed='yes'><source>
        <address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/></source></hostdev>
      </devices></domain>"""


def test_a_guest_that_is_off_is_named_with_its_device(hypervisor: Hypervisor, make_name: Callable[..., str]) -> None:
    name = make_name("pci")
    domains.define(hypervisor, name, xml(name, ABSENT))
    assert GuestUse(name, running=False, managed=True) in guests_of(hypervisor)[ABSENT]


@pytest.mark.skipif(not HERE, reason="this machine has no PCI devices")
def test_the_list_shows_it(hypervisor: Hypervisor, make_name: Callable[..., str], kvmctl: Kvmctl) -> None:
    name = make_name("pci")
    domains.define(hypervisor, name, xml(name, HERE[0]))
    rows = {row["name"]: row for row in kvmctl("-c", hypervisor.uri, "pci", "list", "-o", "json").json()}
    assert {"name": name, "running": False, "managed": True} in rows[HERE[0]]["guests"]
    assert name in kvmctl("-c", hypervisor.uri, "pci", "list").out
