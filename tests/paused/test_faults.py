"""Daemons that stop, die or hang, runs that are killed or interrupted, and others who change guests meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from kvmctl.control.apply import run
from kvmctl.control.plan import GuestPlan, Planner
from kvmctl.hypervisor import connection, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, NotFoundError, UnreachableError
from kvmctl.model.spec import GuestSpec, MemorySpec
from kvmctl.xml.images import images
from tests.conftest import Kvmctl, environment
from tests.hosts import PrivateHost, private_host
from tests.support import until

pytestmark = pytest.mark.paused

PREFIX = "kvmctl-test-fa-"


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    with private_host() as started:
        started.make_pool()
        yield started


@pytest.fixture
def on_host(host: PrivateHost, kvmctl: Kvmctl) -> Kvmctl:
    """The command line with the private host as its hypervisor."""
    return lambda *args, **more: kvmctl("-c", host.uri, *args, **more)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(*guests: str, state: str = "paused") -> Path:
        path = tmp_path / "guests.yaml"
        brought = f", state: {state}" if state else ""
        body = "".join(f"  - {guest}\n" for guest in guests)
        path.write_text(f"defaults: {{accelerator: tcg, memory: {{size: 64MiB}}{brought}}}\nguests:\n{body or '  []'}")
        return path

    return write


def test_a_stopped_daemon_is_said_and_exits_6(host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]) -> None:
    path = file(f"{{name: {PREFIX}a}}")
    on_host("apply", "-f", path)
    host.stop_daemon()
    for command in (("list",), ("apply", "-f", path), ("stop", f"{PREFIX}a", "--force"), ("cpu",), ("show", "x")):
        said = on_host(*command, code=6)
        assert f"cannot connect to {host.uri}" in said.err
        assert "host doctor" in said.err
    host.start_daemon()
    assert "0 changes" in on_host("apply", "-f", path).err


@pytest.mark.parametrize("end", [PrivateHost.stop_daemon, PrivateHost.kill_daemon])
def test_a_connection_that_breaks_is_unreachable(host: PrivateHost, end: Callable[[PrivateHost], None]) -> None:
    with host.open() as hypervisor:
        end(host)
        for _again in range(2):
            with pytest.raises(UnreachableError):
                domains.samples(hypervisor)


def test_a_daemon_that_hangs_is_given_up(host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OPEN_DEADLINE", 1.0)
    monkeypatch.setattr(connection, "KEEPALIVE", (1, 1))
    with host.open() as hypervisor, host.frozen():
        with pytest.raises(UnreachableError, match="keepalive"):
            domains.samples(hypervisor)
        with pytest.raises(UnreachableError, match="has not answered within 1 s"):
            host.open()
    with host.open() as hypervisor:
        assert domains.samples(hypervisor) == ()


def start(tmp_path: Path, *args: object) -> subprocess.Popen[str]:
    """A kvmctl that runs beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "kvmctl", *map(str, args)],
        env=environment(tmp_path / "state", tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def defined(host: PrivateHost) -> dict[str, str]:
    with host.open() as hypervisor:
        return {sample.name: sample.state for sample in domains.samples(hypervisor)}


def test_a_daemon_that_is_killed_during_apply(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"{PREFIX}{number}" for number in range(20)]
    path = file(*(f"{{name: {name}, disks: [{{volume: {name}.qcow2, size: 1MiB}}]}}" for name in names))
    running = start(tmp_path, "-c", host.uri, "apply", "-f", path)
    until(lambda: len(defined(host)), lambda count: count >= 4, 60, "the number of guests")
    host.kill_daemon()
    _out, err = running.communicate(timeout=60)
    assert running.returncode in (6, 8), err
    assert "Traceback" not in err
    host.start_daemon()
    on_host("apply", "-f", path)
    assert defined(host) == dict.fromkeys(names, "paused")
    assert sorted(volume.name for volume in host.images.iterdir()) == sorted(f"{name}.qcow2" for name in names)
    assert "no run was interrupted" in on_host("host", "doctor", code=None).out
    assert "0 changes" in on_host("apply", "-f", path).err


def test_runs_that_are_killed_are_finished_by_the_next(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path], tmp_path: Path
) -> None:
    moments = random.Random(7)
    for round_ in range(8):
        names = [f"{PREFIX}{round_}-{number}" for number in range(3)]
        disk = "disks: [{{volume: {0}.qcow2, size: 1MiB}}], cloud-init: {{hostname: {0}}}"
        # Where the state is not said, a new guest is started, and so it has to be after all.
        path = file(*(f"{{name: {name}, {disk.format(name)}}}" for name in names), state="")
        running = start(tmp_path, "-c", host.uri, "apply", "-f", path)
        time.sleep(moments.uniform(0.3, 1.8))
        running.kill()
        running.communicate()
        on_host("apply", "-f", path)
        # A guest whose start was under way is paused for a moment, whether anybody waits for it or not.
        until(lambda: defined(host), lambda found: found == dict.fromkeys(names, "running"), 30, "the guests")  # noqa: B023
        with host.open() as hypervisor:
            used = {path for name in names for path in images(domains.definition(domains.find(hypervisor, name)))}
        assert {str(volume) for volume in host.images.iterdir()} == used
        for seed in host.images.glob("*.iso"):
            assert seed.read_bytes()[0x8001:0x8006] == b"CD001"
        assert "0 changes" in on_host("apply", "-f", path).err
        assert "no run was interrupted" in on_host("host", "doctor", code=None).out
        on_host("--yes", "delete", *names, "--force", "--disks")
        assert list(host.images.iterdir()) == []


