"""Daemons that stop, die or hang, runs that are killed or interrupted, and others who change guests meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.hypervisor import connection, domains
from kvmctl.model.errors import UnreachableError
from tests.conftest import Kvmctl
from tests.hosts import PrivateHost, private_host

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
        body = "".join(f"  - {guest}\n" for guest in guests)
        path.write_text(
            f"defaults: {{accelerator: tcg, memory: {{size: 64MiB}}, state: {state}}}\nguests:\n{body or '  []'}"
        )
        return path

    return write


def test_a_stopped_daemon_is_said_and_exits_6(host: PrivateHost, on_host: Kvmctl, file: Callable[..., Path]) -> None:
    path = file(f"{{name: {PREFIX}a}}")
    on_host("apply", "-f", path)
    host.stop()
    for command in (("list",), ("apply", "-f", path), ("stop", f"{PREFIX}a", "--force"), ("cpu",), ("show", "x")):
        said = on_host(*command, code=6)
        assert f"cannot connect to {host.uri}" in said.err
        assert "host doctor" in said.err
    host.start()
    assert "0 changes" in on_host("apply", "-f", path).err


@pytest.mark.parametrize("end", [PrivateHost.stop, PrivateHost.kill])
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
