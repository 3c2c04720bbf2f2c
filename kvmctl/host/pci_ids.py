"""Names of PCI devices and classes, from the host's pci.ids. Of its 40,000 lines only those needed are looked at."""

from __future__ import annotations

import mmap
import re
from functools import cached_property
from pathlib import Path

_FILES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_SECTION_END = re.compile(rb"\n[0-9a-fC]")
"""A vendor or a class begins at the start of a line; what belongs to it is indented."""
_CLASSES = {
    0x0100: "SCSI storage controller", 0x0101: "IDE interface", 0x0104: "RAID bus controller",
    0x0106: "SATA controller", 0x0107: "SAS controller", 0x0108: "Non-Volatile memory controller",
    0x0180: "Mass storage controller", 0x0200: "Ethernet controller", 0x0207: "Infiniband controller",
    0x0280: "Network controller", 0x0300: "VGA compatible controller", 0x0302: "3D controller",
    0x0380: "Display controller", 0x0403: "Audio device", 0x0600: "Host bridge", 0x0601: "ISA bridge",
    0x0604: "PCI bridge", 0x0700: "Serial controller", 0x0780: "Communication controller", 0x0b40: "Co-processor",
    0x0c03: "USB controller", 0x0c05: "SMBus", 0x1200: "Processing accelerators",
    0xffff: "Unassigned class",
}  # fmt: skip
"""For hosts without pci.ids."""


class PciIds:
    """The names in one host's pci.ids, which is opened at the first question."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def device(self, vendor: int, device: int) -> str:
        """The name of a device with its vendor's; the numbers where pci.ids does not know it, or there is none."""
        section = self._section(b"\n%04x  " % vendor)
        if section is None:
            return f"{vendor:04x}:{device:04x}"
        name, start, end = section
        entry = self._entry(b"\n\t%04x  " % device, start, end)
        return f"{name} {entry or f'device {device:04x}'}"

    def class_(self, code: int) -> str:
        """The name of a class; `code` is base class and subclass, 16 bits."""
        section = self._section(b"\nC %02x  " % (code >> 8))
        if section is None:
            return _CLASSES.get(code, f"class {code:04x}")
        name, start, end = section
        return self._entry(b"\n\t%02x  " % (code & 0xFF), start, end) or name

    @cached_property
    def _data(self) -> mmap.mmap | bytes:
        for name in _FILES:
            try:
                with (self._root / name).open("rb") as file:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # an empty file cannot be mapped
                continue
        return b""

    def _section(self, head: bytes) -> tuple[str, int, int] | None:
        """The name that stands behind `head`, and where what belongs to it begins and ends."""
        start = self._data.find(head)
        if start < 0:
            return None
        following = _SECTION_END.search(self._data, start + 1)
        end = following.start() if following else len(self._data)
        return self._rest(start + len(head)), start, end

    def _entry(self, head: bytes, start: int, end: int) -> str:
        found = self._data.find(head, start, end)
        return "" if found < 0 else self._rest(found + len(head))

    def _rest(self, start: int) -> str:
        end = self._data.find(b"\n", start)
        return self._data[start : end if end >= 0 else len(self._data)].decode(errors="replace").strip()
