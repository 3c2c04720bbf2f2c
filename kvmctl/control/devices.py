"""What a running guest takes of its devices at once: ceilings, media, and devices that are plugged in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree.ElementTree import Element

from kvmctl.control.plan import GuestPlan
from kvmctl.control.wait import until
from kvmctl.host import traffic
from kvmctl.hypervisor import devices, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import throttle
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError, NotFoundError
from kvmctl.model.fields import DISK, NIC, attribute
from kvmctl.model.passed import label
from kvmctl.model.spec import DiskSpec, GuestSpec, NicSpec
from kvmctl.policy.diff import match_disks, match_nics
from kvmctl.xml import device, metadata, tree
from kvmctl.xml.parse import parse

NEAR = 0.01
"""By how much the kernel's rate may differ from ours: tc keeps the time that a packet takes in whole ticks."""
PLUGGED_WAIT = 5.0
"""Seconds for a device that libvirt has accepted to stand in the running definition."""
_LISTS = ("disks", "nics", "passthrough")
Setter = Callable[[Any, GuestPlan], None]


def parts(field: str) -> tuple[str, str, str]:
    """The list, the device's name and the attribute that a Change's field such as `disks.vda.iops` is of."""
    group, _, rest = field.partition(".")
    name, _, key = rest.partition(".")
    if group == "passthrough" and ":" in name:  # an address has a dot of its own
        function, _, key = key.partition(".")
        name = f"{name}.{function}"
    return group, name, attribute(key)


def setter(change: Change) -> Setter | None:
    """What makes this change on the running guest; None where it is of no device, or waits for the next start."""
    group, name, what = parts(change.field)
    if change.field == "boot.iso":
        return lambda domain, plan: _set_iso(domain, plan, change)
    if group not in _LISTS:
        return None
    if change.action == "add":
        return lambda domain, plan: _plug(domain, plan, change)
    if what in throttle.FIELDS:
        return lambda domain, _plan: _set_ceilings(domain, group, name)
    if what == "path":
        return lambda domain, plan: _set_medium(domain, name, str(change.new or ""), plan.force)
    return None


def change_of_medium(change: Change) -> Setter | None:
    """What makes this change where it is one of a CD-ROM drive's medium that the running guest takes; else None."""
    is_medium = change.field == "boot.iso" or (change.field.startswith("disks.") and parts(change.field)[2] == "path")
    return setter(change) if is_medium and change.how == "live" and change.action == "set" else None


def _stored(domain: Any) -> GuestSpec:
    return parse(domains.definition(domain)).spec


def _set_ceilings(domain: Any, group: str, name: str) -> None:
    """All of a device's ceilings as its definition has them by now."""
    stored = _stored(domain)
    if group == "disks":
        disk = next(disk for disk in stored.disks or () if disk.target == name)
        devices.set_disk_ceilings(domain, name, throttle.disk_parameters(disk))
    else:
        nic = next(nic for nic in stored.nics or () if nic.mac == name)
        devices.set_nic_ceilings(domain, name, throttle.nic_parameters(nic))


def _set_iso(domain: Any, plan: GuestPlan, change: Change) -> None:
    drive = metadata.read(plan.definition or "").iso
    if drive:
        _set_medium(domain, drive, str(change.new or ""), plan.force)


def _set_medium(domain: Any, target: str, path: str, force: bool) -> None:
    drive = device.of(tree.read(domains.live_definition(domain)), target)
    if drive is None:
        raise NotFoundError(f"the running guest has no drive {target}", "it comes with its next start")
    devices.update(domain, device.with_medium(drive, path or None), force)


def added(plan: GuestPlan, stored: GuestSpec, change: Change) -> str | None:
    """The target or MAC address that a device which the plan adds has in the definition by now."""
    assert plan.current is not None
    group, name, _ = parts(change.field)
    if group == "passthrough":
        before = {label(one) for one in plan.current.passthrough or ()}
        return name if name not in before and name in map(label, stored.passthrough or ()) else None
    if group == "disks":
        targets = {disk.target for disk in plan.current.disks or ()}
        wanted = _wanted(plan, change)
        now = next((now for _, now in match_disks((wanted,), stored.disks or ())), None)  # type: ignore[arg-type]
        return now.target if now and now.target not in targets else None
    known = {nic.mac for nic in plan.current.nics or ()}
    wanted = _wanted(plan, change)
    fresh = [nic for nic in stored.nics or () if nic.mac not in known]
    assert isinstance(wanted, NicSpec)
    place = [nic for nic, now in match_nics(plan.desired.nics or (), plan.current.nics or ()) if now is None]
    index = place.index(wanted)
    return fresh[index].mac if index < len(fresh) else None


