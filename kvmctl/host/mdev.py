"""Mediated devices: parts of a card that its driver has made for guests, and the types of which more can be made."""

from __future__ import annotations

from pathlib import Path

from kvmctl.host.files import read_int, read_permitted
from kvmctl.host.pci_block import names_in
from kvmctl.host.pci_kernel import ROOT
from kvmctl.model.pci import Mdev, MdevType
from kvmctl.model.values import mdev

_PARENTS = "sys/class/mdev_bus"
_DEVICES = "sys/bus/mdev/devices"


def parents(root: Path = ROOT) -> dict[str, tuple[MdevType, ...]]:
    """The devices that can have mdevs, PCI or not, by their names in the kernel, each with its types."""
    return {name: _types(root / _PARENTS / name / "mdev_supported_types") for name in names_in(root / _PARENTS)}


def _types(folder: Path) -> tuple[MdevType, ...]:
    return tuple(
        MdevType(
            name=name,
            title=(read_permitted(folder / name / "name") or "").strip(),
            interface=(read_permitted(folder / name / "device_api") or "").strip(),
            available=read_int(folder / name / "available_instances"),
        )
        for name in names_in(folder)
    )


def devices(root: Path = ROOT) -> tuple[Mdev, ...]:
    """The mdevs that there are; one that vanishes meanwhile is left out."""
    found = []
    for name in names_in(root / _DEVICES):
        path = root / _DEVICES / name
        try:
            uuid, kind = mdev(name), (path / "mdev_type").readlink().name
            # They lie below the device that they are a part of.
            found.append(Mdev(uuid, path.resolve(strict=True).parent.name, kind, _group(path)))
        except (OSError, ValueError):
            continue
    return tuple(found)


def _group(path: Path) -> int | None:
    try:
        number = (path / "iommu_group").readlink().name
    except OSError:
        return None
    return int(number) if number.isdigit() else None
