"""The controller goes before others, in a session of its own, and takes nobody else's session with it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

pytestmark = pytest.mark.unit

PROBE = """
import os, pathlib
from kvmctl.host.urgency import hurry
hurry()
group = pathlib.Path("/proc/self/autogroup")
text = group.read_text().strip() if group.exists() else "-"
print(os.getpriority(os.PRIO_PROCESS, 0), os.getsid(0) == os.getpid(), text)
"""
AUTOGROUP = Path("/proc/self/autogroup")


def test_without_a_terminal_it_has_a_session_of_its_own(tmp_path: Path) -> None:
    before = AUTOGROUP.read_text() if AUTOGROUP.exists() else ""
    done = subprocess.run(
        ["setsid", sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PROBE!r}])"],
        env=environment(tmp_path, tmp_path), capture_output=True, text=True, check=True,
    )  # fmt: skip
    nice, own, group = done.stdout.split(" ", 2)
    assert (nice, own) == ("-15", "True")
    assert group.strip() == "-" or group.endswith("nice -15\n")
    assert (AUTOGROUP.read_text() if AUTOGROUP.exists() else "") == before


def test_on_a_terminal_the_session_is_left_alone(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, "-c", PROBE], environment(tmp_path, tmp_path))
    said = b""
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:  # the terminal's other end is closed
        pass
    os.waitpid(pid, 0)
    assert said.startswith(b"-15 True ")
    assert b"nice -15" not in said
