"""One device of a definition as XML of its own, which a running guest can be given or asked for."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kvmctl.xml import passed


def of(root: Element, name: str) -> Element | None:
    """The disk of that target, the nic of that MAC address, or the device of the host of that address or UUID."""
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") == name:
            return disk
    for nic in root.iterfind("devices/interface"):
        mac = nic.find("mac")
        if mac is not None and mac.get("address", "").lower() == name:
            return nic
    for tag in passed.PLACES:
        for device in root.iterfind(f"devices/{tag}"):
            one = passed.device(device)
            if one and name in (one.pci, one.mdev):
                return device
    return None


def text(device: Element, *, placed: bool = True) -> str:
    """The device's XML; without its place on a bus where not `placed`."""
    node = _copy(device)
    for tag in () if placed else ("address",):
        for child in node.findall(tag):
            node.remove(child)
    return ElementTree.tostring(node, encoding="unicode")


def with_medium(drive: Element, path: str | None) -> str:
    """The XML of a CD-ROM drive with another medium in it; None is no medium."""
    node = _copy(drive)
    for tag in ("source", "backingStore"):
        for child in node.findall(tag):
            node.remove(child)
    if path:
        block = path.startswith("/dev/")
        node.set("type", "block" if block else "file")
        ElementTree.SubElement(node, "source", {"dev" if block else "file": path})
    return ElementTree.tostring(node, encoding="unicode")


def interface(root: Element, mac: str) -> str | None:
    """The host's interface of a running guest's nic."""
    nic = of(root, mac)
    target = None if nic is None else nic.find("target")
    return None if target is None else target.get("dev")


def _copy(device: Element) -> Element:
    return ElementTree.fromstring(ElementTree.tostring(device))  # noqa: S314 - libvirt wrote it
