"""Whether two hosts see the same folder, found out by doing: a file that one of them makes, and the other sees."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, is_gone, said
from kvmctl.model.errors import KvmctlError

_FOLDERS = ("dir", "fs", "netfs")


@dataclass(frozen=True, slots=True)
class FolderPool:
    """An active pool whose volumes are files in a folder."""

    handle: Any
    name: str
    path: str
    available: int


def folder_pools(hypervisor: Hypervisor) -> dict[str, FolderPool]:
    """The active pools of folders, by path."""
    with doing("list the storage pools"):
        handles = hypervisor.connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
        roots = [(handle, ElementTree.fromstring(handle.XMLDesc(0))) for handle in handles]  # noqa: S314 - libvirt's
    found = {}
    for handle, root in roots:
        path = root.findtext("target/path")
        if path and root.get("type") in _FOLDERS:
            room = int(root.findtext("available") or 0)
            found[path.rstrip("/")] = FolderPool(handle, handle.name(), path, room)
    return found


def probe(pool: FolderPool, other: FolderPool | None) -> tuple[bool | None, float | None]:
    """Whether the folder of `pool` is also that of `other`, on another host; and by how many seconds the clock of
    the first is ahead of this machine's. None is what could not be found out.

    For a moment there is an empty file in the folder, whose name begins with `kvmctl-probe-`.
    """
    name = f"kvmctl-probe-{os.urandom(8).hex()}"
    before = time.time()
    try:
        volume = pool.handle.createXML(f"<volume><name>{name}</name><capacity>0</capacity></volume>", 0)
    except libvirt.libvirtError:
        return None, None
    after = time.time()
    with _deleted(volume, other), suppress(libvirt.libvirtError):
        ahead = _ahead(volume.XMLDesc(0), before, after)
        return (None if other is None else _sees(other, name)), ahead
    return None, None


@contextmanager
def _deleted(volume: Any, other: FolderPool | None) -> Iterator[None]:
    """Delete the volume after the block; the other host's pool would go on listing it."""
    try:
        yield
    finally:
        try:
            volume.delete(0)
        except libvirt.libvirtError as error:
            raise KvmctlError(f"cannot delete the empty file {volume.path()}: {said(error)}", "delete it") from error
        if other is not None:
            with suppress(libvirt.libvirtError):
                other.handle.refresh(0)


def _ahead(volume_xml: str, before: float, after: float) -> float | None:
    text = ElementTree.fromstring(volume_xml).findtext("target/timestamps/mtime")  # noqa: S314 - libvirt wrote it
    if not text:
        return None
    made = float(text)
    # A clock that says a time within the call's is right as far as can be told.
    return made - after if made > after else min(0.0, made - before)


def _sees(pool: FolderPool, name: str) -> bool | None:
    """Whether a pool, read anew, has a volume of that name."""
    try:
        pool.handle.refresh(0)
        pool.handle.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        return False if is_gone(error) else None
    return True


def image_at(pool: FolderPool, name: str) -> tuple[int, int] | None:
    """Capacity and allocation of an image of the pool; None where it has none of that name. The pool is read anew only
    where it does not know the image: in a large one that takes long."""
    found = _known(pool, name)
    if found is None:
        with suppress(libvirt.libvirtError):
            pool.handle.refresh(0)
        found = _known(pool, name)
    return found


def backing(pool: FolderPool, name: str) -> str | None:
    """The path of what an image of the pool overlays; None where it is an image of its own."""
    with doing(f"read image {name}"):
        text = pool.handle.storageVolLookupByName(name).XMLDesc(0)
    return ElementTree.fromstring(text).findtext("backingStore/path") or None  # noqa: S314 - libvirt wrote it


def overlays(pool: FolderPool) -> dict[str, list[str]]:
    """The images of the pool that overlay another, by the path of that; one that vanishes meanwhile is left out."""
    found: dict[str, list[str]] = {}
    with doing(f"list the images of pool {pool.name}"):
        volumes = pool.handle.listAllVolumes()
    for volume in volumes:
        with suppress(libvirt.libvirtError):
            root = ElementTree.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt wrote it
            if base := root.findtext("backingStore/path"):
                found.setdefault(base, []).append(volume.name())
    return found


def _known(pool: FolderPool, name: str) -> tuple[int, int] | None:
    try:
        # The file behind a volume is looked at each time; one that is gone is an error.
        _kind, capacity, allocation = pool.handle.storageVolLookupByName(name).info()
    except libvirt.libvirtError:
        return None
    return int(capacity), int(allocation)


def block_sizes(domain: Any, target: str) -> tuple[int, int] | None:
    """Capacity and allocation of a running guest's disk; None where libvirt does not tell."""
    try:
        capacity, allocation, _physical = domain.blockInfo(target, 0)
    except libvirt.libvirtError:
        return None
    return int(capacity), int(allocation)


def delete_image(hypervisor: Hypervisor, path: str) -> None:
    """Delete the image at that path, where a pool of the host has one; one that is gone is fine."""
    folder, _slash, name = path.rpartition("/")
    pool = folder_pools(hypervisor).get(folder)
    if pool is None or image_at(pool, name) is None:
        return
    with doing(f"delete the image {path}"):
        pool.handle.storageVolLookupByName(name).delete(0)
