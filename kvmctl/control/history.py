"""What ticks have changed: when, what, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.host.files import append_bounded, read_text, state_directory
from kvmctl.model.change import Outcome

MOST_BYTES = 1 << 20
"""Of one file; there are two, and the older one is dropped."""


@dataclass(frozen=True, slots=True)
class Record:
    """One change. `time` is seconds since the epoch."""

    time: float
    uri: str
    guest: str
    field: str
    old: Any
    new: Any
    result: str
    reason: str


def file() -> Path:
    """The newer of the two files."""
    return state_directory() / "history.jsonl"


def record(uri: str, clock: float, outcomes: Sequence[Outcome]) -> None:
    """Append what became of each change. Raises KvmctlError."""
    lines = [
        json.dumps(
            {
                "time": round(clock, 3),
                "uri": uri,
                "guest": outcome.change.guest,
                "field": outcome.change.field,
                "old": outcome.change.old,
                "new": outcome.change.new,
                "result": outcome.result,
                "reason": outcome.reason or outcome.change.reason,
            }
        )
        for outcome in outcomes
    ]
    if lines:
        append_bounded(file(), "".join(f"{line}\n" for line in lines), MOST_BYTES)


def records() -> Iterator[Record]:
    """Everything recorded, oldest first; a line that a crash cut off is left out. Raises UnreachableError."""
    for path in (file().with_suffix(".old"), file()):
        for line in (read_text(path) or "").splitlines():
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError, RecursionError):
                continue
