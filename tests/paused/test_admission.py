"""What would break a promise is refused with its sum, wherever a guest gets more; with --force it is done, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control.room import beginning
from kvmctl.host import memory
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

PLENTY = "memory: {overcommit: 10000%, cover: 0%}\n"
LOW = "memory: {reserve: 1000TiB, overcommit: 10000%, cover: 0%}\n"
"""A host that keeps more than it has is as short of memory as can be."""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "host.yaml"
    path.write_text(PLENTY)
    return path


@pytest.fixture
def run(kvmctl: Kvmctl, policy: Path) -> Kvmctl:
    """The command line under a policy of its own."""
    return lambda *words, **more: kvmctl("-c", "qemu:///system", *words, **more, env={"KVMCTL_HOST_FILE": str(policy)})


@pytest.fixture
def guest(run: Kvmctl, make_name: Callable[..., str], hypervisor: Hypervisor) -> Guest:
    """A paused guest with half of the memory that it can have."""
    name = make_name("admit")
    text = f"guests: [{{name: {name}, accelerator: tcg, state: paused, memory: {{size: 64MiB, max: 128MiB}}}}]"
    run("apply", "-f", "-", stdin=text)
    return Guest(hypervisor, name)


def forced(state: Path) -> list[str]:
    """The promises that were broken knowingly, as the history has them."""
    path = state / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row["reason"] for row in map(json.loads, lines) if row["field"] == "admission"]


def test_a_paused_guest_does_not_go_on_where_memory_is_low(
    run: Kvmctl, guest: Guest, policy: Path, state: Path
) -> None:
    policy.write_text(LOW)
    refused = run("resume", guest.name, code=5)
    assert "available memory: " in refused.err
    assert "MiB available < " in refused.err
    assert "--force" in refused.err
    assert domains.state(guest.domain) == "paused"
    assert "forced, so promises will not be kept: available memory" in run("resume", guest.name, "--force").err
    assert domains.state(guest.domain) == "running"
    assert any(reason.startswith("forced: available memory") for reason in forced(state))
    assert "already" in run("resume", guest.name).out, "one that runs takes nothing"


def test_apply_does_not_let_it_go_on_either(run: Kvmctl, guest: Guest, policy: Path) -> None:
    policy.write_text(LOW)
    assert "available memory: " in run("set", guest.name, "state=running", code=5).err
    assert domains.state(guest.domain) == "paused"


def test_apply_counts_what_a_guest_that_is_off_takes_as_start_does(
    run: Kvmctl, make_name: Callable[..., str], policy: Path
) -> None:
    name, available = make_name("admit-off"), memory.read().available // MIB
    # It touches next to nothing, as it is paused.
    size = f"rebalance: false, memory: {{size: {available * 3 // 4}MiB}}"
    text = f"guests: [{{name: {name}, accelerator: tcg, {size}, state: %s}}]"
    run("apply", "-f", "-", stdin=text % "stopped")
    run("rebalance")
    policy.write_text(f"memory: {{reserve: {available - 200}MiB, overcommit: 10000%, cover: 0%}}\n")
    refused = [run("start", name, code=5), run("apply", "-f", "-", stdin=text % "paused", code=5)]
    assert all("to begin with" in one.err for one in refused)
    policy.write_text(PLENTY)
    run("apply", "-f", "-", stdin=text % "paused")


def test_a_reservation_that_no_longer_fits_keeps_a_paused_guest_where_it_is(
    run: Kvmctl, guest: Guest, policy: Path
) -> None:
    run("set", guest.name, "memory.reservation=48MiB")
    policy.write_text("memory: {limit: 32MiB, overcommit: 10000%, cover: 0%}\n")
    assert f"{guest.name} 48" in (refused := run("resume", guest.name, code=5).err)
    assert "> 32 MiB (" in refused
    assert "48MiB are reserved, and 32MiB are for guests: not every reservation can be kept" in run("memory").err
    assert domains.state(guest.domain) == "paused"


def test_what_takes_no_memory_is_not_asked_about_memory(run: Kvmctl, guest: Guest, policy: Path, state: Path) -> None:
    policy.write_text(LOW)
    run("set", guest.name, "cpu.shares=2000", "memory.swap=false", "description=short")
    assert forced(state) == []


def test_a_guest_that_was_saved_goes_on_with_all_that_it_had(run: Kvmctl, guest: Guest) -> None:
    run("set", guest.name, "memory.size=512MiB")
    assert beginning(guest.domain, MemoryPolicy()).target == 256 * MIB
    guest.domain.managedSave(0)
    assert beginning(guest.domain, MemoryPolicy()).target is None


def test_no_guest_grows_beyond_the_ceiling(run: Kvmctl, guest: Guest, policy: Path) -> None:
    policy.write_text("memory: {limit: 128MiB, overcommit: 100%, cover: 0%}\n")
    refused = run("set", guest.name, "memory.size=256MiB", code=5)
    assert "memory overcommit: " in refused.err
    assert "(100% of the 128 MiB for guests)" in refused.err
    run("set", guest.name, "memory.shares=high")


def test_ten_thousand_per_cent_is_the_most_and_is_kept_to(run: Kvmctl, guest: Guest, policy: Path) -> None:
    policy.write_text("memory: {limit: 16MiB, overcommit: 10000%, cover: 0%}\n")
    refused = run("set", guest.name, "memory.max=1601MiB", code=5).err
    assert "= 1601 > 1600 MiB (10000% of the 16 MiB for guests)" in refused
    run("set", guest.name, "memory.max=1600MiB")
    for more in ("10001%", "10,000%", "1e9%"):
        policy.write_text(f"memory: {{overcommit: '{more}'}}\n")
        said = run("memory", code=2).err
        assert f"{policy}:1:" in said
        assert "memory.overcommit" in said
        assert "10000%" in said