def _wanted(plan: GuestPlan, change: Change) -> DiskSpec | NicSpec:
    from kvmctl.policy.diff import label as name_of

    group, name, _ = parts(change.field)
    entries: tuple[DiskSpec | NicSpec, ...] = (plan.desired.disks if group == "disks" else plan.desired.nics) or ()
    return next(entry for index, entry in enumerate(entries) if name_of(entry, index) == name)


def _plug(domain: Any, plan: GuestPlan, change: Change) -> None:
    """Give the running guest what its definition has by now, at the same address where that is free."""
    text = domains.definition(domain, secure=True)
    name = added(plan, parse(text).spec, change)
    found = device.of(tree.read(text), name) if name else None
    if found is None:
        raise KvmctlError(f"guest {plan.name} has no such device in its definition", "kvmctl show tells what it has")
    if parts(change.field)[0] == "passthrough":
        _pass(domain, plan, text, name or "", found)
        return
    try:
        devices.attach(domain, device.text(found))
    except KvmctlError:
        devices.attach(domain, device.text(found, placed=False))


def _pass(domain: Any, plan: GuestPlan, definition: str, name: str, found: Element) -> None:
    """Give the running guest a device of the host; one that it has still, since it was only taken from its definition,
    stays."""
    from kvmctl.control.passed import lending

    if device.of(tree.read(domains.live_definition(domain)), name) is None:
        with lending(Hypervisor(domain.connect()), plan.name, definition, name):
            devices.attach(domain, device.text(found, placed=False))


def is_read_back(change: Change) -> bool:
    """Whether QEMU and the kernel are asked what became of this change."""
    group, _, what = parts(change.field)
    if group not in _LISTS or change.how != "live":
        return False
    return change.action in ("add", "remove") or what in throttle.FIELDS


def read_back(hypervisor: Hypervisor, domain: Any, plan: GuestPlan, change: Change) -> Outcome:
    """What the running guest has of it now, and whether that is stored."""
    if change.action == "add":
        return _plugged(domain, plan, change)
    group, name, what = parts(change.field)
    stored = _stored(domain)
    if change.action == "remove":
        there = device.of(tree.read(domains.definition(domain)), name) is not None
        return Outcome(change, "not applied", "it is in the definition still") if there else Outcome(change, "changed")
    field = (DISK if group == "disks" else NIC)[change.field.removeprefix(f"{group}.{name}.")]
    entries: tuple[DiskSpec | NicSpec, ...] = (stored.disks if group == "disks" else stored.nics) or ()
    entry = next(entry for entry in entries if name in (getattr(entry, "target", None), getattr(entry, "mac", None)))
    kept = getattr(entry, what)
    now = _disk_has(domain, name, what) if group == "disks" else _nic_has(hypervisor, domain, name, what)
    shown = field.show(now or 0)
    if field.show(kept or 0) != change.new and not (what == throttle.SECONDS and kept is None):
        return Outcome(change, "not applied", f"{field.show(kept or 0)} is stored after all", shown)
    if not _near(now or 0, kept or 0) and not (what == throttle.SECONDS and kept is None):
        return Outcome(change, "not applied", f"the running guest has {shown}", shown)
    return Outcome(change, "changed", "", shown)


def _near(now: int, wanted: int) -> bool:
    return abs(now - wanted) <= NEAR * wanted


def _disk_has(domain: Any, target: str, what: str) -> int | None:
    return throttle.disk_ceilings(devices.disk_ceilings(domain, target))[what]


def _nic_has(hypervisor: Hypervisor, domain: Any, mac: str, what: str) -> int | None:
    """As the kernel says, where that is this machine's and speaks of it; else as libvirt does."""
    interface = device.interface(tree.read(domains.live_definition(domain)), mac)
    readers = {"bandwidth_in": traffic.sent, "bandwidth_out": traffic.received, "bandwidth_in_peak": traffic.sent_peak}
    if hypervisor.local and interface and what in readers:
        found = readers[what](interface)
        said = throttle.nic_ceilings(devices.nic_ceilings(domain, mac))
        if found is not None and (said[what] or what != "bandwidth_in_peak"):
            return found
    return throttle.nic_ceilings(devices.nic_ceilings(domain, mac))[what]


def _plugged(domain: Any, plan: GuestPlan, change: Change) -> Outcome:
    name = added(plan, _stored(domain), change)
    if name is None:
        return Outcome(change, "not applied", "it is not in the definition")
    there = until(lambda: device.of(tree.read(domains.live_definition(domain)), name) is not None, bool, PLUGGED_WAIT)
    if not there:
        return Outcome(change, "pending restart", f"the running guest has not got it; it is stored as {name}", name)
    return Outcome(change, "changed", f"it is {name}", name)
