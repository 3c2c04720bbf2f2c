"""`top` says of real guests what the kernel's files hold, and outlives their hypervisor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml.metadata import NAMESPACE
from tests.conftest import Kvmctl
from tests.hosts import PrivateHost, private_host
from tests.support import PREFIX, Guest, Screen, until

pytestmark = pytest.mark.paused

MIB = 1 << 20


def xml(name: str) -> str:
    return f"""
        <domain type='qemu'>
          <name>{name}</name>
          <memory unit='MiB'>96</memory><currentMemory unit='MiB'>64</currentMemory><vcpu>2</vcpu>
          <os><type arch='x86_64'>hvm</type></os>
          <metadata>
            <k:guest xmlns:k='{NAMESPACE}'><k:cpu reservation='0.25'/></k:guest>
          </metadata>
          <devices><memballoon model='virtio'/></devices>
        </domain>"""


@pytest.fixture
def guest(hypervisor: Hypervisor, make_name: Callable[..., str]) -> Guest:
    name = make_name("top")
    domains.start(domains.define(hypervisor, name, xml(name)), paused=True)
    return Guest(hypervisor, name)


def frame(kvmctl: Kvmctl, guest: Guest, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    document = kvmctl("top", "--once", "--filter", guest.name, "-o", "json", *words).json()
    (found,) = document["guests"]
    return document["host"], found


def test_a_paused_guest_is_shown_as_the_kernel_knows_it(kvmctl: Kvmctl, guest: Guest) -> None:
    host, found = frame(kvmctl, guest, "--every", "500ms")
    assert (found["name"], found["state"], found["vcpus"], found["reservation"]) == (guest.name, "paused", 2, 0.25)
    assert (found["max"], found["balloon"]) == (96 * MIB, guest.domain.info()[2] * 1024)
    assert found["resident"] == pytest.approx(int(guest.status("VmRSS").split()[0]) * 1024, abs=4 * MIB)
    assert found["swapped"] == pytest.approx(int(guest.status("VmSwap").split()[0]) * 1024, abs=4 * MIB)
    assert found["shared"] == int((Path("/proc") / str(guest.pid) / "ksm_merging_pages").read_text()) * 4096
    assert found["weight"] == int((guest.cgroup / "cpu.shares").read_text())
    assert found["used"] == pytest.approx(0, abs=0.3)
    assert found["bound"] == "demand"
    assert host["capacity"] <= host["cores"] == guest.hypervisor.connection.getInfo()[2]
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE))
    assert host["memory_total"] <= int(meminfo["MemTotal"]) * 1024
    assert host["swap_total"] == int(meminfo["SwapTotal"]) * 1024
    assert 0 <= host["busy"] <= 100


def test_pressure_of_a_guest_is_what_the_unified_hierarchy_says(kvmctl: Kvmctl, guest: Guest) -> None:
    unified = Path("/sys/fs/cgroup/unified/machine") / guest.cgroup.name
    _host, found = frame(kvmctl, guest, "--every", "0")
    if not (unified / "cpu.pressure").exists():
        assert (found["cpu_pressure"], found["memory_pressure"]) == (None, None)
        return
    now = re.search(r"some avg10=([\d.]+)", (unified / "cpu.pressure").read_text())
    assert now
    assert found["cpu_pressure"] == pytest.approx(float(now[1]), abs=20)
    assert found["memory_pressure"] is not None


def test_the_first_frame_has_no_rates(kvmctl: Kvmctl, guest: Guest) -> None:
    host, found = frame(kvmctl, guest, "--every", "0")
    assert (found["used"], found["steal"], host["busy"], host["swap_in"]) == (None, None, None, None)
    assert found["entitlement"] > 0, "it counts as hungry"


def test_one_frame_as_text(kvmctl: Kvmctl, guest: Guest) -> None:
    lines = kvmctl("top", "--once", "--every", "300ms", "--filter", guest.name).out.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if guest.name[-6:] in line.split()[0]]
    assert row.split()[1] == "paused"
    assert row.split()[-2] == "96M"


# The hypervisor goes away


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    with private_host() as started:
        yield started


def latest(screen: Screen) -> str:
    """What stands on the screen now."""
    screen.expect("")
    return screen.text.rpartition("\x1b[H")[2]


@pytest.mark.parametrize("end", [PrivateHost.stop_daemon, PrivateHost.kill_daemon])
def test_a_hypervisor_that_goes_away_is_a_line_and_comes_back(
    host: PrivateHost, screen: Screen, end: Callable[[PrivateHost], None]
) -> None:
    name = f"{PREFIX}top"
    with host.open() as hypervisor:
        hypervisor.connection.createXML(xml(name).replace("<vcpu>2", "<vcpu>1"), 1)
    screen.start("-c", host.uri, "top", "--every", "300ms")
    screen.expect(name[-6:])
    end(host)
    screen.expect("trying again")
    assert name[-6:] in latest(screen), "the last frame stays"
    host.start_daemon()
    again = lambda text: name[-6:] in text and "trying again" not in text and "q quit" in text  # noqa: E731
    until(lambda: latest(screen), again, 30, "the screen")
    screen.type(b"q")
    assert screen.wait() == 0
    assert "Traceback" not in screen.text


def test_a_hypervisor_that_hangs_does_not_keep_the_keys_from_working(host: PrivateHost, screen: Screen) -> None:
    screen.start("-c", host.uri, "top", "--every", "300ms")
    screen.expect("no running guest")
    with host.frozen():
        screen.type(b"/hello")
        screen.expect("hello_   Enter keeps it")
        screen.type(b"\rq")
        assert screen.wait(15) == 0
