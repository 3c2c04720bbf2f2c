"""Ctrl-C while several guests are waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Kvmctl
from tests.support import Screen, until

pytestmark = pytest.mark.paused


def test_ctrl_c_ends_a_wait_for_several_guests(
    kvmctl: Kvmctl, make_name: Callable[..., str], screen: Screen, tmp_path: Path
) -> None:
    names = [make_name(), make_name()]
    guests = ", ".join(f"{{name: {name}, state: paused, accelerator: tcg, memory: {{size: 64MiB}}}}" for name in names)
    file = tmp_path / "guests.yaml"
    file.write_text(f"guests: [{guests}]")
    kvmctl("apply", "-f", file)
    kvmctl("resume", *names)  # only firmware: it ignores the power button
    screen.start("stop", *names, "--timeout", "600")
    locks = tmp_path / "run"
    until(
        lambda: [lock.read_text() for lock in locks.glob("*.lock")], lambda held: any(map(bool, held)), 30, "the lock"
    )
    screen.type(b"\x03")
    assert screen.wait(timeout=60) == 130
    assert "Traceback" not in screen.text
    assert {guest["state"] for guest in kvmctl("list", *names, "-o", "json").json()} == {"running"}
