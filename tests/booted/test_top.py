"""`top` measures what guests that work really use, and what they wait for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl
from tests.support import Guest, Screen, until

pytestmark = pytest.mark.booted

SPIN = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"
"""A boot sector that jumps to itself for ever."""


@pytest.fixture
def busy(hypervisor: Hypervisor, make_name: Callable[..., str], pool: tuple[str, Path]) -> Callable[[float], Guest]:
    """Guests with a vCPU that never sleeps, and a limit in cores."""
    disk = pool[1] / "spin.raw"
    disk.write_bytes(SPIN.ljust(1 << 20, b"\0"))
    disk.chmod(0o644)

    def make(limit: float) -> Guest:
        name = make_name("top")
        text = f"""
            <domain type='qemu'>
              <name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
              <os><type arch='x86_64'>hvm</type></os>
              <cputune>
                <global_period>100000</global_period><global_quota>{round(limit * 100_000)}</global_quota>
              </cputune>
              <devices>
                <disk type='file'>
                  <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/><readonly/>
                </disk>
              </devices>
            </domain>"""
        domains.start(domains.define(hypervisor, name, text))
        return Guest(hypervisor, name)

    return make


def frame(kvmctl: Kvmctl, *words: str) -> dict[str, Any]:
    document: dict[str, Any] = kvmctl("top", "--once", "--every", "1s", "-o", "json", *words).json()
    return document


def test_use_and_entitlement_are_measured(kvmctl: Kvmctl, busy: Callable[[float], Guest]) -> None:
    guest = busy(0.3)

    def look() -> dict[str, Any]:
        found: dict[str, Any]
        (found,) = frame(kvmctl, "--filter", guest.name)["guests"]
        return found

    found = until(look, lambda line: 0.2 < line["used"] < 0.4, 60, "a guest that uses all of its limit")
    assert (found["state"], found["bound"], found["limit"]) == ("running", "limit", 0.3)
    assert found["entitlement"] == pytest.approx(0.3)
    assert 0 <= found["steal"] <= 100
    assert found["resident"] > 16 << 20
    assert found["cpu_pressure"] is None or 0 <= found["cpu_pressure"] <= 100


def test_the_busiest_guest_stands_first(kvmctl: Kvmctl, busy: Callable[[float], Guest]) -> None:
    little, much = busy(0.05), busy(0.4)
    ours = {little.name, much.name}

    def order() -> list[str]:
        return [line["name"] for line in frame(kvmctl)["guests"] if line["name"] in ours]

    until(order, lambda names: names == [much.name, little.name], 60, "the order of the guests")


def test_the_screen_follows_a_guest_that_begins_and_ends(screen: Screen, busy: Callable[[float], Guest]) -> None:
    def latest() -> str:
        screen.expect("")
        return screen.text.rpartition("\x1b[H")[2]

    screen.start("top", "--every", "500ms", "--filter", "kvmctl-test-top")
    screen.expect("no running guest")
    guest = busy(0.1)
    shown = guest.name[-6:]
    until(latest, lambda text: shown in text, 30, "the screen")
    guest.remove()
    until(latest, lambda text: "no running guest" in text, 30, "the screen")
    screen.type(b"q")
    assert screen.wait() == 0
