"""`kvmctl memory --history`: the last hours from the recorded ticks, as areas one below the other.

Not lines in one picture: without colour four of them cannot be told apart, and what is swapped would lie on the axis.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvmctl.cli import streams
from kvmctl.cli.app import App
from kvmctl.cli.output import emit_document, note, one_line, styled
from kvmctl.model.errors import UsageError
from kvmctl.model.units import human_size
from kvmctl.model.wording import quoted

if TYPE_CHECKING:
    from kvmctl.model.trend import TrendRecord

Command = TypeVar("Command", bound=Callable[..., Any])

ROWS = 4
"""Lines of one area: with their titles and the times four areas fit on a terminal of 24 lines."""
HELD_SECONDS = 90.0
"""How long a point stands for what followed it: twice the time between two, and what a late tick takes."""
_LABEL = 8
"""Columns of the amounts at the left, with the axis."""
_AREAS = (
    ("available", "of the host", "green"),
    ("resident", "of all guests", "blue"),
    ("shared", "of that, merged by KSM", "cyan"),
    ("swapped", "of all guests", "yellow"),
)
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " ....:::#"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STEPS = tuple(60 * minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 40320))
"""Seconds between two times on the axis."""
_ROUND = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
_LEAST_STEP = 10
"""Columns between two of them."""


def span(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    """Read `90m`, `6h` or `2d` as seconds."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text, re.ASCII)
    found = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 60 <= found <= 366 * 86400:
        raise click.BadParameter(f"{quoted(text)} is not a time to look back: write 90m, 6h or 2d, at least a minute")
    return float(found)


def history_options(command: Command) -> Command:
    """`--history` and `--last`, as the arguments `history` and `last` of the command."""
    last = click.option(
        "--last", callback=span, default="6h", show_default=True, metavar="TIME", help="With --history: how far back."
    )
    flag = click.option("--history", is_flag=True, help="Plot the last hours, as ticks have recorded them.")
    return flag(last(command))


def show_history(app: App, last: float) -> None:
    """Print what ticks have recorded in the last `last` seconds: a picture, or with -o json the points."""
    from kvmctl.control import trend

    now = time.time()
    if app.output == "name":
        raise UsageError("the points of a history have no names", "leave out -o name, or write -o json")
    found = _of_one(app, [one for one in trend.records(now - last) if one.time <= now])
    if app.output != "table":
        emit_document(app, [{"time": one.time, "uri": one.uri, **asdict(one.point)} for one in found])
        return
    if not found:
        note(app, "no tick has recorded memory in this time: kvmctl rebalance does, by hand or by cron")
        return
    for line in picture(found, now - last, now, streams.width(), _has_blocks()):
        click.echo(line)


def _of_one(app: App, found: list[TrendRecord]) -> list[TrendRecord]:
    """The points of the hypervisor that is meant; where none was named, of the one that was recorded last."""
    from kvmctl.hypervisor.uri import given

    uris = list(dict.fromkeys(one.uri for one in reversed(found)))
    wanted = given(app.uri)
    if wanted is None:
        wanted = uris[0] if uris else ""
    elif wanted not in uris:
        # What libvirt calls it may differ from what a user writes.
        wanted = app.hypervisor().uri
    others = [uri for uri in uris if uri != wanted]
    if others:
        note(app, f"recorded besides, and shown with -c: {', '.join(others)}")
    return [one for one in found if one.uri == wanted]


@dataclass(frozen=True, slots=True)
class _Window:
    """The time that is shown, and the columns that it has."""

    start: float
    end: float
    columns: int

    def place(self, moment: float) -> int:
        """The column of a moment."""
        return min(self.columns - 1, int((moment - self.start) / (self.end - self.start) * self.columns))


def picture(found: Sequence[TrendRecord], start: float, end: float, width: int, blocks: bool = True) -> Iterator[str]:
    """The lines of the picture; none has more than `width` columns."""
    window = _Window(start, end, max(20, width - _LABEL))
    title = f"{found[-1].uri}: memory from {_clock(start, start, end)} to {_clock(end, start, end)}"
    state = found[-1].point.state
    yield one_line(title + (f", state {state}" if state else ""))[:width]
    for name, of_what, colour in _AREAS:
        yield from _area(name, of_what, colour, found, window, blocks)
    yield from _times(window, blocks)


