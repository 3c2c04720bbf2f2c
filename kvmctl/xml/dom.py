"""Changing a definition in place: nodes are put in and taken out, and everything else stays as it stands."""

from __future__ import annotations

import re
from typing import cast
from xml.etree.ElementTree import Element

from lxml import etree
from lxml.etree import _Element

from kvmctl.xml.render import render_part
from kvmctl.xml.tree import not_xml

_MISC = r"(?:\s|<\?(?:(?!\?>).)*\?>|<!--(?:(?!-->).)*-->|<!DOCTYPE[^\[>]*(?:\[[^\]]*\]\s*)?>)*"
_BEFORE, _AFTER = re.compile(_MISC, re.DOTALL), re.compile(rf"(?<=>){_MISC}\Z", re.DOTALL)
"""What may stand before and after a document's root."""
_TOP = (
    "name", "uuid", "genid", "title", "description", "metadata", "maxMemory", "memory", "currentMemory", "blkiotune",
    "memtune", "memoryBacking", "vcpu", "vcpus", "iothreads", "iothreadids", "cputune", "numatune", "resource",
    "sysinfo", "os", "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash", "pm", "perf", "devices",
    "seclabel",
)  # fmt: skip
_DEVICES = (
    "emulator", "disk", "controller", "interface", "serial", "console", "channel", "input", "graphics", "audio",
    "video", "hostdev", "memballoon", "rng",
)  # fmt: skip
_OS = ("type", "firmware", "loader", "nvram", "kernel", "initrd", "cmdline", "boot")
_DISK = ("driver", "source", "backingStore", "target", "iotune", "readonly")
_NIC = ("mac", "source", "vlan", "bandwidth", "target", "model", "driver")
_ORDERS: dict[str, tuple[str, ...]] = {
    "domain": _TOP,
    "devices": _DEVICES,
    "os": _OS,
    "disk": _DISK,
    "interface": _NIC,
}
"""The order in which libvirt writes what this module adds; it reads any."""
_STEP = "  "


def load(xml: str) -> _Element:
    """The root of a definition, with every comment and prefix. Raises UsageError where it is not XML."""
    try:
        return etree.fromstring(xml.encode(), _parser())
    except etree.XMLSyntaxError as error:
        raise not_xml(error) from error


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, huge_tree=False, strip_cdata=False
    )


def dump(root: _Element, original: str) -> str:
    """The document again, with what stood before and after the root of `original`."""
    before, after = _BEFORE.match(original), _AFTER.search(original)
    text = etree.tostring(root, encoding="unicode", with_tail=False)
    return f"{before[0] if before else ''}{text}{after[0] if after else ''}"


def part(template: str, **values: object) -> _Element:
    """One element, from the template that a new guest's comes from."""
    return etree.fromstring(render_part(template, **values).strip().encode(), _parser())


def readable(node: _Element) -> Element:
    """The node as the functions that read take it: they use what lxml's and the library's elements both have."""
    return cast("Element", node)


def add_device(root: _Element, template: str, **values: object) -> None:
    """Put in a new device; `template` is the name of a file in `devices/`."""
    insert(child(root, "devices"), part(f"devices/{template}", **values))


def child(parent: _Element, tag: str) -> _Element:
    """The child of that name, which is made where it is missing."""
    found = parent.find(tag)
    if found is None:
        found = etree.Element(tag)
        insert(parent, found)
    return found


def say(parent: _Element, tag: str, text: str | None) -> None:
    """Make the child of that name say `text`; without a text there is no such child."""
    if text:
        child(parent, tag).text = text
    else:
        drop(parent, tag)


def mark(node: _Element, attribute: str, value: str | None) -> None:
    """Give an attribute its value; without a value there is no such attribute."""
    if value is not None:
        node.set(attribute, value)
    elif attribute in node.attrib:
        del node.attrib[attribute]


def drop(parent: _Element, *tags: str) -> None:
    """Take out every child of these names."""
    for tag in tags:
        for node in parent.findall(tag):
            remove(node)


def insert(parent: _Element, node: _Element) -> None:
    """Put a node in where libvirt would write it, indented as its neighbours are."""
    order = _ORDERS.get(str(parent.tag), ())
    before = order[: order.index(str(node.tag)) + 1] if node.tag in order else None
    after = next((other for other in reversed(parent) if before is None or other.tag in before), None)
    depth = sum(1 for _ in parent.iterancestors()) + 1
    _space(parent, node, after, depth)
    parent.insert(0 if after is None else parent.index(after) + 1, node)


def _space(parent: _Element, node: _Element, after: _Element | None, depth: int) -> None:
    if len(parent) == 0:
        parent.text, node.tail = f"\n{_STEP * depth}", f"\n{_STEP * (depth - 1)}"
    elif after is None:
        node.tail = parent.text
    else:
        node.tail = after.tail
        if after.getnext() is None:
            after.tail = parent.text
    tail = node.tail
    etree.indent(node, _STEP, level=depth)
    node.tail = tail


def remove(node: _Element) -> None:
    """Take a node out, with the line that it stands on."""
    parent, previous = node.getparent(), node.getprevious()
    if parent is None:
        return
    last = node.getnext() is None
    kept = node.tail if last else (node.tail or "").strip() or None
    if previous is not None:
        previous.tail = kept if last else _joined(previous.tail, kept)
    elif last:
        parent.text = None
    else:
        parent.text = _joined(parent.text, kept)
    parent.remove(node)


def _joined(one: str | None, other: str | None) -> str | None:
    return f"{one or ''}{other or ''}" or None


def prune(root: _Element, path: str) -> None:
    """Take out the element at `path` where nothing is left in it."""
    node = root.find(path)
    if node is not None and not len(node) and not node.attrib and not (node.text or "").strip():
        remove(node)
