"""The recorded hours as a user asks for them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.cli.app import App
from kvmctl.cli.memory_history import show_history
from kvmctl.control import trend
from kvmctl.model.errors import UsageError
from kvmctl.model.trend import TrendPoint
from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

GIB = 1 << 30
TEST = "test:///default"


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Record points of the last minutes in a state directory of the test's own."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(trend, "_last", {})

    def record(uri: str, *minutes: float) -> None:
        for before in sorted(minutes, reverse=True):
            trend.record(uri, time.time() - before * 60, TrendPoint(8 * GIB, 4 * GIB, resident=2 * GIB))

    return record


def app(uri: str | None = None, output: str = "table") -> App:
    made = App()
    made.connect, made.output = (uri,) if uri else (), output
    return made


@pytest.mark.parametrize("words", [("--last", "1h"), ("--history", "--explain", "test")])
def test_options_that_would_say_nothing_are_refused(kvmctl: Kvmctl, words: tuple[str, ...]) -> None:
    assert "--history" in kvmctl("-c", TEST, "memory", *words, code=2).err


def test_a_picture_is_plain_text_off_a_terminal(
    recorded: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(TEST, 50, 40, 30, 20, 10, 0)
    show_history(app(TEST), 3600)
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith(f"{TEST}: memory from ")
    assert "resident of all guests: 2GiB, least 2GiB, most 2GiB" in out


def test_a_document_holds_the_points_of_that_time(
    recorded: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(TEST, 90, 30, 1)
    show_history(app(TEST, "json"), 3600)
    document = json.loads(capsys.readouterr().out)
    assert [round((time.time() - point["time"]) / 60) for point in document] == [30, 1]
    assert list(document[0]) == [
        "time", "uri", "total", "available", "state", "size", "balloon", "resident", "shared", "swapped", "ksm_saved",
    ]  # fmt: skip


def test_without_a_uri_the_hypervisor_recorded_last_is_shown_and_the_others_named(
    recorded: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded("xen:///system", 20)
    recorded("qemu:///system", 10)
    show_history(app(output="json"), 3600)
    out, err = capsys.readouterr()
    assert [point["uri"] for point in json.loads(out)] == ["qemu:///system"]
    assert err == "recorded besides, and shown with -c: xen:///system\n"


def test_nothing_recorded_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show_history(app(), 3600)
    out, err = capsys.readouterr()
    assert out == ""
    assert "no tick has recorded memory in this time" in err
    show_history(app(output="json"), 3600)
    assert json.loads(capsys.readouterr().out) == []


def test_names_are_refused(recorded: Callable[..., None]) -> None:
    with pytest.raises(UsageError, match="have no names"):
        show_history(app(output="name"), 3600)
