"""Waiting to a deadline, knowing the last value seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(read: Callable[[], Value], good: Callable[[Value], bool], timeout: float, every: float = 0.2) -> Value:
    """Read until the value is good or `timeout` seconds are over; the last value read."""
    deadline = time.monotonic() + timeout
    while True:
        value = read()
        if good(value) or time.monotonic() >= deadline:
            return value
        time.sleep(max(0.0, min(every, deadline - time.monotonic())))
