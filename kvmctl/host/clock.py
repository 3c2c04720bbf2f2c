"""Whether the host's clock is kept right, and what it ticks by."""

from __future__ import annotations

import ctypes
from pathlib import Path

from kvmctl.host import daemons
from kvmctl.host.files import read_permitted

TIME_DAEMONS = ("chronyd", "ntpd", "systemd-timesyncd", "ntpsec", "openntpd")
_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_TIMEX_BYTES = 512
"""More than `struct timex` has on any architecture."""
_TIME_ERROR = 5


def is_synchronized() -> bool | None:
    """What the kernel says: a time daemon clears its "unsynchronized" flag. None where it cannot be asked."""
    call = getattr(ctypes.CDLL(None), "adjtimex", None)
    if call is None:
        return None
    # All zeros: `modes` 0 sets nothing.
    state = call(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _TIME_ERROR


def daemon() -> str | None:
    """The time daemon that runs, if any."""
    return next(iter(sorted(daemons.running(TIME_DAEMONS))), None)


def source() -> str | None:
    """The kernel's clock source, such as `tsc` or `hpet`."""
    text = read_permitted(_SOURCE)
    return text.strip() if text else None
