"""Letting this process go before ordinary ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NICE = -15
_AUTOGROUP = Path("/proc/self/autogroup")


@contextmanager
def urgent() -> Iterator[None]:
    """In the block this process has a high priority, where that is allowed: the busier a host is, the less may its
    controller wait for its turn, and it wants little.

    Without systemd the kernel divides CPU by session (autogroup), whatever the nice values in it. The session's
    priority is raised where it has no terminal, which is where it is cron's: a person's shell is left alone.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    raised = not _has_terminal() and _set_session(NICE)
    try:
        yield
    finally:
        if raised:
            _set_session(0)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _set_session(nice: int) -> bool:
    try:
        _AUTOGROUP.write_text(str(nice))
    except OSError:
        return False
    return True
