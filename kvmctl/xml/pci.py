"""Which of the host's PCI devices a guest's definition names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmctl.model.errors import UsageError
from kvmctl.model.pci import parse_address

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_PLACES = (("hostdev", "pci", "."), ("interface", "hostdev", "."), ("disk", "nvme", "source"))
"""Element, its type, and where it says whether libvirt binds the device itself."""


def pci_devices(root: Element) -> dict[str, bool]:
    """The address of each device, and whether libvirt is to bind it by itself (`managed`)."""
    found = {}
    for tag, kind, holder in _PLACES:
        for device in root.iterfind(f"devices/{tag}[@type='{kind}']"):
            place, address = device.find(holder), device.find("source/address")
            if address is not None and (name := _address(address)):
                found[name] = place is not None and place.get("managed") == "yes"
    return found


def _address(element: Element) -> str:
    part = {key: element.get(key, "0").removeprefix("0x") for key in ("domain", "bus", "slot", "function")}
    try:
        return parse_address(f"{part['domain']}:{part['bus']}:{part['slot']}.{part['function']}")
    except UsageError:
        return ""
