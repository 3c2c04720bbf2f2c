"""Letting this process go before ordinary ones."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NICE = -15
_AUTOGROUP = Path("/proc/self/autogroup")


def hurry() -> None:
    """Give this process a high priority, where that is allowed: the busier a host is, the less may its controller wait
    for its turn, and it wants little.

    Without systemd the kernel divides CPU by session (autogroup), whatever the nice values in it, so the session's
    priority counts. It is raised where the session is this process's alone, made for it if need be; not where there
    is a terminal, whose Ctrl-C has to reach it.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    if _has_terminal():
        return
    with suppress(PermissionError):  # it leads a group of processes already
        os.setsid()
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            _AUTOGROUP.write_text(str(NICE))


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
