"""How far something long is, in one line of a terminal's stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import click

from kvmctl.cli.app import App
from kvmctl.cli.output import moves_cursor

_EVERY = 0.2
_SURE = 2.0
"""Seconds of work after which the time that is left can be told."""


class Gauge:
    """A line that is written again and again; nothing off a terminal or with `-q`."""

    def __init__(self, app: App) -> None:
        self._on = not app.quiet and sys.stderr.isatty() and moves_cursor()
        self._what, self._began, self._next = "", 0.0, 0.0

    def show(self, what: str, done: float) -> None:
        """`what` is being done, and is done by a share of 0.0 to 1.0."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._next = what, now, 0.0
        if not self._on or now < self._next:
            return
        self._next = now + _EVERY
        spent = now - self._began
        left = f", {spent / done * (1 - done):.0f} s left" if done > 0 and spent > _SURE else ""
        click.echo(f"\r\x1b[K{what}: {done:.0%}{left}", err=True, nl=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on and self._what:
            click.echo("\r\x1b[K", err=True, nl=False)
