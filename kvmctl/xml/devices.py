"""A guest's devices as its definition has them: each as a value, or the reason why a guest file cannot say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast
from xml.etree.ElementTree import Element

from kvmctl.model import throttle
from kvmctl.model.fields import DISK, KEYS, NIC, Context, Field
from kvmctl.model.spec import ConsoleSpec, DiskSpec, NicSpec, VncSpec
from kvmctl.xml import tree

AGENT = "org.qemu.guest_agent.0"
"""The name of the guest agent's channel."""
CACHES = ("none", "writeback", "writethrough", "directsync", "unsafe")
_BUS_OF = {"vd": "virtio", "sd": "scsi", "hd": "ide"}
_OTHER_PORTS = ("virtio", "pci-serial", "usb-serial")
_ADDRESS = re.compile(r"[0-9a-fA-F.:]+", re.ASCII)


def disk(element: Element) -> DiskSpec | str:
    """A disk or CD-ROM drive, or why a guest file cannot say it."""
    device = element.get("device", "disk")
    if device not in ("disk", "cdrom"):
        return device
    source, driver, target = (_attributes(element, name) for name in ("source", "driver", "target"))
    kind = element.get("type", "file")
    if kind not in ("file", "block", "volume"):
        return " ".join(filter(None, (kind, "source", source.get("protocol"), source.get("name"))))
    path = source.get("file") or source.get("dev")
    empty = not path and not source.get("volume")
    if empty and device == "disk":
        return "without a source"
    name = target.get("dev", "")
    bus = target.get("bus") or _BUS_OF.get(name[:2])
    spec = {
        "path": path,
        "volume": source.get("volume"),
        "pool": source.get("pool"),
        "format": None if empty else driver.get("type", "raw"),
        "bus": bus,
        "device": device,
        "target": name,
        "cache": driver.get("cache") if driver.get("cache") in CACHES else None,
        "read_only": device == "cdrom" or element.find("readonly") is not None,
        "iothread": bool(driver.get("iothread")) if bus == "virtio" else None,
        **throttle.disk_ceilings(_iotune(element)),
    }
    return _unsayable(spec, DISK) or DiskSpec(**cast("dict[str, Any]", spec))


def nic(element: Element) -> NicSpec | str:
    """A network interface, or why a guest file cannot say it."""
    kind = element.get("type", "")
    source = _attributes(element, "source")
    if kind not in ("network", "bridge", "user"):
        return " ".join(filter(None, (kind, source.get("dev") or source.get("mode") or source.get("path"))))
    model = _attributes(element, "model").get("type")
    queued = kind != "user" and (model or "").startswith("virtio")
    spec = {
        "network": source.get("network") if kind == "network" else None,
        "bridge": source.get("bridge") if kind == "bridge" else None,
        "user": True if kind == "user" else None,
        "model": model,
        "mac": _attributes(element, "mac").get("address", "").lower() or None,
        "queues": (tree.number(_attributes(element, "driver").get("queues")) or 1) if queued else None,
        **throttle.nic_ceilings(_bandwidth(element)),
    }
    if not (spec["network"] or spec["bridge"] or spec["user"]):
        return f"{kind} without a source"
    return _unsayable(spec, NIC) or NicSpec(**cast("dict[str, Any]", spec))


def _iotune(element: Element) -> dict[str, int]:
    return {tree.name(part): tree.number(part.text) or 0 for part in element.iterfind("iotune/*")}


def _bandwidth(element: Element) -> dict[str, int]:
    ways = element.iterfind("bandwidth/*")
    return {f"{tree.name(way)}.{key}": tree.number(value) or 0 for way in ways for key, value in way.items()}


def _attributes(element: Element, name: str) -> Mapping[str, str]:
    child = element.find(name)
    return {} if child is None else child.attrib


def _unsayable(spec: Mapping[str, object], table: Mapping[str, Field]) -> str:
    """The first value that a guest file would not take; empty where it takes all of them."""
    for name, value in spec.items():
        if isinstance(value, str | int) and not isinstance(value, bool):
            field = table[KEYS[name]]
            try:
                field.parse(str(field.show(value)), Context())
            except ValueError:
                return f"{KEYS[name]} {value}"
    return ""


def console(root: Element) -> ConsoleSpec:
    """The serial console of a domain."""
    found = consoles(root)
    logs = [log for element in found if (log := _attributes(element, "log").get("file"))]
    return ConsoleSpec(enabled=bool(found), log=logs[0] if logs else None)


def consoles(root: Element) -> list[Element]:
    """The elements that together are the serial console: a port, and the console that is its alias."""
    found = (filter(is_console, root.iterfind(f"devices/{tag}")) for tag in ("serial", "console"))
    return [element for elements in found if (element := next(elements, None)) is not None]


def is_console(element: Element) -> bool:
    """Whether a `<serial>` or `<console>` is a pseudo-terminal on the machine's own serial port."""
    return element.get("type") == "pty" and _attributes(element, "target").get("type") not in _OTHER_PORTS


def vnc(root: Element) -> VncSpec:
    """The VNC display of a domain."""
    display = next((graphics for graphics in root.iterfind("devices/graphics") if is_vnc(graphics)), None)
    if display is None:
        return VncSpec(enabled=False)
    port = tree.number(display.get("port")) or 0
    fixed = display.get("autoport") != "yes" and port > 0
    return VncSpec(enabled=True, listen=_listens_on(display) or "127.0.0.1", port=port if fixed else 0)


def is_vnc(element: Element) -> bool:
    """Whether a `<graphics>` is a VNC display as a guest file means it: on a TCP port of one address."""
    kinds = {listen.get("type") for listen in element.iterfind("listen")}
    address = _listens_on(element)
    return (
        element.get("type") == "vnc"
        and element.get("socket") is None
        and kinds <= {"address"}
        and (address is None or _ADDRESS.fullmatch(address) is not None)
    )


def _listens_on(display: Element) -> str | None:
    return display.get("listen") or _attributes(display, "listen").get("address")


def is_agent(element: Element) -> bool:
    """Whether a `<channel>` is the guest agent's."""
    return _attributes(element, "target").get("name") == AGENT


def is_rng(element: Element) -> bool:
    """Whether an `<rng>` feeds the guest from the host's own random numbers."""
    return _attributes(element, "backend").get("model") == "random"
