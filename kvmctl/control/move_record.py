"""How moves went: one JSON object a line, to check forecasts by, and to make the next one from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from kvmctl.host.files import append_bounded, read_text, state_directory

MOST_BYTES = 1 << 20
"""Of one file; there are two, and the older one is dropped."""
RECENT = 8
"""Moves that a forecast is made from."""


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One move that succeeded. `seconds` is all of it, `expected` what was forecast; `speed` bytes a second."""

    time: float
    guest: str
    source: str
    target: str
    seconds: float
    expected: float | None
    transfer: float | None
    """Seconds that libvirt's job took, without what was before and after it."""
    downtime: float | None
    expected_downtime: float | None
    sent: int
    disks: int
    speed: int
    limited: bool
    """Whether the speed was limited by choice, or shared with other moves."""
    dirty_rate: int | None
    rounds: int
    throttled: int = 0
    """Per cent by which it was slowed down."""


def file() -> Path:
    """The newer of the two files."""
    return state_directory() / "moves.jsonl"


def record(move: MoveRecord) -> None:
    """Append a move. Raises KvmctlError."""
    append_bounded(file(), json.dumps(asdict(move), separators=(",", ":")) + "\n", MOST_BYTES)


def records() -> Iterator[MoveRecord]:
    """Every move, oldest first; a line that a crash cut off is left out. Raises UnreachableError."""
    names = {field.name for field in fields(MoveRecord)}
    for path in (file().with_suffix(".old"), file()):
        for line in (read_text(path) or "").splitlines():
            try:
                values = json.loads(line)
                yield MoveRecord(**{name: values[name] for name in names & values.keys()})
            except (ValueError, TypeError, AttributeError, RecursionError):
                continue


def learnt(target: str) -> tuple[int | None, float | None]:
    """The speed of the last unlimited moves to a host, in bytes a second, and the seconds that a move takes beside
    its transfer, both as medians; None where there were none."""
    # libvirt does not tell how long the copying of disks took.
    known = [move for move in records() if move.transfer and not move.disks]
    there = [move for move in known if move.target == target][-RECENT:]
    speeds = [move.speed for move in there if not move.limited and move.speed > 0]
    beside = [move.seconds - move.transfer for move in there or known[-RECENT:] if move.transfer]
    return (round(median(speeds)) if speeds else None), (max(0.0, median(beside)) if beside else None)
