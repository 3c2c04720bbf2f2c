"""`kvmctl events` on guests that need no Linux, and without its daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl, environment
from tests.following import Follower
from tests.hosts import PrivateHost, private_host
from tests.support import Guest

pytestmark = pytest.mark.paused
TABLET = "<input type='tablet' bus='usb'/>"


@pytest.fixture
def follow(state: Path, tmp_path: Path) -> Callable[..., Follower]:
    return lambda *words: Follower(tmp_path, environment(state, tmp_path / "run"), *words)


@pytest.fixture
def guest(make_name: Callable[..., str], hypervisor: Hypervisor) -> Guest:
    """A defined guest of 64 MiB with nothing but a USB controller."""
    made = Guest(hypervisor, make_name("events"))
    domains.define(
        hypervisor,
        made.name,
        f"<domain type='qemu'><name>{made.name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os>"
        "<devices><controller type='usb' model='qemu-xhci'/></devices></domain>",
    )
    return made


def test_from_its_start_to_its_end(guest: Guest, follow: Callable[..., Follower], kvmctl: Kvmctl) -> None:
    begun = time.time()
    with follow(guest.name, "-o", "json", "--kind", "lifecycle,reboot") as following:
        kvmctl("start", "--paused", guest.name)
        kvmctl("resume", guest.name)
        domains.reset(guest.domain)
        kvmctl("stop", guest.name, "--force", "--timeout", "0")
        domains.undefine(guest.domain)
        following.find("undefined", "removed")
        told = following.events
        assert following.end() == 130
    assert {(event["guest"], len(event["uuid"])) for event in told} == {(guest.name, 36)}
    happened = [(event["event"], event["detail"]) for event in told]
    assert happened[:3] == [("started", "booted"), ("paused", "on request"), ("resumed", "unpaused")]
    assert ("reboot", None) in happened
    assert happened[-2:] == [("stopped", "powered off"), ("undefined", "removed")]
    times = [event["time"] for event in told]
    assert [begun, *times] == sorted([begun, *times])
    assert times[-1] <= time.time()


def test_what_is_changed_on_it(guest: Guest, follow: Callable[..., Follower]) -> None:
    with follow(guest.name, "-o", "json") as following:
        domain = guest.domain
        domains.start(domain, paused=True)
        domain.setSchedulerParametersFlags({"cpu_shares": 2048}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        assert following.find("tuning", "cpu_shares 2048")["tuning"] == {"cputune.cpu_shares": 2048}
        domain.pinVcpu(0, (True, False))
        assert following.find("tuning", "vcpupin0 0")["tuning"] == {"cputune.vcpupin0": "0"}
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<x/>", "x", "urn:x", libvirt.VIR_DOMAIN_AFFECT_LIVE)
        following.find("metadata", "urn:x")
        domain.attachDeviceFlags(TABLET, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        tablet = following.find("device-added")["device"]
        domain.detachDeviceFlags(TABLET, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        assert following.find("device-removed")["device"] == tablet
        domain.managedSave(0)
        following.find("stopped", "its state was saved")
        assert following.find("migration")["pass"] == 1
        domain.create()
        following.find("started", "restored from its saved state")


@pytest.mark.parametrize("end", [PrivateHost.stop_daemon, PrivateHost.kill_daemon])
def test_a_daemon_that_goes_ends_it_with_6(end: Callable[[PrivateHost], None], follow: Callable[..., Follower]) -> None:
    with private_host() as host, follow("-c", host.uri) as following:
        end(host)
        assert following.wait() == 6
        assert f"error: the connection to {host.uri} is lost: its daemon has ended\n" in following.err
        assert "host doctor says which part is missing" in following.err
        assert following.out == ""
