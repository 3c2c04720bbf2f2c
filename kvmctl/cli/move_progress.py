"""How far moves are, on one line of a terminal that is written over."""

from __future__ import annotations

import shutil
import sys
import threading
import time

import click

from kvmctl.cli.app import App
from kvmctl.cli.output import moves_cursor, one_line
from kvmctl.model.migration import JobSample
from kvmctl.model.units import human_size

EVERY = 0.25
"""Seconds between two pictures."""


class MoveProgress:
    """Shows the moves that go on. Samples come from several threads."""

    def __init__(self, app: App) -> None:
        self._shown = not app.quiet and sys.stderr.isatty() and moves_cursor()
        self._samples: dict[str, JobSample] = {}
        self._last = 0.0
        self._lock = threading.Lock()

    def __call__(self, guest: str, sample: JobSample) -> None:
        """Take in how far a guest is."""
        if not self._shown:
            return
        with self._lock:
            self._samples[guest] = sample
            now = time.monotonic()
            if now - self._last >= EVERY:
                self._last = now
                click.echo(f"\r\x1b[K{self._line()}", nl=False, err=True)

    def _line(self) -> str:
        parts = [one_line(f"{name}: {_words(sample)}") for name, sample in self._samples.items()]
        return "; ".join(parts)[: shutil.get_terminal_size().columns - 1]

    def done(self) -> None:
        """Take the line away."""
        if self._shown and self._samples:
            click.echo("\r\x1b[K", nl=False, err=True)


def _words(sample: JobSample) -> str:
    words = [f"{sample.done:.0%}"]
    if sample.speed:
        words.append(f"{human_size(sample.speed)}/s")
        left = sample.memory_left + max(0, sample.disk_total - sample.disk_sent)
        words.append(f"{left / sample.speed:.0f} s left")
    if sample.rounds > 1:
        words.append(f"round {sample.rounds}")
    if sample.throttled:
        words.append(f"slowed by {sample.throttled} %")
    return ", ".join(words)
