"""Where the variables of a guest's UEFI firmware lie."""

from __future__ import annotations

from pathlib import Path

from kvmctl.xml import identity, tree
from kvmctl.xml.parse import firmware

FOLDER = Path("/var/lib/libvirt/qemu/nvram")
"""Where the system's libvirt puts them by itself."""


def path(xml: str) -> Path | None:
    """The file that the guest with this definition has them in, or will have; None for a guest without any.

    Where libvirt chooses the firmware, no stored definition says the file: it is known by the guest's name.
    """
    own = identity.read(xml)
    if own.nvram:
        return Path(own.nvram)
    return FOLDER / f"{own.name}_VARS.fd" if firmware(tree.read(xml)) == "uefi" else None


def existing(xml: str) -> str | None:
    """That file, where it is there: it is made when the guest starts for the first time."""
    found = path(xml)
    return str(found) if found is not None and found.exists() else None
