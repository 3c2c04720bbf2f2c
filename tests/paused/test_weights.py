"""Weights follow promises: asserted from the kernel's cgroup files of paused guests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control import weights
from kvmctl.control.capacity import capacity
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Outcome
from kvmctl.model.sample import ACTIVE
from kvmctl.xml.metadata import NAMESPACE
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

PREFIX = "po-"


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal of the test's own."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state/journal.json"


def definition(
    name: str,
    cores: int,
    *,
    shares: int = 1000,
    reservation: float = 0.0,
    limit: float | None = None,
    uuid: str | None = None,
) -> str:
    quota = (
        f"<global_period>100000</global_period><global_quota>{round(limit * 100_000)}</global_quota>" if limit else ""
    )
    return f"""
        <domain type='qemu'>
          <name>{name}</name>{f"<uuid>{uuid}</uuid>" if uuid else ""}<memory unit='MiB'>64</memory><vcpu>{cores}</vcpu>
          <os><type arch='x86_64'>hvm</type></os>
          <cputune><shares>{shares}</shares>{quota}</cputune>
          <metadata>
            <k:guest xmlns:k='{NAMESPACE}'><k:cpu reservation='{reservation}'/></k:guest>
          </metadata>
        </domain>"""


@pytest.fixture
def cores(hypervisor: Hypervisor) -> int:
    return scheduler.host_cores(hypervisor)


@pytest.fixture
def start(hypervisor: Hypervisor, make_name: Callable[..., str], cores: int) -> Callable[..., Guest]:
    """Starts a paused guest that may use every core."""

    def make(what: str, **promise: Any) -> Guest:
        name = make_name(PREFIX + what)
        domains.start(domains.define(hypervisor, name, definition(name, cores, **promise)), paused=True)
        return Guest(hypervisor, name)

    return make


def kernel_weight(guest: Guest) -> int:
    files = [guest.cgroup / "cpu.shares", guest.cgroup / "cpu.weight"]
    return int(next(path for path in files if path.exists()).read_text())


def virsh_weight(guest: Guest) -> int:
    done = subprocess.run(
        ["virsh", "-c", guest.hypervisor.uri, "schedinfo", guest.name], capture_output=True, check=True
    )
    return next(int(line.split()[-1]) for line in done.stdout.decode().splitlines() if line.startswith("cpu_shares"))


def part(guest: Guest) -> float:
    """The guest's part of the weights of all running guests, whoever started them, as the kernel has them."""
    running = [sample for sample in domains.samples(guest.hypervisor) if sample.state in ACTIVE]
    total = sum(kernel_weight(Guest(guest.hypervisor, sample.name)) for sample in running)
    return kernel_weight(guest) / total


def results(outcomes: tuple[Outcome, ...], *guests: Guest) -> list[str]:
    found = {outcome.change.guest: outcome.result for outcome in outcomes}
    return [found[guest.name] for guest in guests]


def test_weights_keep_the_reservation_and_the_shares(
    hypervisor: Hypervisor, start: Callable[..., Guest], cores: int
) -> None:
    """Half the host is reserved for one; the others divide the rest by their shares."""
    reserved = start("reserved", shares=1000, reservation=cores / 2)
    small, large = start("small", shares=1000), start("large", shares=2000)
    outcomes = weights.renew(hypervisor)
    assert results(outcomes, reserved, small, large) == ["changed", "unchanged", "unchanged"]
    assert [kernel_weight(guest) for guest in (small, large)] == [1000, 2000]
    assert kernel_weight(reserved) >= 3000
    assert part(reserved) >= 0.5
    for guest in (reserved, small, large):
        assert virsh_weight(guest) == kernel_weight(guest)


def test_a_limited_guest_leaves_its_part_to_the_others(
    hypervisor: Hypervisor, start: Callable[..., Guest], cores: int
) -> None:
    limited, free = start("limited", shares=3000, limit=cores / 10), start("free", shares=900)
    weights.renew(hypervisor)
    assert kernel_weight(free) == 900
    assert part(limited) <= cores / 10 / capacity(hypervisor).guests + 0.001


def test_the_definition_keeps_the_owners_shares(
    hypervisor: Hypervisor, start: Callable[..., Guest], cores: int
) -> None:
    reserved, _other = start("reserved", shares=500, reservation=cores / 2), start("other")
    before = domains.definition(reserved.domain)
    weights.renew(hypervisor)
    assert kernel_weight(reserved) >= 1000
    assert domains.definition(reserved.domain) == before


def test_nothing_is_written_where_nothing_differs(
    hypervisor: Hypervisor, start: Callable[..., Guest], cores: int, journal: Path
) -> None:
    reserved, other = start("reserved", reservation=cores / 2), start("other", shares=3000)
    weights.renew(hypervisor)
    recorded = journal.read_bytes()
    live = domains.live_definition(reserved.domain)
    outcomes = weights.renew(hypervisor)
    assert results(outcomes, reserved, other) == ["unchanged", "unchanged"]
    assert journal.read_bytes() == recorded
    assert domains.live_definition(reserved.domain) == live


def test_one_change_moves_the_others(hypervisor: Hypervisor, start: Callable[..., Guest], cores: int) -> None:
    first, second, third = start("first", reservation=cores / 2), start("second"), start("third", shares=1500)
    weights.renew(hypervisor)
    assert part(first) >= 0.5
    for guest, reservation in ((first, 0.0), (second, cores / 2)):
        text = definition(guest.name, cores, reservation=reservation, uuid=guest.domain.UUIDString())
        domains.define(hypervisor, guest.name, text)
    outcomes = weights.renew(hypervisor)
    assert results(outcomes, first, second, third) == ["changed", "changed", "unchanged"]
    assert kernel_weight(first) == 1000
    assert kernel_weight(third) == 1500
    assert part(second) >= 0.5