def test_an_interrupted_apply_leaves_each_guest_whole_or_absent(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"{PREFIX}{number}" for number in range(30)]
    path = file(*(f"{{name: {name}, disks: [{{volume: {name}.qcow2, size: 1MiB}}]}}" for name in names))
    running = start(tmp_path, "-c", host.uri, "apply", "-f", path)
    until(lambda: len(defined(host)), lambda count: count >= 2, 60, "the number of guests")
    running.send_signal(signal.SIGINT)
    _out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    there = defined(host)
    assert 2 <= len(there) < len(names)
    assert set(there.values()) == {"paused"}
    assert {volume.stem for volume in host.images.iterdir()} == set(there)
    on_host("apply", "-f", path)
    assert defined(host) == dict.fromkeys(names, "paused")


def test_two_at_once_take_turns(host: PrivateHost, file: Callable[..., Path], tmp_path: Path) -> None:
    names = [f"{PREFIX}{number}" for number in range(3)]
    path = file(*(f"{{name: {name}}}" for name in names))
    both = [start(tmp_path, "-c", host.uri, "apply", "-f", path) for _ in range(2)]
    said = [(running.communicate(timeout=60)[1], running.returncode) for running in both]
    assert [code for _err, code in said] == [0, 0], said
    assert sum("0 changes" in err for err, _code in said) == 1, said
    assert defined(host) == dict.fromkeys(names, "paused")


def test_a_volume_that_cannot_be_made_leaves_nothing(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]
) -> None:
    name = f"{PREFIX}full"
    disks = "disks: [{volume: fits.qcow2, size: 1MiB}, {volume: fits-not.raw, size: 9000TiB, format: raw}]"
    said = on_host("apply", "-f", file(f"{{name: {name}, {disks}}}"), code=1)
    assert "cannot make volume fits-not.raw" in said.err
    assert defined(host) == {}
    assert list(host.images.iterdir()) == []
    assert "no run was interrupted" in on_host("host", "doctor", code=None).out


def test_a_file_with_a_volume_changes_an_existing_guest(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]
) -> None:
    disk = f"name: {PREFIX}a, disks: [{{volume: one.qcow2, size: 1MiB}}]"
    on_host("apply", "-f", file(f"{{{disk}}}"))
    changed = on_host("-o", "json", "apply", "-f", file(f"{{{disk}, labels: {{tier: front}}}}")).json()
    assert [(one["field"], one["result"]) for one in changed] == [("labels.tier", "changed")]


