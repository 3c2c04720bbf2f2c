"""What the nested tier does when its host dies: the same hooks, on a host that needs no booting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CONFTEST = """
import contextlib
from tests.nested import conftest as real
from tests.nested.conftest import *
from tests.nested.conftest import _closing

BOOTS = []

@contextlib.contextmanager
def booted(_image):
    BOOTS.append(1)
    print("booted", len(BOOTS))
    yield object()

class Played:
    def __init__(self, _host):
        self.number = len(BOOTS)
    def drivers(self):
        return {}
    def tidy(self, _drivers):
        if self.number in DYING:
            raise real.HostDiedError("it does not answer\\nits last words")

real.booted, real.Nested = booted, Played
real.image.check_tools = real.image.ensure = lambda: None
DYING = set()
"""
TESTS = """
from kvmctl.bootstrap.nested.host import HostDiedError

def test_first(nested):
    pass

def test_second(nested):
    if nested.number in {dying}:
        raise HostDiedError("it does not answer\\nits last words")

def test_third(nested):
    assert nested.number
"""


def run(folder: Path, dying: set[int]) -> str:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS.format(dying=dying or "()"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rA",
        "-s",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_a_host_that_lives_serves_all_tests(tmp_path: Path) -> None:
    said = run(tmp_path, set())
    assert "3 passed" in said
    assert "booted 2" not in said
    assert "warning" not in said


def test_a_host_that_dies_is_replaced_once_and_that_is_said(tmp_path: Path) -> None:
    said = run(tmp_path, {1})
    assert "3 passed, 1 warning" in said
    assert "the nested host died in test_it.py::test_second, run again in a new one: it does not answer" in said
    assert "booted 3" not in said


def test_after_the_second_death_no_test_waits_for_a_third(tmp_path: Path) -> None:
    said = run(tmp_path, {1, 2, 3})
    assert "has died twice, and is not booted again: it does not answer" in said
    assert "1 failed, 1 passed, 1 warning, 1 error" in said
    assert "booted 3" not in said
