"""How far something long is: one line on the terminal of stderr, written again and again, and gone at its end."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from kvmctl.cli.app import App
from kvmctl.cli.output import moves_cursor, note, one_line
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.model.migration import JobSample

EVERY = 0.2
"""Seconds between two lines."""
SURE = 2.0
"""Seconds of work after which the time that is left can be told."""


class _Line:
    """The line; there is none off a terminal or with `-q`. Several threads may write it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._on = not app.quiet and sys.stderr.isatty() and moves_cursor()
        self._next = 0.0
        self._lock = threading.Lock()

    def _write(self, text: Callable[[], str], at_once: bool = False) -> None:
        if not self._on:
            return
        with self._lock:
            now = time.monotonic()
            if at_once or now >= self._next:
                self._next = now + EVERY
                shown = one_line(text())[: shutil.get_terminal_size().columns - 1]
                click.echo(f"\r{shown}\x1b[K", err=True, nl=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next:
            click.echo("\r\x1b[K", err=True, nl=False)


class Gauge(_Line):
    """Of a work of which only the share that is done is known."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._what, self._began = "", 0.0

    def show(self, what: str, done: float) -> None:
        """`what` is being done, and is done by a share of 0.0 to 1.0."""
        begins = what != self._what
        if begins:
            self._what, self._began = what, time.monotonic()
        spent = time.monotonic() - self._began
        left = f", {duration(spent / done * (1 - done))} left" if 0 < done < 1 and spent > SURE else ""
        self._write(lambda: f"{what}: {done:.0%}{left}", begins)


class Meter(_Line):
    """As `control.meter.Meter`, of bytes; with `-v` the steps are said where there is no line."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._what, self._total, self._done, self._begun = "", 0, 0, 0.0

    def begin(self, what: str, total: int) -> None:
        """As `control.meter.Meter`."""
        self._what, self._total, self._done, self._begun = what, total, 0, time.monotonic()
        self._write(self._text, at_once=True)
        if self._app.verbose and not self._on:
            note(self._app, f"{what} {human_size(total)}" if total else what)

    def moved(self, count: int) -> None:
        """As `control.meter.Meter`."""
        self._done += count
        self._write(self._text)

    def _text(self) -> str:
        return line(self._what, self._done, self._total, time.monotonic() - self._begun)


class Moves(_Line):
    """Of guests that move to another host, several perhaps at once."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._samples: dict[str, JobSample] = {}

    def show(self, guest: str, sample: JobSample) -> None:
        """A guest is that far."""
        self._samples[guest] = sample
        self._write(lambda: "; ".join(f"{name}: {_words(one)}" for name, one in list(self._samples.items())))


def line(what: str, done: int, total: int, seconds: float) -> str:
    """One line: bytes `done` of `total` after `seconds`."""
    if not total:
        return what
    rate = done / seconds if seconds > 0 else 0.0
    left = f"{duration((total - done) / rate)} left" if rate and done < total else ""
    share = min(100, 100 * done // total)
    return f"{what}  {share}% of {human_size(total)}  {human_size(int(rate))}/s  {left}".rstrip()


def _words(sample: JobSample) -> str:
    words = [f"{sample.done:.0%}"]
    if sample.speed:
        words.append(f"{human_size(sample.speed)}/s")
        left = sample.memory_left + max(0, sample.disk_total - sample.disk_sent)
        words.append(f"{duration(left / sample.speed)} left")
    if sample.rounds > 1:
        words.append(f"round {sample.rounds}")
    if sample.throttled:
        words.append(f"slowed by {sample.throttled} %")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Seconds as people read a time that is left: 42 s, 3 min 5 s, 2 h 7 min."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