def test_one_new_volume_for_two_guests_is_not_taken_from_the_first(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]
) -> None:
    disk = "disks: [{volume: one.qcow2, size: 1MiB}], state: stopped"
    ran = on_host("apply", "-f", file(f"{{name: {PREFIX}a, {disk}}}", f"{{name: {PREFIX}b, {disk}}}"), code=None)
    assert ran.code in (4, 8), ran.err
    assert (host.images / "one.qcow2").exists() == bool(defined(host))


def test_a_start_that_fails_is_said_and_made_up_for(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]
) -> None:
    first, second = f"{PREFIX}a", f"{PREFIX}b"
    on_host("apply", "-f", file(f"{{name: {first}, disks: [{{volume: one.qcow2, size: 1MiB}}]}}", state="running"))
    taken = file(f"{{name: {second}, disks: [{{path: {host.images}/one.qcow2}}]}}", state="")
    said = on_host("apply", "-f", taken, code=1)
    assert "Is another process using the image" in said.err
    assert f"{second}.log" in said.err
    assert f"made and not started yet: {second}" in on_host("host", "doctor", code=None).out
    assert "0 changes" in on_host("set", second, "cpu.count=1").err
    assert defined(host) == {first: "running", second: "stopped"}
    on_host("stop", first, "--force", "--timeout", "0")
    made_up = on_host("-o", "json", "apply", "-f", taken).json()
    assert [(one["field"], one["result"]) for one in made_up] == [("state", "changed")]
    # Somebody who stops it then has the last word.
    on_host("stop", second, "--force", "--timeout", "0")
    assert "0 changes" in on_host("apply", "-f", taken).err
    assert "no run was interrupted" in on_host("host", "doctor", code=None).out


@pytest.fixture
def planned(
    hypervisor: Hypervisor, make_name: Callable[..., str], state: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., GuestPlan]:
    """Plans a paused guest on the machine's own daemon, without applying it."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))

    def plan(name: str = "", **more: Any) -> GuestPlan:
        memory = MemorySpec(size=64 << 20)
        spec = GuestSpec(name or make_name("fa"), memory=memory, accelerator="tcg", state="paused", **more)
        return Planner(hypervisor, lambda _spec: "tcg").plan(spec)

    return plan


def test_a_guest_that_somebody_makes_between_plan_and_apply(
    hypervisor: Hypervisor, planned: Callable[..., GuestPlan]
) -> None:
    plan = planned()
    theirs = run(hypervisor, [plan])
    assert theirs[0].error is None
    (ours,) = run(hypervisor, [plan])
    assert isinstance(ours.error, ConflictError)
    assert "somebody else" in ours.error.message
    assert {outcome.result for outcome in ours.outcomes} == {"not applied"}


def test_a_guest_that_somebody_deletes_or_changes_between_plan_and_apply(
    hypervisor: Hypervisor, planned: Callable[..., GuestPlan]
) -> None:
    name = run(hypervisor, [planned()])[0].guest
    plan = planned(name, description="ours")
    domain = domains.find(hypervisor, name)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "theirs", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    (changed,) = run(hypervisor, [plan])
    assert isinstance(changed.error, ConflictError)
    assert "<title>theirs" in domains.definition(domain)
    assert run(hypervisor, [planned(name, description="ours")])[0].error is None
    plan = planned(name, description="again")
    domains.power_off(domain)
    domains.undefine(domain)
    (gone,) = run(hypervisor, [plan])
    assert isinstance(gone.error, NotFoundError)
    assert name not in domains.names(hypervisor)


def test_a_disk_that_vanished_is_named_when_the_guest_starts(
    host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]
) -> None:
    name = f"{PREFIX}a"
    path = file(f"{{name: {name}, disks: [{{volume: gone.qcow2, size: 1MiB}}], state: stopped}}")
    on_host("apply", "-f", path)
    (host.images / "gone.qcow2").unlink()
    said = on_host("start", name, code=None)
    assert said.code in (1, 3)
    assert str(host.images / "gone.qcow2") in said.err
    assert defined(host) == {name: "stopped"}
