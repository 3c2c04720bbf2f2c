from __future__ import annotations

import sys

import pytest

from kvmctl.cli.app import App
from kvmctl.cli.progress import Gauge, Meter, Moves, duration, line
from kvmctl.model.migration import JobSample

pytestmark = pytest.mark.unit

MIB = 1 << 20


def test_what_share_rate_and_time_left() -> None:
    assert line("copy", 25 * MIB, 100 * MIB, 5.0) == "copy  25% of 100MiB  5MiB/s  15 s left"
    assert line("copy", 100 * MIB, 100 * MIB, 5.0) == "copy  100% of 100MiB  20MiB/s"
    assert line("copy", 0, 100 * MIB, 0.0) == "copy  0% of 100MiB  0B/s"
    assert line("save", 0, 0, 9.0) == "save"
    assert line("copy", 300 * MIB, 100 * MIB, 5.0).startswith("copy  100%")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1 s"), (59.4, "59 s"), (60, "1 min 0 s"), (185, "3 min 5 s"), (7621, "2 h 7 min")]
)
def test_a_time_as_people_read_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _tell(app: App) -> None:
    with Gauge(app) as gauge:
        gauge.show("merging vda", 0.25)
        gauge.show("merging vda", 0.26)
    with Meter(app) as meter:
        meter.begin("disk\nvda", 4 * MIB)
    with Moves(app) as moves:
        moves.show("web1", JobSample(1.0, memory_total=4 * MIB, memory_left=MIB, speed=MIB, throttled=20))


def test_one_line_that_is_gone_at_its_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    _tell(App())
    lines = capsys.readouterr().err.split("\r")
    assert lines == [
        "",
        "merging vda: 25%\x1b[K",
        "\x1b[K",
        "disk\\nvda  0% of 4MiB  0B/s\x1b[K",
        "\x1b[K",
        "web1: 75%, 1MiB/s, 1 s left, slowed by 20 %\x1b[K",
        "\x1b[K",
    ]


def test_no_line_off_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    _tell(app)
    assert capsys.readouterr().err == ""
    app.verbose = 1
    _tell(app)
    assert capsys.readouterr().err == "disk\nvda 4MiB\n"
    app.quiet = True
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _tell(app)
    assert capsys.readouterr().err == ""
