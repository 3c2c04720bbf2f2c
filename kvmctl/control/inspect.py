"""Everything about one guest, read and put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.data import as_data
from kvmctl.model.modes import disk_mode, nic_mode
from kvmctl.model.pci import order
from kvmctl.model.spec import DiskSpec, GuestSpec
from kvmctl.xml import devices
from kvmctl.xml.parse import Parsed, parse
from kvmctl.xml.pci import pci_devices

if TYPE_CHECKING:
    from kvmctl.model.change import Change


def described(hypervisor: Hypervisor, name: str) -> tuple[GuestSpec, tuple[str, ...]]:
    """The guest's definition as a spec, and what a guest file cannot say of it. Raises NotFoundError."""
    domain = domains.find(hypervisor, name)
    parsed = _parsed(domain)
    return parsed.spec, (*parsed.notes, *parsed.unexpressed)


def _parsed(domain: Any) -> Parsed:
    parsed = parse(domains.definition(domain))
    return replace(parsed, spec=replace(parsed.spec, autostart=domains.autostart(domain)))


def inspect(hypervisor: Hypervisor, name: str) -> dict[str, Any]:
    """One guest as a document with stable keys: sizes in bytes, except in `spec`, which is as the guest file."""
    domain = domains.find(hypervisor, name)
    sample = domains.sample_one(domain)
    parsed = _parsed(domain)
    return {
        "name": sample.name,
        "uuid": sample.uuid,
        "state": sample.state,
        "autostart": parsed.spec.autostart,
        "persistent": domains.is_persistent(domain),
        "memory_now": {
            "balloon": sample.balloon.current,
            "max": sample.balloon.maximum,
            "resident": sample.balloon.rss,
        },
        "spec": as_data(parsed.spec),
        "devices": modes_of(parsed),
        "pending_restart": pending(domain, parsed.spec),
        "beyond_the_guest_file": [*parsed.notes, *parsed.unexpressed],
    }


def modes_of(parsed: Parsed) -> list[dict[str, Any]]:
    """How the guest has each disk, drive, nic and device of the host: what it is, its mode, and its hardware."""
    drives = [disk for one in parsed.root.iterfind("devices/disk") if isinstance(disk := devices.disk(one), DiskSpec)]
    found = [
        {"device": disk.device or "disk", "name": disk.target, "mode": disk_mode(disk.bus), "model": disk.bus}
        for disk in drives
    ]
    found += [
        {"device": "nic", "name": nic.mac, "mode": nic_mode(nic.model), "model": nic.model}
        for nic in parsed.spec.nics or ()
    ]
    return found + [one | {"mode": "passthrough"} for one in _passed(parsed)]


def _passed(parsed: Parsed) -> Iterator[dict[str, Any]]:
    """The host's devices, also those that a guest file cannot say."""
    others = set(pci_devices(parsed.root))
    for one in parsed.spec.passthrough or ():
        others.discard(one.pci or "")
        card = f", of {one.vf_of}" if one.vf_of else ""
        if one.mac:
            yield {"device": "nic", "name": one.mac, "model": f"vfio {one.pci}{card}"}
        else:
            yield {"device": "pci" if one.pci else "mdev", "name": one.pci or one.mdev, "model": f"vfio{card}"}
    for address in sorted(others, key=order):
        yield {"device": "pci", "name": address, "model": "vfio"}


def _is_expanded(change: Change) -> bool:
    """Whether the running guest merely shows which model `host-model` came to."""
    return change.field == "cpu.model" and change.new == "host-model"


def pending(domain: Any, stored: GuestSpec) -> list[dict[str, Any]]:
    """Fields whose stored value a running guest does not have yet."""
    if domains.state(domain) not in ("running", "paused", "suspended"):
        return []
    from kvmctl.control.running import running_spec
    from kvmctl.policy.diff import FOLLOWED_LIVE, LIVE, diff

    running = running_spec(domain, stored)
    return [
        {"field": change.field, "running": change.old, "stored": change.new}
        for change in diff(replace(stored, autostart=None), running)
        if (change.field in FOLLOWED_LIVE or change.field not in LIVE) and not _is_expanded(change)
    ]
