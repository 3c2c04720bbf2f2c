"""`kvmctl migrate --history`: what was expected of the moves from this host, and how they went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from kvmctl.cli.app import App
from kvmctl.cli.output import Column, emit, note
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.control.move_record import MoveRecord

SHOWN = 20
"""Moves in a table; other formats have all."""


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


_COLUMNS = (
    Column("time", "WHEN", lambda value: datetime.fromtimestamp(value, UTC).astimezone().strftime("%Y-%m-%d %H:%M")),
    Column("guest", "GUEST"),
    Column("target", "TO"),
    Column("seconds", "TIME", _seconds, right=True),
    Column("expected", "EXPECTED", _seconds, right=True),
    Column("error", "OFF BY", lambda value: f"{value:+.0%}", right=True),
    Column("downtime", "DOWNTIME", lambda value: f"{value * 1000:.0f} ms", right=True),
    Column("sent", "SENT", human_size, right=True),
    Column("speed", "SPEED", lambda value: f"{human_size(value)}/s", right=True),
    Column("throttled", "SLOWED", lambda value: f"{value} %", right=True),
)


def show(app: App, patterns: Sequence[str]) -> None:
    """Print the moves of guests of these names or globs, of all where none is given, the latest last."""
    from kvmctl.control.move_record import records

    rows = [
        _row(move)
        for move in records()
        if not patterns or any(fnmatchcase(move.guest, pattern) for pattern in patterns)
    ]
    if app.output == "name":
        rows = list({row["name"]: row for row in rows}.values())
    if not rows:
        note(app, "no move is recorded" + (" of such guests" if patterns else ""))
    if rows or app.output != "table":
        emit(app, rows[-SHOWN:] if app.output == "table" else rows, _COLUMNS)


def _row(move: MoveRecord) -> dict[str, Any]:
    known = move.expected is not None and move.seconds > 0
    # How much longer it was expected to take than it took.
    error = round((move.expected or 0) / move.seconds - 1, 3) if known else None
    return {"name": move.guest} | asdict(move) | {"error": error}
