"""The devices of an existing definition. Those that a guest file cannot say are never touched."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from lxml import etree
from lxml.etree import _Element

from kvmctl.model import throttle
from kvmctl.model.defaults import fill_nic
from kvmctl.model.errors import UsageError
from kvmctl.model.spec import ConsoleSpec, GuestSpec, NicSpec, VncSpec
from kvmctl.xml import devices, dom, edit_disks, passed
from kvmctl.xml.metadata import Metadata
from kvmctl.xml.parse import BOOT_DEVICES, boot_order
from kvmctl.xml.render import bandwidth

_BOOT_NAMES = {kind: name for name, kind in BOOT_DEVICES.items()}


def edit(root: _Element, desired: GuestSpec, now: GuestSpec, said: Metadata) -> Metadata:
    """Make the devices what `desired` says; returns `said` with what is to be remembered of them.

    Raises UsageError where a disk cannot have the target it asks for, or a nic the queues.
    """
    said = edit_disks.edit(root, desired, now, said)
    if desired.nics is not None:
        _nics(root, desired.nics, now)
    if desired.passthrough is not None and desired.passthrough != now.passthrough:
        passed.edit(root, desired.passthrough, now.passthrough or ())
        said = replace(said, passed=passed.to_remember(desired.passthrough, now.passthrough or ()))
    if desired.console is not None and desired.console != now.console:
        _console(root, desired.console)
    if desired.vnc is not None and desired.vnc != now.vnc:
        _vnc(root, desired.vnc)
    if desired.agent is not None and desired.agent != now.agent:
        _switch(root, "channel", "agent", desired.agent)
    if desired.rng is not None and desired.rng != now.rng:
        _switch(root, "rng", "rng", desired.rng)
    _order(root, desired, now)
    return said


def _order(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    """What the guest starts from, in turn: as before where that is not said, also if the order was in the numbers
    of devices that are gone. libvirt refuses such numbers beside an order of kinds."""
    wanted = desired.boot.order or _order_with_iso(desired, now)
    if wanted is None or wanted == boot_order(dom.readable(root)):
        return
    for device in root.iterfind("devices/*"):
        dom.drop(device, "boot")
    boot = dom.child(root, "os")
    dom.drop(boot, "boot")
    for kind in wanted:
        dom.insert(boot, etree.Element("boot", {"dev": _BOOT_NAMES[kind]}))


def _order_with_iso(desired: GuestSpec, now: GuestSpec) -> tuple[str, ...] | None:
    """The present order with an ISO that is new, or without one that is taken out."""
    iso = now.boot.iso if desired.boot.iso is None else desired.boot.iso
    if now.boot.order is None or bool(iso) == bool(now.boot.iso):
        return now.boot.order
    others = tuple(kind for kind in now.boot.order if kind != "cdrom")
    return ("cdrom", *others) if iso else others or ("disk",)


def _switch(root: _Element, tag: str, template: str, wanted: bool) -> None:
    if wanted:
        dom.add_device(root, template)
        return
    is_it = {"channel": devices.is_agent, "rng": devices.is_rng}[tag]
    for node in root.findall(f"devices/{tag}"):
        if is_it(dom.readable(node)):
            dom.remove(node)


def _nics(root: _Element, wanted: tuple[NicSpec, ...], guest: GuestSpec) -> None:
    present = [
        (node, nic)
        for node in root.findall("devices/interface")
        if isinstance(nic := devices.nic(dom.readable(node)), NicSpec)
    ]
    named = {nic.mac for nic in wanted if nic.mac}
    by_mac = {nic.mac: (node, nic) for node, nic in present if nic.mac in named}
    others = [pair for pair in present if pair[1].mac not in named]
    added = []
    for nic in wanted:
        pair = by_mac.get(nic.mac) if nic.mac else (others.pop(0) if others else None)
        if pair is None:
            added.append(nic)
        else:
            _change_nic(*pair, nic)
    for node, _ in others:
        dom.remove(node)
    for nic in added:
        filled = fill_nic(nic, guest.boot.machine, guest.cpu.max or 1)
        dom.add_device(root, "nic", nic=filled, ceilings=bandwidth(filled))


def _change_nic(node: _Element, now: NicSpec, wanted: NicSpec) -> None:
    """Raises UsageError where the nic that is there cannot have so many queues."""
    model = wanted.model or now.model or ""
    if (wanted.queues or 1) > 1 and not model.startswith("virtio"):
        raise UsageError(
            f"nic {now.mac or model} is an {model}, and only a virtio nic has more queues than one",
            "say model: virtio as well, or leave out queues",
        )
    link = (wanted.network, wanted.bridge, wanted.user or None)
    if any(link) and link != (now.network, now.bridge, now.user):
        kind = "network" if wanted.network else "bridge" if wanted.bridge else "user"
        node.set("type", kind)
        # A port group or a virtual port belongs to the network that was.
        dom.drop(node, "source", "virtualport")
        if kind != "user":
            dom.insert(node, etree.Element("source", {kind: wanted.network or wanted.bridge or ""}))
    if wanted.model is not None and wanted.model != now.model:
        dom.child(node, "model").set("type", wanted.model)
        if not wanted.model.startswith("virtio") and (driver := node.find("driver")) is not None:
            dom.mark(driver, "queues", None)
            dom.prune(node, "driver")
    if wanted.queues is not None and wanted.queues != (now.queues or 1):
        dom.mark(dom.child(node, "driver"), "queues", str(wanted.queues) if wanted.queues > 1 else None)
        dom.prune(node, "driver")
    _set_ceilings(node, now, wanted)


def _set_ceilings(node: _Element, now: NicSpec, wanted: NicSpec) -> None:
    """The `<bandwidth>` with what is said of it; a floor that somebody set stays."""
    due = replace(now, **{name: value for name in throttle.NIC if (value := getattr(wanted, name)) is not None})
    old, new = throttle.nic_parameters(now), throttle.nic_parameters(due)
    for name, value in new.items():
        if value != old[name]:
            way, _, attribute = name.partition(".")
            dom.mark(dom.child(dom.child(node, "bandwidth"), way), attribute, str(value) if value else None)
            dom.prune(node, f"bandwidth/{way}")
            dom.prune(node, "bandwidth")


def _console(root: _Element, wanted: ConsoleSpec) -> None:
    found = cast("list[_Element]", devices.consoles(dom.readable(root)))
    if not wanted.enabled:
        for node in found:
            dom.remove(node)
    elif not found:
        dom.add_device(root, "console", console=wanted)
    elif wanted.log is not None:
        for node in found:
            dom.drop(node, "log")
            if wanted.log:
                dom.insert(node, etree.Element("log", {"file": wanted.log, "append": "on"}))


def _vnc(root: _Element, wanted: VncSpec) -> None:
    displays = root.findall("devices/graphics")
    found = [node for node in displays if devices.is_vnc(dom.readable(node))]
    if not wanted.enabled:
        for node in found:
            dom.remove(node)
        if found and len(found) == len(displays):
            dom.drop(dom.child(root, "devices"), "video")
    elif not found:
        dom.add_device(root, "vnc", vnc=wanted)
        if root.find("devices/video") is None:
            dom.add_device(root, "video")
    else:
        _change_vnc(found[0], wanted)


def _change_vnc(display: _Element, wanted: VncSpec) -> None:
    display.set("port", str(wanted.port or -1))
    display.set("autoport", "no" if wanted.port else "yes")
    display.set("listen", wanted.listen)
    dom.drop(display, "listen")
    dom.insert(display, etree.Element("listen", {"type": "address", "address": wanted.listen}))
