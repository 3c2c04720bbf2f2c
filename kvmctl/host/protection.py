"""`memory.low` of cgroup v2: what the kernel leaves to a group as long as it finds memory elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from kvmctl.host import daemons, systemd
from kvmctl.host.files import read_permitted, write_kernel

_FILE = "memory.low"
_UNITS = (".slice", ".scope")


def low(directory: Path) -> int | None:
    """Bytes of the group that are protected; None where it has no such file."""
    text = (read_permitted(directory / _FILE) or "").strip()
    if text == "max":
        return sys.maxsize
    return int(text) if text.isdecimal() else None


def set_low(directory: Path, value: int, root: Path = Path("/")) -> int:
    """Protect so many bytes until the next boot, through systemd where the group is its unit; what the kernel has
    afterwards. Raises KvmctlError."""
    if directory.name.endswith(_UNITS) and daemons.has_systemd(root):
        return systemd.set_property(directory.name, "MemoryLow", value, directory / _FILE)
    return int(write_kernel(directory / _FILE, str(value)))
