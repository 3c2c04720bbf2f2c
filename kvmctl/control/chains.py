"""Which image overlays which, and whose they are: nothing that another needs may be written to or deleted."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from kvmctl.host import qemu_img
from kvmctl.hypervisor import domains, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError, RefusedError
from kvmctl.model.spec import DiskSpec, GuestSpec
from kvmctl.xml import identity
from kvmctl.xml.images import images
from kvmctl.xml.snapshot import facts


@dataclass(frozen=True, slots=True)
class Chains:
    """`over` has the images right over each, `users` the guests whose disk each is, by path."""

    over: dict[str, set[str]]
    users: dict[str, set[str]]

    def refuse_shared(self, path: str, own: Iterable[str], guest: str, what: str) -> None:
        """Raise RefusedError where `path` is needed by more than the images `own` and the guest itself."""
        if others := self.over.get(path, set()) - set(own):
            raise RefusedError(
                f"{what}, and {', '.join(sorted(others))} overlays it",
                "linked clones need it as it is: delete them first, or keep it",
            )
        if users := self.users.get(path, set()) - {guest}:
            raise RefusedError(
                f"{what}, and guest {', '.join(sorted(users))} uses it", "give that guest an image of its own first"
            )


def read(hypervisor: Hypervisor) -> Chains:
    """Every chain of this host, as its pools and its guests have it."""
    over: dict[str, set[str]] = {}
    users: dict[str, set[str]] = {}
    storage.refresh(hypervisor)
    for volume in storage.all_volumes(hypervisor):
        if volume.backing:
            over.setdefault(volume.backing, set()).add(volume.path)
    for domain, text in domains.definitions(domains.domains(hypervisor)):
        for path in images(text):
            users.setdefault(path, set()).add(domain.name())
        for disk in facts(text, None, domain.name(), "", "").disks:
            with suppress(KvmctlError):  # an image that is gone, or no file at all, overlays nothing
                found = qemu_img.chain(disk.path, disk.format) if disk.path and Path(disk.path).is_file() else []
                for upper, lower in pairwise(found):
                    over.setdefault(lower.path, set()).add(upper.path)
    return Chains(over, users)


def users(hypervisor: Hypervisor) -> dict[str, dict[str, str]]:
    """Who uses which file, whether it runs with it or is defined with it: by path the guests' names, by UUID."""
    found: dict[str, dict[str, str]] = {}
    handles = domains.domains(hypervisor)
    for domain, text in (*domains.definitions(handles), *domains.live_definitions(handles)):
        for name in {*images(text), identity.read(text).nvram}:
            if name and (path := name if name.startswith("/") else _volume(hypervisor, name)):
                found.setdefault(path, {})[domain.UUIDString()] = domain.name()
    return found


def _volume(hypervisor: Hypervisor, name: str) -> str | None:
    """The path of `POOL/VOLUME`, as far as it can be told."""
    pool, _slash, volume = name.partition("/")
    with suppress(KvmctlError):
        found = storage.lookup(storage.pool(hypervisor, pool), volume)
        return found.path if found else None
    return None


def follow_snapshots(hypervisor: Hypervisor, wanted: GuestSpec, current: GuestSpec) -> GuestSpec:
    """`wanted`, with the image that the guest writes to in place of one that it overlays by now: a guest file names
    the image that its guest began with, and its guest may have snapshots since."""
    if not wanted.disks or not current.disks or not hypervisor.local:
        return wanted
    has = {disk.path for disk in current.disks}
    if all(disk.path in has or not disk.path for disk in wanted.disks):
        return wanted
    above: dict[str, DiskSpec] = {}
    for disk in current.disks:
        if disk.path and disk.format == "qcow2" and disk.device != "cdrom" and Path(disk.path).is_file():
            with suppress(KvmctlError):
                above |= {one.path: disk for one in qemu_img.chain(disk.path, disk.format)[1:]}
    disks = tuple(
        replace(disk, path=above[disk.path].path, format=above[disk.path].format)
        if disk.path and disk.path not in has and disk.path in above
        else disk
        for disk in wanted.disks
    )
    return replace(wanted, disks=disks)
