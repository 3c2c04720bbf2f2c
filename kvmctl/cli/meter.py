"""How far a long work is, as one line on the terminal of stderr: what, share, rate, time left."""

from __future__ import annotations

import shutil
import sys
import time

import click

from kvmctl.cli.app import App
from kvmctl.cli.output import moves_cursor, note
from kvmctl.model.units import human_size

EVERY = 0.2
"""Seconds between two lines."""


class Line:
    """A meter that rewrites one line. Use it in a `with`: the line is gone at its end."""

    def __init__(self) -> None:
        self._what, self._total, self._done = "", 0, 0
        self._begun = self._shown = 0.0

    def begin(self, what: str, total: int) -> None:
        """As `control.meter.Meter`."""
        self._what, self._total, self._done = what, total, 0
        self._begun = time.monotonic()
        self._show()

    def moved(self, count: int) -> None:
        """As `control.meter.Meter`."""
        self._done += count
        if time.monotonic() - self._shown >= EVERY:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        text = line(self._what, self._done, self._total, self._shown - self._begun)
        click.echo(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K", err=True, nl=False)

    def clear(self) -> None:
        """Take the line away."""
        if self._what:
            click.echo("\r\x1b[K", err=True, nl=False)


def line(what: str, done: int, total: int, seconds: float) -> str:
    """One line: bytes `done` of `total` after `seconds`."""
    if not total:
        return what
    rate = done / seconds if seconds > 0 else 0.0
    left = f"{duration((total - done) / rate)} left" if rate and done < total else ""
    share = min(100, 100 * done // total)
    return f"{what}  {share}% of {human_size(total)}  {human_size(int(rate))}/s  {left}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people read a time that is left: 42 s, 3 min 5 s, 2 h 7 min."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Quiet:
    """A meter that shows nothing, except with `-v` the steps."""

    def __init__(self, app: App) -> None:
        self._app = app

    def begin(self, what: str, total: int) -> None:
        """As `control.meter.Meter`."""
        if self._app.verbose:
            note(self._app, f"{what} {human_size(total)}" if total else what)

    def moved(self, count: int) -> None:
        """As `control.meter.Meter`."""

    def clear(self) -> None:
        """There is no line."""


def meter(app: App) -> Line | Quiet:
    """A line where stderr is a terminal, and it is not to be quiet."""
    return Line() if sys.stderr.isatty() and moves_cursor() and not app.quiet else Quiet(app)
