"""The devices of the host in a definition, read and made to be what a spec says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from kvmctl.model.errors import UsageError
from kvmctl.model.passed import in_order, match
from kvmctl.model.pci import parse_address
from kvmctl.model.spec import PassedSpec
from kvmctl.model.values import mac, mdev
from kvmctl.xml import tree

if TYPE_CHECKING:
    from lxml.etree import _Element

PLACES = ("hostdev", "interface")
"""The elements that a device of the host is in; a network function is an interface, so that libvirt sets its MAC
address and VLAN."""
_PARTS = ("domain", "bus", "slot", "function")


def address(element: Element | None) -> str:
    """The address that libvirt's `<address>` says; empty where it says none."""
    if element is None:
        return ""
    part = {key: element.get(key, "0").removeprefix("0x") for key in _PARTS}
    try:
        return parse_address(f"{part['domain']}:{part['bus']}:{part['slot']}.{part['function']}")
    except UsageError:
        return ""


def parts(name: str) -> dict[str, str]:
    """The attributes of libvirt's `<address>` for an address."""
    return dict(zip(_PARTS, (f"0x{part}" for part in name.replace(".", ":").split(":")), strict=True))


def device(element: Element) -> PassedSpec | None:
    """A device of the host as a definition has it; None where it is no such device, or a guest file cannot say it."""
    kind, place = element.get("type"), element.find("source/address")
    if element.tag == "interface":
        return _function(element) if kind == "hostdev" else None
    if kind == "mdev" and element.get("model") == "vfio-pci" and place is not None:
        try:
            return PassedSpec(mdev=mdev(place.get("uuid", "")))
        except ValueError:
            return None
    driver = element.find("driver")
    backend = "vfio" if driver is None else driver.get("name")
    name = address(place) if kind == "pci" and backend == "vfio" else ""
    return PassedSpec(pci=name) if name else None


def _function(element: Element) -> PassedSpec | None:
    """A network function; one in several VLANs, or at a virtual port, is more than a guest file says."""
    name, tags, own = address(element.find("source/address")), element.findall("vlan/tag"), element.find("mac")
    if not name or len(tags) > 1 or element.find("virtualport") is not None or own is None:
        return None
    number = tree.number(tags[0].get("id")) if tags else None
    if number is not None and not 1 <= number <= 4094:
        return None
    try:
        return PassedSpec(pci=name, mac=mac(own.get("address", "")), vlan=number)
    except ValueError:
        return None


def devices(root: Element, remembered: Sequence[PassedSpec]) -> tuple[PassedSpec, ...]:
    """The guest's devices in their order, with what our metadata knows besides."""
    known = {one.pci: one for one in remembered}
    found = []
    for tag in PLACES:
        for element in root.iterfind(f"devices/{tag}"):
            if one := device(element):
                also = known.get(one.pci) if one.pci else None
                if also:
                    one = replace(one, vf_of=also.vf_of, spoof_check=also.spoof_check, trust=also.trust)
                found.append(one)
    return in_order(found)


def to_remember(wanted: Sequence[PassedSpec], now: Sequence[PassedSpec]) -> tuple[PassedSpec, ...]:
    """What libvirt has no place for, of devices that are wanted instead of those that there are."""
    return tuple(one for pair in match(wanted, now) if (one := _memory(merged(*pair))))


def _memory(one: PassedSpec) -> PassedSpec | None:
    kept = PassedSpec(pci=one.pci, vf_of=one.vf_of, spoof_check=one.spoof_check, trust=one.trust)
    return kept if one.pci and kept != PassedSpec(pci=one.pci) else None


def merged(wanted: PassedSpec, now: PassedSpec | None) -> PassedSpec:
    """The device that there is with what is said of it."""
    if now is None:
        return wanted
    said = {key: value for key in PassedSpec.__slots__ if (value := getattr(wanted, key)) is not None}
    return replace(now, **said)


def edit(root: _Element, wanted: Sequence[PassedSpec], now: Sequence[PassedSpec]) -> None:
    """Make the devices what is wanted. Those that a guest file cannot say stay."""
    from kvmctl.xml import dom

    nodes = {
        key: node
        for tag in PLACES
        for node in root.findall(f"devices/{tag}")
        if (one := device(dom.readable(node))) and (key := _key(one))
    }
    pairs = match(wanted, now)
    kept = {_key(old) for _, old in pairs if old}
    for one in now:
        if _key(one) not in kept:
            dom.remove(nodes[_key(one)])
    for new, old in pairs:
        due = merged(new, old)
        node = nodes[_key(old)] if old else None
        if node is not None and old is not None and (old.mac is None) == (due.mac is None):
            _change(node, old, due)
            continue
        if node is not None:
            dom.remove(node)
        dom.add_device(root, "passed", **rendered(due))


def _key(one: PassedSpec) -> str:
    return one.pci or one.mdev or ""


def rendered(one: PassedSpec) -> Mapping[str, object]:
    """What the template of a device is filled with."""
    return {"device": one, "place": parts(one.pci) if one.pci else {}}


def _change(node: _Element, now: PassedSpec, due: PassedSpec) -> None:
    from lxml import etree

    from kvmctl.xml import dom

    if due.mac is not None and due.mac != now.mac:
        dom.child(node, "mac").set("address", due.mac)
    if (due.vlan or 0) != (now.vlan or 0):
        dom.drop(node, "vlan")
        if due.vlan:
            dom.insert(node, etree.Element("vlan"))
            etree.SubElement(dom.child(node, "vlan"), "tag", {"id": str(due.vlan)})
