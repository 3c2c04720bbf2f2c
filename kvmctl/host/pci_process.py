"""Which processes have a disk, or a VFIO device, open."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from kvmctl.host.files import read_permitted
from kvmctl.host.pci_block import carriers, device_name, names_in
from kvmctl.host.pci_kernel import DEVICES
from kvmctl.model.pci import VFIO, Use

_GUEST = re.compile(r"(?:^|,)guest=([^,]+)")
"""How libvirt gives QEMU the name of its guest, after -name."""


def openers(root: Path) -> dict[str, tuple[str, ...]]:
    """What is open of /dev, and the processes that have it so. Of others' processes only root is told."""
    found: dict[str, dict[str, None]] = {}
    for process in names_in(root / "proc"):
        if not process.isdigit() or int(process) == os.getpid():
            continue
        folder = root / "proc" / process / "fd"
        for descriptor in names_in(folder):
            try:
                target = str((folder / descriptor).readlink())
            except OSError:
                continue
            if target.startswith("/dev/") and not target.startswith("/dev/pts/") and target != "/dev/null":
                found.setdefault(target, {})[process] = None
    return {target: tuple(processes) for target, processes in found.items()}


def uses(root: Path) -> Iterator[tuple[str, Use]]:
    """Which processes have a disk or a VFIO device open, each with the PCI device that it hangs on."""
    devices: dict[str, tuple[str, ...]] | None = None
    for target, processes in openers(root).items():
        if target.startswith("/dev/vfio/"):
            devices = _vfio_files(root) if devices is None else devices
            cards = devices.get(target, ())
        else:
            name = device_name(target, root)
            cards = tuple(carriers(name, root)) if name else ()
        for card in cards:
            yield from ((card, Use("process", describe(process, root), target)) for process in processes)


def _vfio_files(root: Path) -> dict[str, tuple[str, ...]]:
    """The files of /dev/vfio by which the devices on vfio-pci are reached: one of the group, one of the device."""
    found: dict[str, tuple[str, ...]] = {}
    for address in names_in(root / "sys/bus/pci/drivers" / VFIO):
        path = root / DEVICES / address
        if not (path / "vendor").exists():
            continue
        files = [f"/dev/vfio/devices/{name}" for name in names_in(path / "vfio-dev")]
        files.append(f"/dev/vfio/{Path(os.path.realpath(path / 'iommu_group')).name}")
        for file in files:
            found[file] = (*found.get(file, ()), address)
    return found


def describe(process: str, root: Path) -> str:
    """A process as messages name it: its number, its name, and the guest where it is one's QEMU."""
    words = (read_permitted(root / "proc" / process / "cmdline") or "").split("\0")
    name = (read_permitted(root / "proc" / process / "comm") or "").strip()
    for option, value in pairwise(words):
        if option == "-name" and (found := _GUEST.search(value)):
            return f"{process} ({name} of guest {found[1]})"
    return f"{process} ({name})" if name else process