def test_a_foreign_change_is_named_and_undone(hypervisor: Hypervisor, start: Callable[..., Guest], cores: int) -> None:
    reserved, _other = start("reserved", reservation=cores / 2), start("other", shares=3000)
    weights.renew(hypervisor)
    due = kernel_weight(reserved)
    scheduler.set_weight(reserved.domain, 77)
    outcome = next(one for one in weights.renew(hypervisor) if one.change.guest == reserved.name)
    assert (outcome.result, outcome.reason) == ("changed", f"kvmctl had set {due}, and somebody else 77")
    assert kernel_weight(reserved) == due


def test_the_journal_names_running_guests_only(
    hypervisor: Hypervisor, start: Callable[..., Guest], cores: int, journal: Path
) -> None:
    first, other = start("first", reservation=cores / 2), start("other", shares=3000)
    weights.renew(hypervisor)
    assert first.name in journal.read_text()
    domains.power_off(first.domain)
    scheduler.set_weight(other.domain, 77)
    weights.renew(hypervisor)
    assert first.name not in journal.read_text()
    assert other.name in journal.read_text()


def test_a_guest_that_stops_meanwhile_is_skipped_with_a_reason(
    hypervisor: Hypervisor, start: Callable[..., Guest], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = start("first"), start("second", reservation=cores / 2), start("other", shares=2000)
    seen = domains.samples_with_domains(hypervisor)
    domains.power_off(first.domain)
    domains.undefine(first.domain)
    domains.power_off(second.domain)
    scheduler.set_weight(other.domain, 77)
    monkeypatch.setattr(domains, "samples_with_domains", lambda _hypervisor: seen)
    outcomes = {outcome.change.guest: outcome for outcome in weights.renew(hypervisor)}
    assert first.name not in outcomes
    assert (outcomes[second.name].result, outcomes[second.name].reason) == (
        "not applied",
        "it is being started or stopped",
    )
    assert outcomes[other.name].result == "changed"


def test_a_transient_guest_keeps_its_shares(
    hypervisor: Hypervisor, make_name: Callable[..., str], start: Callable[..., Guest], cores: int
) -> None:
    """They are in no other place: a weight would take their place, and the next one would be made from it."""
    name = make_name(PREFIX + "transient")
    text = definition(name, cores, reservation=cores / 2)
    hypervisor.connection.createXML(text, 1)  # VIR_DOMAIN_START_PAUSED
    start("other", shares=3000)
    outcome = next(one for one in weights.renew(hypervisor) if one.change.guest == name)
    assert outcome.result == "not applied"
    assert "transient" in outcome.reason
    assert kernel_weight(Guest(hypervisor, name)) == 1000


def test_weights_divide_what_the_host_leaves(
    hypervisor: Hypervisor,
    start: Callable[..., Guest],
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quarter of the host is a third of what the guests may use, where the host keeps a quarter for itself."""
    file = tmp_path / "host.yaml"
    file.write_text(f"cpu: {{reserve: {cores / 4}}}")
    monkeypatch.setenv("KVMCTL_HOST_FILE", str(file))
    reserved, _other = start("reserved", shares=2, reservation=cores / 4), start("other", shares=3000)
    weights.renew(hypervisor)
    assert part(reserved) == pytest.approx(1 / 3, abs=0.005)


def test_where_a_guest_may_run_counts(hypervisor: Hypervisor, start: Callable[..., Guest], cores: int) -> None:
    """A guest whose definition pins it is asked where it runs."""
    first, other = start("first"), start("other")
    weights.renew(hypervisor)
    assert kernel_weight(first) == kernel_weight(other) == 1000
    for flags in (1, 2):  # VIR_DOMAIN_AFFECT_LIVE, VIR_DOMAIN_AFFECT_CONFIG
        for vcpu in range(cores):
            first.domain.pinVcpuFlags(vcpu, tuple(cpu == 0 for cpu in range(cores)), flags)
    found = weights.claims(domains.samples_with_domains(hypervisor))
    assert {claim.name: claim.cpus for claim, _ in found if "po-" in claim.name} == {
        first.name: frozenset({0}), other.name: frozenset(),
    }  # fmt: skip
    assert results(weights.renew(hypervisor), other) == ["unchanged"]


def test_a_policy_that_cannot_be_read_stops_nobody_and_starts_nobody(
    kvmctl: Kvmctl, start: Callable[..., Guest], tmp_path: Path
) -> None:
    guest, _other, file = start("guest"), start("other"), tmp_path / "host.yaml"
    file.write_text("cpu: {reserve: much}")
    env = {"KVMCTL_HOST_FILE": str(file)}
    stopped = kvmctl("stop", guest.name, "--force", "--timeout", "0", env=env)
    assert f"{file}" in stopped.err
    assert "so the guests keep the weights they have" in stopped.err
    refused = kvmctl("start", guest.name, "--paused", env=env, code=2)
    assert f"{file}:1:" in refused.err
    assert domains.state(guest.domain) == "stopped"
    assert f"{file}:1:" in kvmctl("set", guest.name, "cpu.shares=5", env=env, code=2).err
    assert f"{file}:1:" in kvmctl("cpu", "--sample", "0", env=env, code=2).err
