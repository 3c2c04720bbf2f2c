"""Which of the host's PCI devices a guest's definition names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmctl.xml.passed import address

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_PLACES = (("hostdev", "pci", "."), ("interface", "hostdev", "."), ("disk", "nvme", "source"))
"""Element, its type, and where it says whether libvirt binds the device itself."""


def pci_devices(root: Element) -> dict[str, bool]:
    """The address of each device, and whether libvirt is to bind it by itself (`managed`)."""
    found = {}
    for tag, kind, holder in _PLACES:
        for device in root.iterfind(f"devices/{tag}[@type='{kind}']"):
            place = device.find(holder)
            if name := address(device.find("source/address")):
                found[name] = place is not None and place.get("managed") == "yes"
    return found


def mdevs(root: Element) -> tuple[str, ...]:
    """The UUIDs of its mediated devices."""
    found = root.iterfind("devices/hostdev[@type='mdev']/source/address")
    return tuple(uuid.lower() for place in found if (uuid := place.get("uuid", "")))
