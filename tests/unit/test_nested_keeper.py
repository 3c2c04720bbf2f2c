"""What the nested tier does when its host dies, and what the bootstrap makes of that; no host is booted here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvmctl.bootstrap import environment, testing
from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import EXIT_HOST_DIED
from kvmctl.model.errors import TimedOutError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CONFTEST = """
import contextlib
from tests.nested import conftest as real
from tests.nested.conftest import *

@contextlib.contextmanager
def booted(_image):
    print("booted")
    yield object()
    print("ended")

class Played:
    def __init__(self, _host):
        self.dead, self.host = False, self
        self.said = ""
    def illness(self):
        return self.said
    def drivers(self):
        return {}
    def tidy(self, _drivers):
        self.ask()
    def ask(self):
        if self.dead:
            raise real.HostDiedError("it does not answer\\nits last words")

real.booted, real.Nested = booted, Played
real.image.ensure = lambda: None
"""
TESTS = """
def test_first(nested):
    assert not FIRST_FAILS

def test_second(nested):
    nested.dead = DIES
    nested.ask()
    nested.said = ILL and "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
    assert not ILL

def test_third(nested):
    print("the third ran")
"""


def tier(folder: Path, dies: bool = False, ill: bool = False, first_fails: bool = False) -> tuple[int, str]:
    """Exit code and output of a run of such tests."""
    (folder / "conftest.py").write_text(CONFTEST)
    settings = f"DIES, ILL, FIRST_FAILS = {dies}, {ill}, {first_fails}\n"
    (folder / "test_it.py").write_text(settings + TESTS)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_host_that_lives_serves_all_tests(tmp_path: Path) -> None:
    code, said = tier(tmp_path)
    assert (code, said.count("booted"), said.count("ended")) == (0, 1, 1)
    assert "3 passed" in said


def test_nothing_is_run_after_the_host_died_and_the_exit_code_says_so(tmp_path: Path) -> None:
    code, said = tier(tmp_path, dies=True)
    assert (code, said.count("booted"), said.count("ended")) == (EXIT_HOST_DIED, 1, 1)
    assert "in test_it.py::test_second: it does not answer" in said
    assert "the third ran" not in said


def test_a_test_that_fails_on_a_host_whose_kernel_hangs_is_no_failure(tmp_path: Path) -> None:
    code, said = tier(tmp_path, ill=True)
    assert code == EXIT_HOST_DIED
    assert "in test_it.py::test_second: rcu: INFO: rcu_preempt detected stalls" in said


def test_a_test_that_failed_before_the_host_died_is_a_failure(tmp_path: Path) -> None:
    code, said = tier(tmp_path, dies=True, first_fails=True)
    assert "in test_it.py::test_second: it does not answer" in said
    assert code not in (0, EXIT_HOST_DIED)


class Pytest:
    """In the place of pytest: notes how it was called, and ends as it is told, for each part of each attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "python"
        self.program.write_text(
            f"#!/bin/sh\ncd {folder}\npart=${{{testing.PART}:-0/1}}; part=${{part%/*}}\n"
            'echo "$*" >>calls.$part; echo "said by $part"\n'
            "code=$(head -n1 codes.$part); sed -i 1d codes.$part\n"
            '[ "$code" = hangs ] && exec sleep 600\nexit $code\n'
        )
        self.program.chmod(0o755)

    def run(self, arguments: list[str], first: Sequence[object], second: Sequence[object] = ()) -> int:
        """The exit code where the first part, and all that has no parts, ends with `first`, and the second so."""
        for number, codes in enumerate((first, second)):
            (self.folder / f"codes.{number}").write_text("".join(f"{code}\n" for code in codes))
            (self.folder / f"calls.{number}").write_text("")
        return testing.run(arguments)

    def chosen(self, part: int = 0) -> list[str]:
        lines = (self.folder / f"calls.{part}").read_text().splitlines()
        return [line.removeprefix("-m pytest tests ") for line in lines]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pytest:
    found = Pytest(tmp_path)
    monkeypatch.setattr(environment, "PYTHON", found.program)
    monkeypatch.setattr(image, "ensure", lambda: None)
    return found


def test_the_nested_tier_comes_last_in_two_parts_and_all_results_count(
    played: Pytest, capfd: pytest.CaptureFixture[str]
) -> None:
    assert played.run([], [0, 0], [0]) == 0
    assert (played.chosen(), played.chosen(1)) == (["-m not nested", "-m nested"], ["-m nested"])
    assert capfd.readouterr().out == "said by 0\nsaid by 0\nsaid by 1\n"
    assert played.run([], [1, 0], [0]) == 1
    assert played.chosen(1) == ["-m nested"]
    assert played.run([], [0, 1], [0]) == 1
    assert played.run([], [0, 0], [1]) == 1


@pytest.mark.parametrize(("first", "second", "code"), [(5, 0, 0), (0, 5, 0), (5, 1, 1), (5, 5, 5)])
def test_a_part_in_which_no_test_was_chosen_does_not_count(played: Pytest, first: int, second: int, code: int) -> None:
    assert played.run(["-m", "nested", "-k", "card"], [first], [second]) == code
    assert played.chosen() == played.chosen(1) == ["-m nested -k card"]


def test_the_tier_is_run_once_more_when_its_host_died_only(played: Pytest, capsys: pytest.CaptureFixture[str]) -> None:
    assert played.run(["-m", "nested"], [0, 0], [EXIT_HOST_DIED, 0]) == 0
    assert played.chosen() == played.chosen(1) == ["-m nested"] * 2
    assert "a nested host itself died" in capsys.readouterr().err
    died = [EXIT_HOST_DIED] * 3
    assert played.run(["-m", "nested"], [0, 0, 0], died) == EXIT_HOST_DIED
    assert len(played.chosen()) == 2
    assert played.run(["-m", "nested"], [1, 0], died) == 1
    assert len(played.chosen()) == 1


def test_a_tier_that_hangs_is_ended(played: Pytest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "NESTED_SECONDS", 0.5)
    with pytest.raises(TimedOutError, match=r"have not ended within 0\.5 s"):
        played.run(["-m", "nested"], [0], ["hangs"])


def test_other_choices_build_no_image(played: Pytest, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure() -> None:
        raise AssertionError("an image was built")

    monkeypatch.setattr(image, "ensure", ensure)
    assert played.run(["-m", "unit"], [0]) == 0
    assert played.run(["tests/unit", "-q"], [0]) == 0
    assert testing.wants_vagrant(["-m", "vagrant", "-x"])
    assert not testing.wants_vagrant(["-m", "not vagrant"])
