from __future__ import annotations

import time
from collections.abc import Iterator

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.cli.memory_history import nice, picture, span
from kvmctl.model.trend import TrendPoint, TrendRecord

pytestmark = pytest.mark.unit

GIB = 1 << 30
END = 1_700_006_400.0  # 2023-11-15 00:00:00 UTC
HOUR = 3600.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def points(*of: tuple[float, int | None], uri: str = "qemu:///system") -> list[TrendRecord]:
    """Points at so many seconds before the end, with that much resident."""
    return [
        TrendRecord(END - before, uri, TrendPoint(8 * GIB, 4 * GIB, "soft", resident=resident, shared=0))
        for before, resident in of
    ]


def steady(seconds: float, resident: int = 2 * GIB) -> list[TrendRecord]:
    return points(*((float(before), resident) for before in range(int(seconds), -1, -30)))


def drawn(found: list[TrendRecord], last: float = 6 * HOUR, width: int = 80, blocks: bool = True) -> list[str]:
    return list(picture(found, END - last, END, width, blocks))


def area(lines: list[str], name: str) -> list[str]:
    """The four lines of one area, without the axis."""
    first = next(number for number, line in enumerate(lines) if line.startswith(name))
    return [line[8:] for line in lines[first + 1 : first + 5]]


def test_six_hours_fill_a_terminal_of_80_columns_and_24_lines() -> None:
    lines = drawn(steady(6 * HOUR))
    assert lines[0] == "qemu:///system: memory from 18:00 to 00:00, state soft"
    assert "resident of all guests: 2GiB, least 2GiB, most 2GiB" in lines
    assert max(map(len, lines)) == 80
    assert len(lines) <= 23
    assert area(lines, "resident") == ["█" * 72] * 4
    assert area(lines, "available")[0] == "█" * 72


def test_the_axes_have_amounts_and_round_times() -> None:
    lines = drawn(steady(6 * HOUR, 3 * GIB))
    first = next(number for number, line in enumerate(lines) if line.startswith("resident"))
    assert lines[first + 1].startswith("  3GiB ┤")
    assert lines[first + 4].startswith("     0 ┤")
    assert lines[-1].split() == ["18:00", "19:00", "20:00", "21:00", "22:00", "23:00", "00:00"]
    assert lines[-2].count("┬") == 7


@pytest.mark.parametrize("width", [40, 60, 80, 132, 300])
@pytest.mark.parametrize("last", [60.0, 600.0, HOUR, 6 * HOUR, 25 * HOUR, 14 * 24 * HOUR, 366 * 24 * HOUR])
@pytest.mark.parametrize("blocks", [True, False])
def test_no_line_is_longer_than_the_terminal(width: int, last: float, blocks: bool) -> None:
    lines = drawn(steady(7200, 123_456_789_012), last, width, blocks)
    assert max(map(len, lines)) <= max(width, 60), "titles of areas alone may be longer than 40"
    assert all(char.isprintable() for line in lines for char in line)
    assert blocks or "".join(lines).isascii()


def test_an_area_is_as_high_as_its_amount() -> None:
    found = points((5.5 * HOUR, 8 * GIB), (3.5 * HOUR, 4 * GIB), (0.5 * HOUR, 1 * GIB))
    rows = area(drawn(found), "resident")
    heights = ["".join(row.ljust(72)[column] for row in rows) for column in (6, 30, 66)]
    assert heights == ["████", "  ██", "   ▄"]


def test_time_in_which_nothing_was_recorded_is_blank() -> None:
    found = [one for one in steady(6 * HOUR) if not END - 4 * HOUR < one.time < END - 2 * HOUR]
    row = area(drawn(found), "resident")[3]
    assert row[:24] == "█" * 24
    assert row[26:47].strip() == ""
    assert row[48:] == "█" * 24


def test_what_was_not_known_is_blank_or_said() -> None:
    lines = drawn(points((3 * HOUR, None), (2 * HOUR, GIB)))
    assert "swapped: not known" in lines
    assert area(lines, "resident")[3].strip() == "██"
    assert area(lines, "shared")[3].strip() == "", "zero is known, and nothing"


def test_very_little_is_still_to_be_seen() -> None:
    rows = area(drawn(points((2 * HOUR, 100 * GIB), (1 * HOUR, 1 << 20))), "resident")
    assert rows[3].strip()[-1] == "▁"


@given(st.integers(0, 1 << 50))
def test_the_top_of_an_axis_is_enough_and_not_much_more(most: int) -> None:
    assert most <= nice(most) <= max(1 << 20, 2 * most)


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("6h", 21600), ("2d", 172800), ("60s", 60)])
def test_times_to_look_back(text: str, seconds: float) -> None:
    assert span(*_context(), text) == seconds


@pytest.mark.parametrize("text", ["", "6", "6 h", "-6h", "0h", "59s", "６h", "9999999h", "400d", "6hh", "1.5h"])
def test_what_is_no_time_to_look_back(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 90m, 6h or 2d"):
        span(*_context(), text)


def _context() -> tuple[click.Context, click.Parameter]:
    return click.Context(click.Command("memory")), click.Option(["--last"])
