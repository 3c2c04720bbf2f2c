from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvmctl.control import trend
from kvmctl.model.trend import TrendPoint, TrendRecord

pytestmark = pytest.mark.unit

POINT = TrendPoint(
    total=8 << 30, available=4 << 30, state="soft", size=6 << 30, balloon=5 << 30, resident=3 << 30, shared=1 << 30,
    swapped=0, ksm_saved=None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory, and a process that has recorded nothing yet."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(trend, "_last", {})
    return tmp_path / "state"


def times(uri: str = "a:///") -> list[float]:
    return [one.time for one in trend.records() if one.uri == uri]


def test_a_point_is_read_back_as_it_was() -> None:
    assert trend.record("a:///", 1000.1234, POINT)
    assert list(trend.records()) == [TrendRecord(1000.123, "a:///", POINT)]


def test_nothing_recorded_is_no_points() -> None:
    assert list(trend.records()) == []


def test_a_point_is_recorded_at_most_every_30_seconds_for_each_hypervisor() -> None:
    done = [trend.record("a:///", clock, POINT) for clock in (0.0, 5.0, 29.9, 30.0, 59.0, 65.0)]
    assert done == [True, False, False, True, False, True]
    assert trend.record("b:///", 66.0, POINT)
    assert (times(), times("b:///")) == ([0.0, 30.0, 65.0], [66.0])


def test_another_process_knows_when_the_last_one_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    trend.record("a:///", 1000.0, POINT)
    trend.record("b:///", 1025.0, POINT)
    monkeypatch.setattr(trend, "_last", {})
    assert not trend.record("a:///", 1029.0, POINT)
    monkeypatch.setattr(trend, "_last", {})
    assert trend.record("a:///", 1031.0, POINT)


def test_a_clock_that_was_set_back_does_not_stop_the_recording() -> None:
    assert trend.record("a:///", 5000.0, POINT)
    assert trend.record("a:///", 1000.0, POINT)
    assert times() == [5000.0, 1000.0]


def test_since_leaves_out_what_is_older() -> None:
    for clock in (100.0, 200.0, 300.0):
        trend.record("a:///", clock, POINT)
    assert [one.time for one in trend.records(200.0)] == [200.0, 300.0]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[]",
        "3",
        '{"time":1,"uri":"a:///","total":8',
        '{"uri":"a:///","total":8,"available":4}',
        '{"time":"soon","uri":"a:///"}',
        '{"time":NaN,"uri":"a:///"}',
        '{"time":Infinity,"uri":"a:///"}',
        '{"time":1e300,"uri":"a:///"}',
        '{"time":1' + "0" * 400 + ',"uri":"a:///"}',
        '{"time":1,"uri":7}',
        '{"time":1,"uri":"a:///","resident":"much"}',
        '{"time":1,"uri":"a:///","resident":1.5}',
        '{"time":1,"uri":"a:///","state":3}',
        "[" * 100_000,
        "\ufffd\x00",
    ],
)
def test_a_line_that_is_something_else_is_left_out(state: Path, line: str) -> None:
    trend.record("a:///", 1.0, POINT)
    with trend.file().open("a") as opened:
        opened.write(f"{line}\n")
    trend.record("a:///", 40.0, POINT)
    assert times() == [1.0, 40.0]


def test_figures_of_a_later_version_do_no_harm_and_missing_ones_are_unknown(state: Path) -> None:
    trend.record("a:///", 1.0, POINT)
    with trend.file().open("a") as opened:
        opened.write(json.dumps({"time": 2, "uri": "a:///", "total": 5, "phase of the moon": "new"}) + "\n")
    assert [one.point for one in trend.records()][1] == TrendPoint(total=5, available=None)


def test_the_files_are_bounded_and_both_are_read(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    monkeypatch.setattr(trend, "MOST_BYTES", 1000)
    for number in range(40):
        trend.record("a:///", 30.0 * number, POINT)
    files = sorted(path.name for path in state.iterdir())
    assert files == ["trend.jsonl", "trend.old"] or files == ["trend.old"]
    assert sum(path.stat().st_size for path in state.iterdir()) < 2 * 1300
    found = times()
    assert found == sorted(found)
    assert found[-1] == 30.0 * 39
    assert 4 <= len(found) < 40


def test_only_its_owner_reads_it(state: Path) -> None:
    trend.record("a:///", 1.0, replace(POINT, state=None))
    assert trend.file().stat().st_mode & 0o777 == 0o600
