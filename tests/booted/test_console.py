"""`kvmctl console` on a terminal, with a guest that answers."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl, environment
from tests.support import Console, Guest, Screen, until

pytestmark = pytest.mark.booted
LEAVE = b"\x1d"


@pytest.fixture
def guest(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: MicroGuest,
    accelerator: str,
    tmp_path: Path,
) -> Guest:
    """A micro guest whose init listens on its console, which nobody has open."""
    name = make_name("console")
    file = tmp_path / "guests.yaml"
    file.write_text(
        f"guests:\n- name: {name}\n  accelerator: {accelerator}\n  memory: {{size: 256MiB}}\n"
        f"  boot: {{kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet}}\n  nics: []\n"
    )
    kvmctl("apply", "-f", file)
    made = Guest(hypervisor, name)
    with Console(made) as direct:
        direct.ready()
    return made


@pytest.fixture
def other(state: Path, tmp_path: Path) -> Iterator[Screen]:
    """A second terminal."""
    opened = Screen(environment(state, tmp_path / "run"))
    yield opened
    opened.close()


def _connect(screen: Screen, guest: Guest, *options: str) -> None:
    """Connect, and wait until what is typed reaches the guest and its answer comes back."""
    screen.start("console", guest.name, *options)
    screen.expect("Ctrl-] leaves")
    until(lambda: _raw(screen), bool, 30, "the terminal in raw mode")
    token = os.urandom(4).hex()
    screen.type(f"! echo begin-''{token}\n".encode())
    screen.expect(f"begin-{token}")


def _raw(screen: Screen) -> bool:
    return not termios.tcgetattr(screen.terminal)[3] & termios.ICANON


def test_type_see_and_leave(guest: Guest, screen: Screen) -> None:
    screen.start("list")
    before = termios.tcgetattr(screen.terminal)
    screen.wait()
    _connect(screen, guest)
    screen.type(b"\x03")  # goes to the guest and ends nothing here
    screen.type(b"! echo $((6 * 7))\n")
    screen.expect("42")
    screen.type(LEAVE + b"never seen")
    assert screen.wait() == 0
    assert f"left the console of {guest.name}" in screen.text
    assert termios.tcgetattr(screen.terminal) == before
    _connect(screen, guest)  # it is free again


def test_one_has_it_and_another_takes_it(guest: Guest, screen: Screen, other: Screen) -> None:
    _connect(screen, guest)
    other.start("console", guest.name)
    assert other.wait() == 4
    assert "--force" in other.text
    screen.type(b"! echo still-''mine\n")
    screen.expect("still-mine")
    _connect(other, guest, "--force")
    assert screen.wait() == 0
    assert "somebody else has taken it" in screen.text
    other.type(LEAVE)
    assert other.wait() == 0


def test_a_guest_that_stops_ends_it(guest: Guest, screen: Screen, kvmctl: Kvmctl) -> None:
    _connect(screen, guest)
    kvmctl("stop", guest.name, "--force", "--timeout", "0")
    assert screen.wait() == 0
    assert "the guest is stopped" in screen.text
    assert not _raw(screen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_terminal_as_it_was(guest: Guest, screen: Screen, number: signal.Signals) -> None:
    _connect(screen, guest)
    os.kill(screen.pid, number)
    assert screen.wait() == 130
    assert not _raw(screen)


def test_without_a_terminal_or_a_running_guest(guest: Guest, screen: Screen, kvmctl: Kvmctl) -> None:
    kvmctl("console", guest.name, code=2)
    kvmctl("stop", guest.name, "--force", "--timeout", "0")
    screen.start("console", guest.name)
    assert screen.wait() == 4
    assert f"kvmctl start {guest.name}" in screen.text
    assert not _raw(screen)
