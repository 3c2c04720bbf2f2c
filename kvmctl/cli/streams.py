"""The standard streams as kvmctl needs them, whatever the shell has left of them."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

WIDEST = 1000
"""Columns of the widest terminal that is drawn for: COLUMNS may say anything, and each column takes its memory."""


class _Unread(io.FileIO):
    """A stream whose reader may leave. The command goes on then: what it does matters more than what it says."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            drop(self.fileno())
        except OSError:
            if self.fileno() != 2:
                raise
            # A log on a full disk: there is nowhere left to say so, and a change must not end half made for it.
        return memoryview(data).nbytes  # type: ignore[arg-type]


def prepare() -> None:
    """Make stdin, stdout and stderr usable, and silent about a closed pipe."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It was closed, so the next file opened, libvirt's socket, would take its number.
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = _writer(sys.stdout, 1)
    sys.stderr = _writer(sys.stderr, 2)


def _writer(stream: TextIO | None, number: int) -> io.TextIOWrapper:
    raw = _Unread(number, "w", closefd=False)
    # Foreign names may hold what the terminal's encoding does not.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else None,
        errors="backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
    )


def width() -> int:
    """The columns to print for: the terminal's, and 80 where there is none; as many as a picture can be made for."""
    try:
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (OSError, ValueError):
        columns = 80
    return min(max(columns or 80, 40), WIDEST)


def help_width() -> int:
    """The columns of a help text: what click chooses by itself, which loads four compression libraries to ask."""
    return max(min(width(), 80) - 2, 50)


def drop(number: int) -> None:
    """Send to nowhere what this file descriptor still gets: else the interpreter complains about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def ending_well() -> Iterator[None]:
    """In the block a request to end, such as kill's or a lost terminal's, is what Ctrl-C is: all is put back."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
