"""How far a long work is: told by who does it, shown by who has a terminal."""

from __future__ import annotations

from collections.abc import Callable
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


def shares(meter: Meter, size: int) -> Callable[[float], None]:
    """Takes how much is done, 0.0 to 1.0, of a part of the step that has `size` bytes."""
    told = 0

    def take(share: float) -> None:
        nonlocal told
        now = int(size * share)
        meter.moved(now - told)
        told = now

    return take
