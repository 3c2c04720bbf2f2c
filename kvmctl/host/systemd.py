"""Properties of units, set through systemd: what is written beside it, it takes back when it likes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from kvmctl.host.files import read_int
from kvmctl.model.errors import KvmctlError

_SYSTEMCTL_SECONDS = 10.0
_SETTLE_SECONDS = 5.0
"""systemd answers before it has written the kernel's file."""


def set_property(unit: str, name: str, value: int, file: Path) -> int:
    """Set a number of a unit until the next boot, which the kernel has in `file`; what that holds afterwards.

    Raises KvmctlError where systemd does not take it.
    """
    command = ["systemctl", "set-property", "--runtime", unit, f"{name}={value}"]
    hint = f"see what systemd says: systemctl status {unit}"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SYSTEMCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KvmctlError(f"systemd did not set {name} of {unit}: {error}", hint) from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise KvmctlError(f"systemd did not set {name} of {unit}: {reason}", hint)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (now := read_int(file)) != value and time.monotonic() < deadline:
        time.sleep(0.02)
    if now is None:
        raise KvmctlError(f"systemd took {name} of {unit}, but {file} cannot be read", hint)
    return now
