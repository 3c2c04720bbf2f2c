"""Streams, formats and terminals: what reaches the user's screen and what reaches a script."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Kvmctl, environment
from tests.support import Screen

pytestmark = pytest.mark.testdriver
TEST = ("-c", "test:///default")
Foreign = Callable[..., str]
Shell = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def shell(state: Path, tmp_path: Path) -> Shell:
    """A line of bash in which `kvmctl` is the command line under test, on the test driver."""

    def run(line: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        function = f'kvmctl() {{ {shlex.quote(sys.executable)} -m kvmctl "$@"; }}\n'
        return subprocess.run(
            ["bash", "-c", function + line],
            capture_output=True,
            timeout=60,
            env=environment(state, tmp_path / "run") | {"LIBVIRT_DEFAULT_URI": "test:///default"} | env,
            check=False,
        )

    return run


# Global options


@pytest.mark.parametrize("where", [0, 1, 2])
def test_global_options_stand_anywhere(kvmctl: Kvmctl, where: int) -> None:
    words = ["show", "test"]
    words[where:where] = ["-o", "json", "-q", "-v", "--yes", "--debug", "--connect", "test:///default"]
    assert kvmctl(*words).json()["name"] == "test"


def test_global_options_stand_after_nested_commands(kvmctl: Kvmctl) -> None:
    plain = kvmctl(*TEST, "-o", "json", "host", "show")
    assert kvmctl(*TEST, "host", "show", "-ojson").out == plain.out
    assert kvmctl(*TEST, "host", "-o", "json", "show").out == plain.out


def test_the_option_nearest_to_the_command_counts(kvmctl: Kvmctl) -> None:
    assert kvmctl("-c", "foo:///", "-o", "json", "list", *TEST, "-o", "name").out == "test\n"


def test_an_option_before_the_command_survives_it(kvmctl: Kvmctl) -> None:
    assert kvmctl("-o", "name", *TEST, "list", "-q").out == "test\n"


# Formats

_READING = (
    ("list",),
    ("show", "test"),
    ("spec", "test"),
    ("xml", "test"),
    ("cpu", "--sample", "0"),
    ("memory",),
    ("host", "show"),
    ("host", "metrics", "--interval", "0"),
    ("host", "doctor"),
    ("set", "test", "cpu.shares=3000", "--dry-run"),
    ("set", "test", "cpu.shares=3000"),
    ("pause", "test"),
    ("autostart", "test"),
    ("stop", "test", "--force", "--timeout", "0"),
    ("delete", "test", "--force", "--yes"),
)


@pytest.mark.parametrize("words", _READING, ids=" ".join)
def test_every_format_is_one_document_and_nothing_else(kvmctl: Kvmctl, words: tuple[str, ...]) -> None:
    code = 10 if "--dry-run" in words else 0
    as_json = kvmctl(*TEST, *words, "-o", "json", code=code)
    as_yaml = kvmctl(*TEST, *words, "-o", "yaml", code=code)
    assert _shape(as_json.json()) == _shape(yaml.safe_load(as_yaml.out)) or words[0] == "spec"
    names = kvmctl(*TEST, *words, "-o", "name", code=code)
    expected = {"host": None}.get(words[0], "test\n")
    assert expected is None or names.out == expected


@pytest.mark.parametrize("words", _READING, ids=" ".join)
def test_quiet_says_nothing_beside_the_result(kvmctl: Kvmctl, words: tuple[str, ...]) -> None:
    assert kvmctl(*TEST, *words, "-q", code=10 if "--dry-run" in words else 0).err == ""


def _shape(document: Any) -> Any:
    """The keys, in their order, and the kinds of the values."""
    if isinstance(document, dict):
        return [(key, _shape(value)) for key, value in document.items()]
    if isinstance(document, list):
        return [_shape(item) for item in document]
    return "number" if isinstance(document, (int, float)) and not isinstance(document, bool) else type(document)


def test_json_has_numbers_for_amounts_and_null_for_the_unknown(kvmctl: Kvmctl) -> None:
    (guest,) = kvmctl(*TEST, "list", "-o", "json").json()
    assert guest["balloon"] == 2 << 30
    assert guest["max"] == 8 << 30
    assert guest["resident"] is None


def test_nothing_found_is_an_empty_document(kvmctl: Kvmctl) -> None:
    assert kvmctl(*TEST, "list", "no*", "-o", "json").json() == []
    ran = kvmctl(*TEST, "list", "no*")
    assert ran.out == ""
    assert "test:///default" in ran.err


# Streams


@pytest.mark.parametrize("words", ["list", "show test", "xml test", "--help", "host show", "nonsense", "show nobody"])
def test_a_closed_pipe_is_silent_and_keeps_the_exit_code(shell: Shell, words: str) -> None:
    whole = shell(f"kvmctl {words}")
    piped = shell(f"{{ kvmctl {words}; echo $? >&2; }} | head -c 0")
    assert piped.stderr.decode() == whole.stderr.decode() + f"{whole.returncode}\n"


def test_a_closed_pipe_is_silent_after_a_part_of_much_output(kvmctl: Kvmctl, shell: Shell, foreign: Foreign) -> None:
    uri = foreign(*(f"guest-{number:04}-{'x' * 100}" for number in range(1500)))
    done = shell(f"set -o pipefail; kvmctl list -c {shlex.quote(uri)} | head -n 1")
    assert done.stderr == b""
    assert done.returncode == 0
    assert done.stdout.startswith(b"NAME")


def test_a_command_goes_on_when_nobody_reads_its_notes(shell: Shell, foreign: Foreign) -> None:
    done = shell("{ kvmctl delete test --force --yes 2>&1 >&3 | head -c 0; echo ${PIPESTATUS[0]}; } 3>&1")
    assert b"deleted" in done.stdout
    assert done.stdout.endswith(b"\n0\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(shell: Shell, closed: str) -> None:
    done = shell(f"kvmctl list -o name {closed}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if ">&-" in closed.split() else b"test\n")
    assert shell(f"kvmctl show nobody {closed}").returncode == 3


def test_a_full_disk_is_said(shell: Shell) -> None:
    done = shell("kvmctl list > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: cannot write: No space left on device\n")


def test_a_full_disk_under_the_notes_ends_nothing(shell: Shell) -> None:
    done = shell("kvmctl delete test --force --yes -v 2> /dev/full")
    assert (done.returncode, b"deleted" in done.stdout) == (0, True)
    assert shell("kvmctl show nobody 2> /dev/full").returncode == 3


# What other people's guests are called

_C1 = "c1\x9b31mred"
_NAMES = (
    "plain", "-rf", "1", " ", "..", "tab\tbed", "del\x7f", _C1, "bidi\u202eabc", "a<b>&\"c'", "[x]", "ünï", "日本",
)  # fmt: skip


@pytest.mark.parametrize("words", [("list",), ("cpu", "--sample", "0"), ("memory",), ("list", "-o", "name"),
                                   ("list", "-o", "json"), ("host", "metrics", "--interval", "0"),
                                   ("delete", "*"), ("pause", "*"), ("show", "c1*")], ids=" ".join)  # fmt: skip
def test_no_name_moves_the_cursor(kvmctl: Kvmctl, screen: Screen, foreign: Foreign, words: tuple[str, ...]) -> None:
    uri = foreign(*_NAMES, description="clear\x9b2J it")
    screen.start("-c", uri, *words, env={"NO_COLOR": "1"})
    screen.wait()
    text = screen.text.replace("\r\n", "\n")
    assert [char for char in text if not char.isprintable() and char != "\n"] == []


@pytest.mark.parametrize("command", ["show", "spec", "xml"])
def test_a_description_does_not_move_the_cursor(screen: Screen, foreign: Foreign, command: str) -> None:
    screen.start("-c", foreign(_C1, description="clear\x9b2J\nit"), command, _C1)
    assert screen.wait() == 0
    assert "clear" in screen.text
    assert "\x9b" not in screen.text


def test_scripts_get_names_as_they_are(kvmctl: Kvmctl, foreign: Foreign) -> None:
    uri = foreign(*_NAMES)
    assert set(kvmctl("-c", uri, "list", "-o", "name").out.splitlines()) == set(_NAMES)
    assert {guest["name"] for guest in kvmctl("-c", uri, "list", "-o", "json").json()} == set(_NAMES)
    assert {guest["name"] for guest in yaml.safe_load(kvmctl("-c", uri, "list", "-o", "yaml").out)} == set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_odd_names_can_be_worked_with(kvmctl: Kvmctl, foreign: Foreign, name: str) -> None:
    uri = foreign("other", name)
    assert kvmctl("-c", uri, "show", "-o", "json", "--", name).json()["name"] == name
    assert yaml.safe_load(kvmctl("-c", uri, "spec", "--", name).out)["guests"][0]["name"] == name
    for verb, said in (("stop", "powered off"), ("delete", "deleted")):
        options = ("--force", "--timeout", "0") if verb == "stop" else ("--force", "--yes")
        (deed,) = kvmctl("-c", uri, verb, *options, "-o", "json", "--", name).json()
        assert (deed["name"], deed["text"]) == (name, said)


def test_a_guest_whose_name_is_a_glob_does_not_take_others_with_it(kvmctl: Kvmctl, foreign: Foreign) -> None:
    uri = foreign("x", "[x]", "*", "web1")
    assert kvmctl("-c", uri, "list", "-o", "name", "[x]").out == "[x]\n"
    assert kvmctl("-c", uri, "delete", "--force", "--yes", "-o", "name", "*").out == "*\n"
    assert kvmctl("-c", uri, "list", "-o", "name", "web*").out == "web1\n"


def test_a_long_name_pushes_only_its_own_line(kvmctl: Kvmctl, foreign: Foreign) -> None:
    lines = kvmctl("-c", foreign("short", "y" * 300), "list").out.splitlines()
    assert max(len(line) for line in lines if "yyy" not in line) < 90
    assert any("y" * 300 in line for line in lines)


def test_columns_align_where_letters_are_wide(kvmctl: Kvmctl, foreign: Foreign) -> None:
    lines = kvmctl("-c", foreign("日本", "plain"), "list").out.splitlines()
    wide = next(line for line in lines if "日本" in line)
    plain = next(line for line in lines if "plain" in line)
    assert wide.index("running") == plain.index("running") - 2  # two letters take four columns


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LANG": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "nonsense"},
                                 {"PYTHONIOENCODING": "latin-1"}], ids=str)  # fmt: skip
def test_no_locale_breaks_the_output(kvmctl: Kvmctl, shell: Shell, foreign: Foreign, env: dict[str, str]) -> None:
    uri = shlex.quote(foreign("日本", "ünï", description="größer"))
    done = shell(f"kvmctl -c {uri} list && kvmctl -c {uri} show -- 日本 && kvmctl -c {uri} show nobody-日本", **env)
    assert done.returncode == 3
    assert b"internal" not in done.stderr
    assert b"running" in done.stdout


# Colour and width


def test_colour_only_on_a_terminal_that_wants_it(screen: Screen, kvmctl: Kvmctl) -> None:
    screen.start(*TEST, "show", "nobody")
    assert screen.wait() == 3
    assert "\x1b[31m" in screen.text
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        screen.start(*TEST, "show", "nobody", env=env)
        assert screen.wait() == 3
        assert "\x1b" not in screen.text
    assert "\x1b" not in kvmctl(*TEST, "show", "nobody", code=3).err


@pytest.mark.parametrize("words", [("--help",), ("list",), ("cpu", "--help"), ("show", "test"), ("lst",)], ids=" ".join)
def test_a_narrow_terminal_is_no_fault(kvmctl: Kvmctl, words: tuple[str, ...]) -> None:
    kvmctl(*TEST, *words, env={"COLUMNS": "20"}, code=2 if words == ("lst",) else 0)


def test_a_terminal_of_any_width_costs_no_memory(shell: Shell) -> None:
    done = shell("ulimit -v 2000000; COLUMNS=99999999999 kvmctl top --once --every 0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert max(map(len, done.stdout.decode().splitlines())) <= 1000


def test_a_long_value_stands_below_the_table(kvmctl: Kvmctl) -> None:
    text = "It serves the shop. " * 20
    ran = kvmctl(*TEST, "set", "test", f"description={text}\nand more", "cpu.shares=3000", "memory.size=9GiB")
    lines = ran.out.splitlines()
    assert max(len(line) for line in lines if "shop" not in line) <= 80
    assert f"    new: {text}\\nand more" in lines
    (row,) = [line.split() for line in lines if line.split()[1:2] == ["cpu.shares"]]
    assert row == ["test", "cpu.shares", "normal", "3000", "changed"]


def test_a_reason_stands_below_its_change(kvmctl: Kvmctl) -> None:
    lines = kvmctl(*TEST, "set", "test", "cpu.max=4", "--dry-run", code=10).out.splitlines()
    assert lines[1].split() == ["test", "cpu.max", "2", "4", "restart"]
    assert lines[2].startswith("    ")
    assert len(lines) == 3


# Questions


@pytest.mark.parametrize(
    ("answer", "code"), [(b"y\n", 0), (b"yes\n", 0), (b"n\n", 5), (b"\n", 5), (b"\x03", 130), (b"\x04", 130)]
)
def test_delete_asks_on_a_terminal(screen: Screen, answer: bytes, code: int) -> None:
    screen.start(*TEST, "delete", "test", "--force")
    screen.expect("Delete this guest?")
    screen.type(answer)
    assert screen.wait() == code
    assert ("deleted" in screen.text) == (code == 0)
    assert "Traceback" not in screen.text


def test_delete_asks_nothing_where_nobody_can_answer(kvmctl: Kvmctl) -> None:
    ran = kvmctl(*TEST, "delete", "test", "--force", code=5, stdin="y\n")
    assert "--yes" in ran.err
    assert "?" not in ran.err


def test_delete_does_not_ask_for_what_it_would_refuse(screen: Screen, kvmctl: Kvmctl, foreign: Foreign) -> None:
    screen.start(*TEST, "delete", "test")
    assert screen.wait() == 4
    assert "?" not in screen.text
    ran = kvmctl("-c", foreign("a", "b"), "delete", "a", "b", "--yes", code=4)
    assert "guests a, b are running or paused" in ran.err
    assert ran.out == ""


def test_ctrl_c_ends_a_long_wait_at_once(screen: Screen, foreign: Foreign) -> None:
    screen.start("-c", foreign("a", "b"), "host", "metrics", "--interval", "60s")
    screen.expect("only its guests are shown")
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert screen.text.endswith("interrupted\r\n")


def test_json_is_escaped_where_a_terminal_would_act(kvmctl: Kvmctl, foreign: Foreign) -> None:
    out = kvmctl("-c", foreign(_C1), "list", "-o", "json").out
    assert "\\u009b31mred" in out
    assert json.loads(out)[0]["name"] == _C1
    assert os.linesep == "\n"


def test_progress_stays_on_one_line_and_off_a_typewriter(screen: Screen, tmp_path: Path) -> None:
    file = tmp_path / "guests.yaml"
    file.write_text("guests: [{name: a}, {name: b}]")
    for env, shown in (({"COLUMNS": "30"}, True), ({"TERM": "dumb"}, False)):
        screen.start(*TEST, "apply", "-f", str(file), env=env)
        assert screen.wait() == 0, screen.text
        bars = [bar for bar in screen.text.splitlines() if "%" in bar]
        assert bool(bars) == shown
        assert all(len(part.replace("\x1b[?25l", "").replace("\x1b[?25h", "")) <= 30 for part in bars)
        assert screen.text.count("\x1b[?25l") == 0 or screen.text.rstrip().rfind("\x1b[?25h") > screen.text.rfind(
            "?25l"
        )
