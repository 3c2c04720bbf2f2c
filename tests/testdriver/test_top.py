"""`top` as a script and as a person meets it: one frame, keys on a terminal, and what is left of that."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Kvmctl
from tests.support import Screen, until

pytestmark = pytest.mark.testdriver

Foreign = Callable[..., str]
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def last_frame(screen: Screen) -> list[str]:
    """The lines of what stands on the screen now: each frame begins at its top left corner."""
    screen.expect("")
    return _ESCAPE.sub("", screen.text.rpartition("\x1b[H")[2]).splitlines()


def shown(screen: Screen, *names: str) -> list[str]:
    """The guests on the screen, from the top."""
    return [words[0] for line in last_frame(screen) if (words := line.split()) and words[0] in names]


def expect_shown(screen: Screen, names: list[str], all_names: list[str]) -> None:
    until(lambda: shown(screen, *all_names), lambda found: found == names, 20, "the guests on the screen")


# One frame


def test_one_frame_is_plain_text_of_80_columns(kvmctl: Kvmctl, foreign: Foreign) -> None:
    uri = foreign("web1", "web2", "db" * 50)
    ran = kvmctl("-c", uri, "top", "--once", "--every", "0")
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0].startswith(uri[:40])
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ran.out
    assert [line.split()[0] for line in lines[6:9]] == ["dbdbdb…bdbdbdb", "web1", "web2"]


def test_one_frame_as_a_document(kvmctl: Kvmctl, foreign: Foreign) -> None:
    uri = foreign("web1", "db")
    document = kvmctl("-c", uri, "top", "--once", "--every", "100ms", "-o", "json").json()
    assert list(document) == ["uri", "time", "seconds", "host", "guests"]
    assert document["uri"] == uri
    assert document["seconds"] >= 0.1
    assert document["host"]["cores"] == 4
    assert document["host"]["busy"] is None, "this machine's figures are not the test driver's"
    assert document["host"]["memory_total"] == 8 << 30
    assert [guest["name"] for guest in document["guests"]] == ["db", "web1"]
    assert {guest["resident"] for guest in document["guests"]} == {None}
    assert {guest["max"] for guest in document["guests"]} == {64 << 20}


def test_one_frame_is_sorted_and_filtered(kvmctl: Kvmctl, foreign: Foreign) -> None:
    uri = foreign("web2", "web1", "db")
    assert kvmctl("-c", uri, "top", "--once", "--every", "0", "--filter", "WEB", "-o", "name").out == "web1\nweb2\n"
    assert "no running guest is named 'x'" in kvmctl("-c", uri, "top", "--once", "--every", "0", "--filter", "x").out


def test_no_guests_are_no_fault(kvmctl: Kvmctl, foreign: Foreign) -> None:
    assert "no running guest" in kvmctl("-c", foreign(), "top", "--once", "--every", "0").out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_frame_for_a_terminal_without_blocks(kvmctl: Kvmctl, foreign: Foreign, encoding: str) -> None:
    uri, env = foreign("web1"), {"PYTHONIOENCODING": encoding}
    assert kvmctl("-c", uri, "top", "--once", "--every", "0", env=env).out.isascii()


# Bad calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "top needs a terminal"),
        (("-o", "json"), "add --once"),
        (("--sort", "beauty", "--once"), "beauty"),
        (("--every", "soon"), "is not a duration"),
    ],
    ids=str,
)
def test_bad_calls_exit_2(kvmctl: Kvmctl, words: tuple[str, ...], said: str) -> None:
    ran = kvmctl("-c", "test:///default", "top", *words, code=2)
    assert said in ran.err
    assert ran.out == ""


def test_bad_calls_on_a_terminal_leave_it_alone(screen: Screen) -> None:
    for words, env, said in (
        ((), {"TERM": "dumb"}, "cannot move its cursor"),
        (("--every", "100ms"), {}, "--every has to be 0.2 s or more"),
        (("-o", "json"), {}, "add --once"),
    ):
        screen.start("-c", "test:///default", "top", *words, env=env)
        assert screen.wait() == 2
        assert said in screen.text
        assert ENTER not in screen.text


def test_a_hypervisor_that_never_was_is_an_error_before_the_screen_is_taken(screen: Screen) -> None:
    screen.start("-c", "test:///nowhere/at/all.xml", "top")
    assert screen.wait() in (1, 6)
    assert "cannot connect" in screen.text
    assert ENTER not in screen.text


# Live


@pytest.fixture
def live(screen: Screen, foreign: Foreign) -> Screen:
    """`top` of three guests, with its first frame on the screen."""
    uri = foreign("web2", "web1", "db")
    screen.start("-c", uri, "top", "--every", "300ms")
    screen.expect("web2")
    return screen


ALL = ["db", "web1", "web2"]


def modes(screen: Screen) -> Any:
    """What the terminal does with what is typed."""
    return termios.tcgetattr(screen.terminal)


def assert_left(screen: Screen, before: Any) -> None:
    assert modes(screen) == before
    assert screen.text.rfind(LEAVE) > screen.text.rfind(ENTER) > -1
    assert screen.text.rfind(SHOW) > screen.text.rfind(HIDE)
    assert "Traceback" not in screen.text


def started(screen: Screen, *words: str) -> Any:
    """Start `top` on a terminal whose modes are known before."""
    screen.run("sh", "-c", 'read go; exec "$@"', "sh", sys.executable, "-m", "kvmctl", *words)
    before = modes(screen)
    screen.type(b"go\n")
    return before


@pytest.mark.parametrize("keys", [b"q", b"/w\x1bq", b"x\x1b[5~q"], ids=repr)
def test_q_leaves_the_terminal_as_it_was(screen: Screen, foreign: Foreign, keys: bytes) -> None:
    before = started(screen, "-c", foreign("web1"), "top")
    screen.expect("web1")
    assert modes(screen) != before
    screen.type(keys)
    assert screen.wait() == 0
    assert_left(screen, before)


@pytest.mark.parametrize("how", [b"\x03", signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=repr)
def test_what_ends_it_from_outside_leaves_the_terminal_as_it_was(
    screen: Screen, foreign: Foreign, how: bytes | signal.Signals
) -> None:
    before = started(screen, "-c", foreign("web1"), "top")
    screen.expect("web1")
    if isinstance(how, bytes):
        screen.type(how)
    else:
        os.kill(screen.pid, how)
    assert screen.wait() == 130
    assert_left(screen, before)
    assert screen.text.endswith("interrupted\r\n")


def test_an_exception_leaves_the_terminal_as_it_was(screen: Screen, foreign: Foreign) -> None:
    """What nobody expected happens in the thread, after the first frame."""
    code = (
        "import sys; from kvmctl.control.top import Watch; from kvmctl.cli.main import run; frame = Watch.frame\n"
        "def once(watch):\n"
        "    if watch._taken: raise ZeroDivisionError('it happens')\n"
        "    return frame(watch)\n"
        "Watch.frame = once; run(sys.argv[1:])"
    )
    screen.run("sh", "-c", 'read go; exec "$@"', "sh", sys.executable, "-c", code, "-c", foreign("web1"), "top")
    before = modes(screen)
    screen.type(b"go\n")
    assert screen.wait() == 1
    assert_left(screen, before)
    assert "internal: ZeroDivisionError: it happens" in screen.text


def test_keys_sort_and_filter(live: Screen) -> None:
    expect_shown(live, ["db", "web1", "web2"], ALL)
    live.type(b"/web")
    expect_shown(live, ["web1", "web2"], ALL)
    assert "filter: web_" in last_frame(live)[-1]
    live.type(b"\r")
    until(lambda: last_frame(live)[-1], lambda line: "q quit" in line, 10, "the last line")
    live.type(b"\x1b")
    expect_shown(live, ["db", "web1", "web2"], ALL)
    for key, title in ((b"m", "RES"), (b"n", "NAME"), (b"s", "ST%"), (b"c", "USED")):
        live.type(key)
        live.expect(title)
    live.type(b"q")
    assert live.wait() == 0


def test_many_guests_scroll(screen: Screen, foreign: Foreign) -> None:
    names = [f"g{number:02}" for number in range(40)]
    screen.start("-c", foreign(*names), "top", "--sort", "name")
    fcntl.ioctl(screen.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 18, 80, 0, 0))
    expect_shown(screen, names[:10], names)
    screen.type(b"\x1b[6~\x1b[B")
    expect_shown(screen, names[11:21], names)
    screen.type(b"\x1b[F")
    expect_shown(screen, names[30:], names)
    assert "31-40 of 40" in last_frame(screen)[-1]


def test_a_new_size_of_the_terminal_is_used_at_once(screen: Screen, foreign: Foreign) -> None:
    screen.start("-c", foreign("web1"), "top", "--every", "3600s")
    screen.expect("web1")
    for rows, columns in ((40, 132), (12, 60), (24, 80)):
        fcntl.ioctl(screen.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        until(
            lambda: [len(line) for line in last_frame(screen)],
            lambda found, size=(rows, columns): (len(found), max(found)) == size,  # type: ignore[misc]
            10,
            "lines and columns of the screen",
        )


def test_colour_only_where_it_is_wanted(screen: Screen, foreign: Foreign) -> None:
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        screen.start("-c", foreign("web1"), "top", env=env)
        screen.expect("web1")
        screen.type(b"q")
        assert screen.wait() == 0
        colours = re.findall(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7]|4[0-8])[0-9;]*m", screen.text)
        assert bool(colours) == coloured


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(screen: Screen, foreign: Foreign) -> None:
    before = started(screen, "-c", foreign("web1"), "top", "--every", "300ms")
    screen.expect("web1")
    screen.type(b"\x1a")

    def stopped() -> str:
        return Path(f"/proc/{screen.pid}/stat").read_text().rpartition(")")[2].split()[0]

    until(stopped, lambda state: state == "T", 10, "the state of the process")
    screen.expect(LEAVE)
    assert_left(screen, before)
    os.kill(screen.pid, signal.SIGCONT)
    until(lambda: bool(last_frame(screen)) and screen.text.count(ENTER), lambda count: count == 2, 10, "screens taken")
    screen.type(b"q")
    assert screen.wait() == 0
    assert_left(screen, before)


def test_a_terminal_that_goes_away_ends_it(screen: Screen, foreign: Foreign) -> None:
    screen.start("-c", foreign("web1"), "top")
    screen.expect("web1")
    os.close(screen.terminal)
    screen.terminal = os.open(os.devnull, os.O_RDWR)
    until(lambda: os.waitpid(screen.pid, os.WNOHANG)[0], lambda pid: pid == screen.pid, 20, "the end of top")
    screen._code = 0


def test_no_name_moves_the_cursor(kvmctl: Kvmctl, foreign: Foreign) -> None:
    uri = foreign("tab\tbed", "c1\x9b31mred", "[bold]x", ":smile:", "bidi\u202eabc")
    out = kvmctl("-c", uri, "top", "--once", "--every", "0", env={"COLUMNS": "120"}).out
    assert [char for char in out if not char.isprintable() and char != "\n"] == []
    assert "[bold]x" in out
    assert ":smile:" in out
