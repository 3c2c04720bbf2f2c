"""attach and detach: one device of one guest, on the way that apply goes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmctl.control.apply import Applied
from kvmctl.control.devices import change_of_medium, read_back
from kvmctl.control.plan import GuestPlan, Planner
from kvmctl.control.wait import until
from kvmctl.hypervisor import devices, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change, Outcome
from kvmctl.model.defaults import bus_of, free_target
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, TimedOutError, UsageError
from kvmctl.model.passed import label
from kvmctl.model.rules import check
from kvmctl.model.spec import EJECTED, BootSpec, DiskSpec, GuestSpec, NicSpec, PassedSpec
from kvmctl.model.wording import argument
from kvmctl.policy.diff import describe, is_pluggable
from kvmctl.xml import device, metadata, tree
from kvmctl.xml.parse import parse


@dataclass(frozen=True, slots=True)
class _Guest:
    domain: Any
    stored: GuestSpec
    iso_drive: str | None
    """The target of the drive that `boot.iso` is in."""

    @property
    def drives(self) -> dict[str, str | None]:
        """The targets of its CD-ROM drives, each with the path of its medium."""
        found = {disk.target or "": disk.path for disk in self.stored.disks or () if disk.device == "cdrom"}
        return found | ({self.iso_drive: self.stored.boot.iso} if self.iso_drive else {})

    @property
    def targets(self) -> frozenset[str]:
        """The targets that its disks have in the definition, or where it runs."""
        texts = [
            domains.definition(self.domain),
            *([domains.live_definition(self.domain)] if _runs(self.domain) else []),
        ]
        return frozenset(target.get("dev", "") for text in texts for target in tree.read(text).iterfind(_TARGETS))


_TARGETS = "devices/disk/target"


def _look(hypervisor: Hypervisor, name: str) -> _Guest:
    domain = domains.find(hypervisor, name)
    parsed = parse(domains.definition(domain))
    return _Guest(domain, parsed.spec, metadata.of(parsed.root).iso if parsed.spec.boot.iso else None)


def with_disk(hypervisor: Hypervisor, name: str, disk: DiskSpec) -> GuestSpec:
    """The wish that the guest has this disk as well. Raises UsageError, ConflictError for a target that is taken."""
    guest = _look(hypervisor, name)
    if disk.target and device.of(tree.read(domains.definition(guest.domain)), disk.target) is not None:
        raise ConflictError(f"guest {name} has a {disk.target} already", "leave out target, or choose another")
    return _checked(GuestSpec(name, boot=BootSpec(machine=guest.stored.boot.machine), disks=(disk,)), guest)


def with_nic(hypervisor: Hypervisor, name: str, nic: NicSpec) -> GuestSpec:
    """The wish that the guest has this nic as well. Raises UsageError, ConflictError for a MAC that it has."""
    guest = _look(hypervisor, name)
    if nic.mac and any(other.mac == nic.mac for other in guest.stored.nics or ()):
        raise ConflictError(f"guest {name} has a nic {nic.mac} already", "leave out mac, or choose another")
    return _checked(GuestSpec(name, boot=BootSpec(machine=guest.stored.boot.machine), nics=(nic,)), guest)


def with_passed(hypervisor: Hypervisor, name: str, device: PassedSpec) -> GuestSpec:
    """The wish that the guest has this device of the host as well. Raises UsageError, ConflictError for one that it
    has."""
    guest = _look(hypervisor, name)
    has = guest.stored.passthrough or ()
    for one in has:
        if (device.pci and device.pci == one.pci) or (device.mdev and device.mdev == one.mdev):
            raise ConflictError(f"guest {name} has {label(one)} already", "kvmctl show lists its devices")
    return _checked(GuestSpec(name, nics=guest.stored.nics, passthrough=(device,)), guest)


def _checked(wanted: GuestSpec, guest: _Guest) -> GuestSpec:
    """The wish, with what the guest has besides; the machine was there for its rules only."""
    if faults := [f"{key.partition('.0.')[2] or key}: {text}" for key, text in check(wanted, complete=False)]:
        raise UsageError("\n".join(faults), f"guest {wanted.name} was not changed")
    disks = wanted.disks
    if disks is not None:
        machine = guest.stored.boot.machine
        named = (
            disk if disk.target else replace(disk, target=free_target(bus_of(disk, machine), guest.targets))
            for disk in disks
        )
        disks = (*(guest.stored.disks or ()), *named)
    if wanted.passthrough is not None:
        # Each that it has by its address, so that another function of a card is not taken for one of them.
        return GuestSpec(wanted.name, passthrough=(*(guest.stored.passthrough or ()), *wanted.passthrough))
    nics = None if wanted.nics is None else (*(guest.stored.nics or ()), *wanted.nics)
    return GuestSpec(wanted.name, disks=disks, nics=nics)


def with_medium(hypervisor: Hypervisor, name: str, path: str, target: str | None) -> GuestSpec:
    """The wish that this ISO image is in a CD-ROM drive: the named one, the first that is empty, the only one, or a new
    one. Raises NotFoundError, UsageError."""
    guest = _look(hypervisor, name)
    drives = guest.drives
    if target is not None and target not in drives:
        known = ", ".join(drives) or "none"
        raise NotFoundError(f"guest {name} has no CD-ROM drive {target} (it has: {known})", "kvmctl show lists drives")
    if path in drives.values() and target is None:
        target = next(drive for drive, medium in drives.items() if medium == path)
    empty = [drive for drive, medium in drives.items() if not medium]
    if target is None and len(drives) > 1 and not empty:
        raise UsageError(
            f"guest {name} has several CD-ROM drives with a medium: {', '.join(drives)}", "say which, with --target"
        )
    target = target or next(iter([*empty, *drives]), None)
    if target is None:
        return replace(GuestSpec(name), disks=(*(guest.stored.disks or ()), DiskSpec(path=path, device="cdrom")))
    return _medium(guest, target, path)


def _medium(guest: _Guest, target: str, path: str) -> GuestSpec:
    name = guest.stored.name
    if target == guest.iso_drive:
        return GuestSpec(name, boot=BootSpec(iso=path))
    disks = tuple(
        replace(disk, path=path, format="raw" if path else None, volume=None, pool=None)
        if disk.target == target
        else disk
        for disk in guest.stored.disks or ()
    )
    return GuestSpec(name, disks=disks)


def without(hypervisor: Hypervisor, name: str, target: str) -> GuestSpec:
    """The wish that the guest has this disk or nic no more, or that this CD-ROM drive is empty; an empty one goes.

    Raises NotFoundError for what neither the definition nor the running guest has.
    """
    guest = _look(hypervisor, name)
    if guest.drives.get(target):
        return _medium(guest, target, EJECTED)
    disks, nics = guest.stored.disks or (), guest.stored.nics or ()
    if any(disk.target == target for disk in disks):
        return GuestSpec(name, disks=tuple(disk for disk in disks if disk.target != target))
    if any(nic.mac == target for nic in nics):
        return GuestSpec(name, nics=tuple(nic for nic in nics if nic.mac != target))
    passed = guest.stored.passthrough or ()
    if any(target in _names(one) for one in passed):
        return GuestSpec(name, passthrough=tuple(one for one in passed if target not in _names(one)))
    if _runs_with(guest.domain, target):
        return GuestSpec(name)
    if device.of(tree.read(domains.definition(guest.domain)), target) is not None:
        raise RefusedError(
            f"{target} of guest {name} is a device that a guest file cannot say, or its cloud-init seed",
            f"virsh detach-disk or detach-interface takes it away; kvmctl xml {argument(name)} shows it",
        )
    known = [disk.target or "" for disk in disks] + [nic.mac or "" for nic in nics] + list(guest.drives)
    known += [label(one) for one in passed]
    raise NotFoundError(
        f"guest {name} has no {target} (it has: {', '.join(dict.fromkeys(known)) or 'no disks or nics'})",
        "name a disk by its target such as vdb, a nic by its MAC address, a device of the host by its address or UUID",
    )


def _names(entry: DiskSpec | NicSpec | PassedSpec) -> tuple[str | None, ...]:
    """What a device may be called."""
    if isinstance(entry, PassedSpec):
        return entry.pci, entry.mdev, entry.mac
    return (entry.target,) if isinstance(entry, DiskSpec) else (entry.mac,)


def _runs(domain: Any) -> bool:
    return domains.state(domain) in ("running", "paused", "suspended")


def refuse_twice(plan: GuestPlan) -> GuestPlan:
    """The plan. Raises ConflictError where it would give the guest an image that it has already."""
    assert plan.current is not None
    had = {disk.path: disk.target for disk in plan.current.disks or () if disk.path}
    for disk in plan.desired.disks or ():
        if disk.device != "cdrom" and disk.path in had and disk.target != had[disk.path]:
            raise ConflictError(
                f"guest {plan.name} has {disk.path} already, as {had[disk.path]}", "kvmctl show lists its disks"
            )
    return plan


def _runs_with(domain: Any, name: str) -> bool:
    if not _runs(domain):
        return False
    return device.of(tree.read(domains.live_definition(domain)), name) is not None


def plan_without(planner: Planner, wanted: GuestSpec, target: str) -> GuestPlan:
    """The plan of a detach: what a running guest has and can let go of is taken from it at once.

    Raises ConflictError for a guest that is paused: it can let go of nothing.
    """
    plan = planner.plan(wanted, must_exist=True)
    changes = tuple(
        replace(change, how="live", reason="") if _unplugs(plan, change) else change for change in plan.changes
    )
    if not changes and _runs_with(plan.domain, target):
        entries = _entries(plan.live)
        found = next(entry for entry in entries if target in _names(entry))
        group = "disks" if isinstance(found, DiskSpec) else "nics" if isinstance(found, NicSpec) else "passthrough"
        changes = (Change(plan.name, f"{group}.{target}", describe(found), None, "remove"),)
    plan = replace(plan, changes=changes)
    if domains.state(plan.domain) == "paused" and any(_runs_with(plan.domain, name) for name in unplugged(plan)):
        raise ConflictError(
            f"guest {plan.name} is paused, so it cannot let go of {target}",
            f"kvmctl resume {argument(plan.name)}, then detach again",
        )
    return plan


def _unplugs(plan: GuestPlan, change: Change) -> bool:
    if change.action != "remove" or plan.live is None:
        return False
    name = change.field.partition(".")[2]
    if not _runs_with(plan.domain, name):
        return True  # it waited for the next start, so there is nothing to let go of
    return any(is_pluggable(one) for one in _entries(plan.live) if name in _names(one))


def _entries(spec: GuestSpec | None) -> tuple[DiskSpec | NicSpec | PassedSpec, ...]:
    return () if spec is None else (*(spec.disks or ()), *(spec.nics or ()), *(spec.passthrough or ()))


def unplugged(plan: GuestPlan) -> list[str]:
    """What the running guest has to let go of."""
    return [
        change.field.partition(".")[2]
        for change in plan.changes
        if change.action == "remove" and change.how == "live" and plan.live is not None
    ]


def unplug(plan: GuestPlan, timeout: float) -> Applied | None:
    """Ask the running guest for its device and wait; what became of that where it kept it, else None.

    The definition is as it was then, so that a guest that keeps a device has it after its next start too.
    """
    for name in unplugged(plan):
        if error := _unplug(plan, name, timeout):
            lost = tuple(Outcome(change, "not applied", error.message) for change in plan.changes)
            return Applied(plan.name, lost, error)
    return None


def change_media(plan: GuestPlan) -> Applied | None:
    """Change the media of a running guest's drives; what became of the plan where one keeps its own, else None.

    The definition comes after that, so that a drive which the guest has locked has its medium in both.
    """
    for change in plan.changes if plan.live is not None else ():
        make = change_of_medium(change)
        if make is None:
            continue
        try:
            make(plan.domain, plan)
        except KvmctlError as error:
            locked = TimedOutError(
                f"{error.message}: the guest has not opened the drive",
                "let its system unmount and eject the medium, or use --force",
            )
            return Applied(
                plan.name, tuple(Outcome(one, "not applied", locked.message) for one in plan.changes), locked
            )
    return None


def _unplug(plan: GuestPlan, name: str, timeout: float) -> KvmctlError | None:
    found = device.of(tree.read(domains.live_definition(plan.domain)), name)
    if found is None:
        return None
    try:
        devices.detach(plan.domain, device.text(found))
    except KvmctlError as error:
        # QEMU says so where the guest refused, and while it has been asked and has not answered.
        if until(lambda: _runs_with(plan.domain, name), lambda there: not there, timeout):
            return _kept(plan, name, f"the guest did not let go of it within {timeout:g} s ({error.message})")
        return None
    if until(lambda: _runs_with(plan.domain, name), lambda there: not there, timeout):
        return _kept(plan, name, f"the guest did not let go of it within {timeout:g} s")
    return None


def _kept(plan: GuestPlan, name: str, why: str) -> TimedOutError:
    return TimedOutError(
        f"{name} of guest {plan.name} was not taken away: {why}",
        "see that its system has booted and does not use it (umount, swapoff, ip link set down), then detach again; "
        f"kvmctl stop {argument(plan.name)} takes it from a guest that never will",
    )


def only_unplugged(hypervisor: Hypervisor, plan: GuestPlan) -> Applied | None:
    """The result for a device that only the running guest had; None where the definition is to be changed."""
    target = unplugged(plan)
    if not target or device.of(tree.read(plan.definition or ""), target[0]) is not None:
        return None
    outcomes: Sequence[Outcome] = [read_back(hypervisor, plan.domain, plan, change) for change in plan.changes]
    return Applied(plan.name, tuple(outcomes))
