"""The host's memory over time, as ticks have recorded it: one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from kvmctl.host.files import append_bounded, read_text, state_directory
from kvmctl.model.errors import KvmctlError
from kvmctl.model.trend import TrendPoint, TrendRecord

SECONDS_BETWEEN = 30.0
"""Ticks come every few seconds; a picture of hours needs no more than this."""
MOST_BYTES = 4 << 20
"""Of one file; there are two, and the older one is dropped. A point is about 200 bytes, so one file holds a week."""

_TAIL = 64 << 10
"""Bytes of the file's end in which the last point of a hypervisor is looked for."""
_LATEST = 1e11
"""Seconds since the epoch: a later time is none, and no calendar takes it."""
_FIGURES = tuple(field.name for field in fields(TrendPoint))
_last: dict[tuple[Path, str], float] = {}
"""When this process recorded last, for each file and hypervisor."""


def file() -> Path:
    """The newer of the two files."""
    return state_directory() / "trend.jsonl"


def record(uri: str, clock: float, point: TrendPoint) -> bool:
    """Append a point, unless the last one of this hypervisor is not 30 s old; whether it was.

    `clock` is seconds since the epoch. Raises KvmctlError.
    """
    path = file()
    key = (path, uri)
    last = _last[key] if key in _last else _last_in(path, uri)
    # A clock that was set back must not stop the recording until it has caught up.
    if last is not None and 0 <= clock - last < SECONDS_BETWEEN:
        _last[key] = last
        return False
    line = json.dumps({"time": round(clock, 3), "uri": uri, **asdict(point)}, separators=(",", ":"))
    append_bounded(path, f"{line}\n", MOST_BYTES)
    _last[key] = clock
    return True


def records(since: float = 0.0) -> Iterator[TrendRecord]:
    """Every point since `since`, in seconds since the epoch, oldest first; a line that a crash cut off, or that is
    something else, is left out. Raises UnreachableError where the file may not be read."""
    path = file()
    for each in (path.with_suffix(".old"), path):
        for line in (read_text(each) or "").splitlines():
            found = _read(line)
            if found is not None and found.time >= since:
                yield found


def _last_in(path: Path, uri: str) -> float | None:
    """When the last point of this hypervisor was recorded, by any process; None where its file does not tell."""
    try:
        with path.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - _TAIL))
            lines = opened.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KvmctlError(f"cannot read {path}: {error.strerror}", f"look at it: ls -l {path}") from error
    found = (_read(line) for line in reversed(lines))
    return next((each.time for each in found if each is not None and each.uri == uri), None)


def _read(line: str) -> TrendRecord | None:
    """None where the line is no point. A later kvmctl may record more figures: they are not for this one."""
    try:
        values: Any = json.loads(line)
        if not isinstance(values, dict):
            return None
        figures = {name: values.get(name) for name in _FIGURES}
        known = {name: value for name, value in figures.items() if value is not None}
        right = all(type(value) is (str if name == "state" else int) for name, value in known.items())
        time, uri = float(values["time"]), values["uri"]
        if not right or not isinstance(uri, str) or not 0 <= time <= _LATEST:
            return None
        return TrendRecord(time, uri, TrendPoint(**figures))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
