"""How far a long work is: told by who does it, shown by who has a terminal."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Takes what is done of one step after the other."""

    def begin(self, what: str, total: int) -> None:
        """A step begins, of `total` bytes; the one before has ended."""

    def moved(self, count: int) -> None:
        """That many bytes more are done of it."""


class Silent:
    """A meter that nobody looks at."""

    def begin(self, what: str, total: int) -> None:
        """Nothing is shown."""

    def moved(self, count: int) -> None:
        """Nothing is shown."""