def _area(
    name: str, of_what: str, colour: str, found: Sequence[TrendRecord], window: _Window, blocks: bool
) -> Iterator[str]:
    values = [(one.time, getattr(one.point, name)) for one in found]
    known = [value for _time, value in values if value is not None]
    if not known:
        yield f"{name}: not known"
        return
    now = human_size(values[-1][1])
    yield f"{name} {of_what}: {now}, least {human_size(min(known))}, most {human_size(max(known))}"
    top = nice(max(known))
    heights = _columns(values, window)
    axis = ("┤", "│") if blocks else ("+", "|")
    for row in reversed(range(ROWS)):
        label = human_size(top) if row == ROWS - 1 else "0" if row == 0 else ""
        line = "".join(_cell(height, top, row, blocks) for height in heights)
        yield f"{label:>{_LABEL - 2}} {axis[0] if label else axis[1]}" + styled(line, fg=colour).rstrip()


def _cell(height: float | None, top: int, row: int, blocks: bool) -> str:
    """One character of an area: how much of this row is filled. Anything but nothing is to be seen."""
    if height is None:
        return " "
    eighths = round(height / top * ROWS * 8) - row * 8
    if row == 0 and height > 0:
        eighths = max(1, eighths)
    return (_EIGHTHS if blocks else _ASCII)[max(0, min(8, eighths))]


def _columns(values: Sequence[tuple[float, int | None]], window: _Window) -> list[float | None]:
    """The mean of each column's points; a column without any has the last one, as long as that stands for it."""
    sums: dict[int, list[int]] = {}
    for moment, value in values:
        if value is not None:
            sums.setdefault(window.place(moment), []).append(value)
    each = (window.end - window.start) / window.columns
    held = max(1, round(HELD_SECONDS / each))
    heights: list[float | None] = []
    last = -held - 1
    for column in range(window.columns):
        if column in sums:
            last = column
        heights.append(sum(sums[last]) / len(sums[last]) if column - last <= held and last >= 0 else None)
    return heights


def nice(most: int) -> int:
    """The amount at the top of an axis: a round number of MiB, GiB or more, at least 1 MiB."""
    unit = 1 << 20
    while most > _ROUND[-1] * unit:
        unit <<= 10
    return next(step for step in _ROUND if step * unit >= most) * unit


def _times(window: _Window, blocks: bool) -> Iterator[str]:
    """The axis of time: ticks at round local times."""
    seconds = window.end - window.start
    step = next(
        (each for each in _STEPS if each / seconds * window.columns >= _LEAST_STEP + 4 * (seconds > 86400)), _STEPS[-1]
    )
    offset = datetime.fromtimestamp(window.start).astimezone().utcoffset()
    shift = offset.total_seconds() if offset else 0.0
    moment = -(-(window.start + shift) // step) * step - shift
    corner, dash, tick = ("└", "─", "┬") if blocks else ("+", "-", "+")
    axis, labels = [dash] * window.columns, ""
    while moment <= window.end:
        column = window.place(moment)
        axis[column] = tick
        label = _clock(moment, window.start, window.end)
        left = max(0, min(column - len(label) // 2, window.columns - len(label)))
        if left > len(labels) or not labels:
            labels = labels.ljust(left) + label
        moment += step
    yield " " * (_LABEL - 1) + corner + "".join(axis)
    yield " " * _LABEL + labels


def _clock(moment: float, start: float, end: float) -> str:
    """A local time as short as the shown span allows."""
    local = datetime.fromtimestamp(moment).astimezone()
    return local.strftime("%H:%M" if end - start <= 86400 else "%d %b %H:%M")


def _has_blocks() -> bool:
    """Whether what is printed may hold block characters."""
    try:
        _EIGHTHS.encode(sys.stdout.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
