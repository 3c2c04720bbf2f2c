"""Deleting guests: the definition goes, a disk only when it was asked for and nobody else needs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvmctl.control.lifecycle import Deed
from kvmctl.control.resolve import DEFAULT_POOL
from kvmctl.control.select import Guest
from kvmctl.control.snapshots import existing, lock_of
from kvmctl.host.lock import lock
from kvmctl.hypervisor import domains, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.storage import Volume
from kvmctl.model.errors import ConflictError, KvmctlError
from kvmctl.model.spec import DiskSpec, GuestSpec
from kvmctl.model.wording import argument
from kvmctl.xml.images import images
from kvmctl.xml.parse import parse

_OFF = ("stopped", "crashed")


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one image of a deleted guest. `size` is the bytes it takes, None where unknown."""

    path: str
    size: int | None
    delete: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Removal:
    """A guest that is to be deleted, with the fate of each of its images."""

    guest: Guest
    fates: tuple[Fate, ...]

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.guest[0].name


def plan(hypervisor: Hypervisor, guests: Sequence[Guest], disks: bool) -> list[Removal]:
    """What deleting these guests would do. Only with `disks` does any image but our own seeds go."""
    if disks:
        storage.refresh(hypervisor)  # what overlays what is known only of volumes
    leaving = {sample.name for sample, _domain in guests}
    used = _used_by_others(hypervisor, leaving)
    volumes = {volume.path: volume for volume in storage.all_volumes(hypervisor)}
    removals = []
    for guest in guests:
        spec = parse(domains.definition(guest[1])).spec
        fates = tuple(_fates(spec, disks, used, volumes))
        kept = frozenset(fate.path for fate in fates)
        removals.append(Removal(guest, (*fates, *_below(guest[1], kept, disks, used, volumes))))
    doomed = {fate.path for removal in removals for fate in removal.fates if fate.delete}
    while True:  # what is spared is itself over something
        overlays = {
            volume.backing: volume.path for volume in volumes.values() if volume.backing and volume.path not in doomed
        }
        if not doomed & overlays.keys():
            return removals
        removals = [_spare_bases(removal, overlays) for removal in removals]
        doomed -= overlays.keys()


def _used_by_others(hypervisor: Hypervisor, leaving: set[str]) -> dict[str, str]:
    used: dict[str, str] = {}
    others = [domain for domain in domains.domains(hypervisor) if domain.name() not in leaving]
    for domain, text in domains.definitions(others):
        used |= dict.fromkeys(images(text), domain.name())
    for domain, text in domains.live_definitions(others):
        used |= dict.fromkeys(images(text), domain.name())
    return used


def _fates(spec: GuestSpec, disks: bool, used: dict[str, str], volumes: dict[str, Volume]) -> Iterator[Fate]:
    for disk in spec.disks or ():
        if disk.path:
            volume = volumes.get(disk.path)
            size = volume.allocation if volume else None
            reason = _reason_to_keep(disk, disks, used, volume)
            yield Fate(disk.path, size, not reason, reason)
    if spec.boot.iso:
        yield Fate(spec.boot.iso, None, False, "an ISO image")
    seed = spec.cloud_init.seed if spec.cloud_init else None
    if seed and seed in volumes:
        ours = re.fullmatch(re.escape(spec.name) + r"-seed-[0-9a-f]{12}\.iso", volumes[seed].name)
        ours_alone = ours is not None and volumes[seed].pool == DEFAULT_POOL and seed not in used
        yield Fate(seed, volumes[seed].allocation, ours_alone, "" if ours_alone else "not made by kvmctl")


def _below(
    domain: Any, known: frozenset[str], disks: bool, used: dict[str, str], volumes: dict[str, Volume]
) -> Iterator[Fate]:
    """The images that the guest's own snapshots have left below the ones that it writes to."""
    for one in existing(domain):
        for path in sorted({path for _target, path in (*one.frozen, *one.overlays)} - known):
            volume = volumes.get(path)
            if one.kind == "external" and volume is not None:
                known |= {path}
                reason = _reason_to_keep(DiskSpec(path=path), disks, used, volume)
                yield Fate(path, volume.allocation, not reason, reason)


def _reason_to_keep(disk: DiskSpec, disks: bool, used: dict[str, str], volume: Volume | None) -> str:
    if disk.device == "cdrom":
        return "a CD-ROM image"
    if disk.read_only:
        return "attached read-only"
    if volume is None:
        return "not a volume of an active storage pool"
    user = used.get(volume.path) or used.get(f"{volume.pool}/{volume.name}")
    if user:
        return f"guest {user} uses it"
    return "" if disks else "kept unless --disks is given"


def _spare_bases(removal: Removal, overlays: dict[str, str]) -> Removal:
    fates = tuple(
        Fate(fate.path, fate.size, False, f"{overlays[fate.path]} overlays it")
        if fate.delete and fate.path in overlays
        else fate
        for fate in removal.fates
    )
    return Removal(removal.guest, fates)


def refuse_running(guests: Sequence[Guest]) -> None:
    """Raise ConflictError where any of the guests is not off: asking first, and refusing then, would be a trick."""
    on = [sample.name for sample, _domain in guests if sample.state not in _OFF]
    if on:
        who = f"guest {on[0]} is" if len(on) == 1 else f"guests {', '.join(on)} are"
        raise ConflictError(
            f"{who} running or paused, so nothing was deleted", "kvmctl stop them first, or --force to power them off"
        )


def remove(hypervisor: Hypervisor, removal: Removal, force: bool) -> Deed:
    """Delete one guest. A guest that runs is refused with ConflictError, or powered off with `force`."""
    with lock(lock_of(removal.guest[1])):  # its images may be copied or merged just now
        return _remove(hypervisor, removal, force)


def _remove(hypervisor: Hypervisor, removal: Removal, force: bool) -> Deed:
    sample, domain = removal.guest
    state = domains.state(domain)
    if state not in _OFF:
        if not force:
            raise ConflictError(
                f"guest {sample.name} is {state}",
                f"kvmctl stop {argument(sample.name)} first, or --force to power it off",
            )
        domains.power_off(domain)
    if sample.name in domains.names(hypervisor):  # a transient guest is gone with its power
        domains.undefine(domain)
    gone, failed = [], []
    for fate in removal.fates:
        if fate.delete:
            try:
                storage.delete(hypervisor, fate.path)
                gone.append(fate.path)
            except KvmctlError as error:
                failed.append(error.message)
    if failed:
        raise KvmctlError(
            f"guest {sample.name} is deleted, but " + "; ".join(failed), "virsh vol-delete PATH removes what is left"
        )
    return Deed(sample.name, "changed", "deleted" + (f", with {', '.join(gone)}" if gone else ""))
