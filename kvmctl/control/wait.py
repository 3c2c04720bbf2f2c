"""Waiting to a deadline, knowing the last value seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from kvmctl.model.errors import KvmctlError

Value = TypeVar("Value")

interrupted = threading.Event()
"""Set while threads are to give up what they wait for: Ctrl-C reaches only the main thread."""


def until(read: Callable[[], Value], good: Callable[[Value], bool], timeout: float, every: float = 0.2) -> Value:
    """Read until the value is good or `timeout` seconds are over; the last value read.

    Raises KvmctlError where the wait is interrupted.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = read()
        if good(value) or time.monotonic() >= deadline:
            return value
        if interrupted.wait(max(0.0, min(every, deadline - time.monotonic()))):
            raise KvmctlError("interrupted while waiting", "run the command again: what is done already stays done")
