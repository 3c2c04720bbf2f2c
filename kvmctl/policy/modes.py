"""The modes that a guest file names, turned into buses and models: of devices that are there, and of new ones."""

from __future__ import annotations

from dataclasses import replace

from kvmctl.model.defaults import bus_of
from kvmctl.model.errors import UsageError
from kvmctl.model.modes import disk_bus, disk_mode, nic_mode, nic_model
from kvmctl.model.spec import DiskSpec, GuestSpec, NicSpec
from kvmctl.policy.diff import match_disks, match_nics


def resolved(desired: GuestSpec, current: GuestSpec) -> GuestSpec:
    """`desired` without modes. A device that is in the mode which is asked for keeps its bus or model.

    Raises UsageError for a mode that this machine has no hardware for.
    """
    machine = desired.boot.machine or current.boot.machine
    try:
        disks = desired.disks and tuple(
            _disk(disk, now, machine) for disk, now in match_disks(desired.disks, current.disks or ())
        )
        nics = desired.nics and tuple(
            _nic(nic, now, machine) for nic, now in match_nics(desired.nics, current.nics or ())
        )
    except ValueError as error:
        raise UsageError(
            f"guest {desired.name}: {error}", "nothing was changed: choose what this machine has"
        ) from error
    return replace(desired, disks=disks, nics=nics)


def _disk(disk: DiskSpec, now: DiskSpec | None, machine: str | None) -> DiskSpec:
    if now is None:
        return replace(disk, mode=None, bus=bus_of(disk, machine))
    if disk.mode is None or disk.bus is not None or disk_mode(now.bus) == disk.mode:
        return replace(disk, mode=None)
    return replace(disk, mode=None, bus=disk_bus(disk.mode, disk.device or now.device or "disk", machine))


def _nic(nic: NicSpec, now: NicSpec | None, machine: str | None) -> NicSpec:
    if nic.mode is None or nic.model is not None:
        return replace(nic, mode=None)
    kept = now is not None and nic_mode(now.model) == nic.mode
    return replace(nic, mode=None, model=None if kept else nic_model(nic.mode, machine))
