"""Snapshots as libvirt itself keeps, nests and goes back to them, without a guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmctl.control import snapshots
from kvmctl.control.select import Guest
from kvmctl.hypervisor import domains
from kvmctl.hypervisor import snapshots as driver
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.errors import ConflictError, NotFoundError, RefusedError
from kvmctl.policy.snapshots import ordered

pytestmark = pytest.mark.testdriver

DISKS = """\
<domain type='test'><name>disks</name><memory>65536</memory><os><type>hvm</type></os><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/p/a'/><target dev='vda'/></disk>
  <disk type='file' device='cdrom'><target dev='sda'/></disk>
</devices></domain>
"""


@pytest.fixture
def hypervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hypervisor]:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("KVMCTL_HOST_FILE", str(tmp_path / "host.yaml"))
    with open_hypervisor("test:///default") as opened:
        yield opened


@pytest.fixture
def guest(hypervisor: Hypervisor) -> Iterator[Guest]:
    domain = domains.define(hypervisor, "disks", DISKS)
    yield domains.sample_one(domain), domain
    if domains.state(domain) != "stopped":
        domains.power_off(domain)
    for one in snapshots.existing(domain):
        driver.delete(domain, one.name)
    domains.undefine(domain)


def create(hypervisor: Hypervisor, guest: Guest, name: str, memory: bool | None = None, text: str = "") -> str:
    said: list[str] = []
    taken = snapshots.create(hypervisor, guest, name, memory, text, said.append)
    assert said == []
    return f"{taken.snapshot.kind} {taken.snapshot.memory}"


def tree(guest: Guest) -> list[tuple[str, int, bool]]:
    return [(one.name, depth, one.current) for one, depth in ordered(snapshots.existing(guest[1]))]


def test_taken_nested_gone_back_to_and_dropped(hypervisor: Hypervisor, guest: Guest) -> None:
    assert create(hypervisor, guest, "a", text="<&>") == "internal False"
    domains.start(guest[1])
    assert create(hypervisor, guest, "b") == "internal True"
    assert tree(guest) == [("a", 0, False), ("b", 1, True)]
    assert {one.description for one in snapshots.existing(guest[1])} == {"<&>", ""}
    plan = snapshots.plan_revert(guest, "a", force=False)
    assert snapshots.revert(hypervisor, plan, False, lambda _text: None) == "stopped"
    assert create(hypervisor, guest, "c") == "internal False"
    assert tree(guest) == [("a", 0, False), ("b", 1, False), ("c", 1, True)]
    plan = snapshots.plan_revert(guest, "b", force=False)
    assert snapshots.revert(hypervisor, plan, False, lambda _text: None) == "running"
    snapshots.delete(hypervisor, guest, "a", lambda _text: None, lambda _what, _done: None)
    assert {(name, depth) for name, depth, _now in tree(guest)} == {("b", 0), ("c", 0)}


def test_what_is_refused_leaves_no_snapshot(hypervisor: Hypervisor, guest: Guest) -> None:
    with pytest.raises(ConflictError, match="no memory"):
        create(hypervisor, guest, "a", memory=True)
    create(hypervisor, guest, "a")
    with pytest.raises(ConflictError, match="already"):
        create(hypervisor, guest, "a")
    domains.start(guest[1])
    with pytest.raises(RefusedError, match="cut off"):
        create(hypervisor, guest, "b", memory=False)
    with pytest.raises(NotFoundError, match="known: a"):
        snapshots.plan_revert(guest, "b", force=False)
    assert tree(guest) == [("a", 0, True)]
