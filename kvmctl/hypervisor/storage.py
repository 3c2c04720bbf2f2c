"""Pools and volumes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, is_gone, translate
from kvmctl.model.errors import ConflictError, NotFoundError


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that exists. Bytes; `backing` is the path of the image it overlays."""

    path: str
    name: str
    pool: str
    capacity: int
    allocation: int
    format: str | None
    backing: str | None


def pool(hypervisor: Hypervisor, name: str) -> Any:
    """An active pool by name. Raises NotFoundError, ConflictError when it is not active."""
    try:
        found = hypervisor.connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if not is_gone(error):
            raise translate(error, f"look up pool {name}") from error
        known = ", ".join(pool.name() for pool in hypervisor.connection.listAllStoragePools()) or "none"
        raise NotFoundError(
            f"there is no storage pool {name!r} on {hypervisor.uri} (known: {known})",
            f"define one: virsh pool-define-as {name} dir --target /var/lib/libvirt/images",
        ) from error
    with doing(f"read pool {name}"):
        if not found.isActive():
            raise ConflictError(f"storage pool {name!r} is not active", f"start it: virsh pool-start {name}")
    return found


def pool_of_folder(hypervisor: Hypervisor, path: str) -> str | None:
    """The name of the pool whose volumes lie in that folder, None where it is no pool's."""
    try:
        return str(hypervisor.connection.storagePoolLookupByTargetPath(path).name())
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look up the pool of {path}") from error


def folder(storage_pool: Any) -> str:
    """The path that a pool's volumes lie under."""
    from xml.etree import ElementTree

    with doing("read a storage pool"):
        text = storage_pool.XMLDesc(0)
    return ElementTree.fromstring(text).findtext("target/path") or ""  # noqa: S314 - libvirt wrote it


def is_folder(storage_pool: Any) -> bool:
    """Whether the pool's volumes are the files of a folder."""
    from xml.etree import ElementTree

    with doing("read a storage pool"):
        root = ElementTree.fromstring(storage_pool.XMLDesc(0))  # noqa: S314 - libvirt wrote it
    return root.get("type") in ("dir", "fs", "netfs")


def refresh_pool(storage_pool: Any) -> None:
    """Have libvirt see which files have come and gone."""
    with doing("refresh a storage pool"):
        storage_pool.refresh(0)


def lookup(storage_pool: Any, name: str) -> Volume | None:
    """The volume of that name in the pool, or None."""
    try:
        return describe(storage_pool.storageVolLookupByName(name))
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look up volume {name}") from error


def by_path(hypervisor: Hypervisor, path: str) -> Volume | None:
    """The volume at that path in any active pool, or None where no pool knows it."""
    try:
        return describe(hypervisor.connection.storageVolLookupByPath(path))
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look up {path}") from error


def describe(volume: Any) -> Volume:
    """What libvirt says of a volume."""
    from xml.etree import ElementTree

    with doing(f"read volume {volume.name()}"):
        _kind, capacity, allocation = volume.info()
        root = ElementTree.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt wrote it
        pool_name = volume.storagePoolLookupByVolume().name()
    form = root.find("target/format")
    return Volume(
        path=volume.path(),
        name=volume.name(),
        pool=pool_name,
        capacity=capacity,
        allocation=allocation,
        format=None if form is None else form.get("type"),
        backing=root.findtext("backingStore/path"),
    )


def create(storage_pool: Any, name: str, xml: str) -> Volume:
    """Make a volume as its XML says."""
    with doing(f"make volume {name}"):
        return describe(storage_pool.createXML(xml, 0))


def upload(storage_pool: Any, name: str, content: bytes, hypervisor: Hypervisor) -> None:
    """Fill a volume with `content`, which must not be longer than it."""
    with doing(f"fill volume {name}"):
        volume = storage_pool.storageVolLookupByName(name)
        stream = hypervisor.connection.newStream(0)
        volume.upload(stream, 0, len(content), 0)
        position = 0
        while position < len(content):
            position += stream.send(content[position : position + 65536])
        stream.finish()


def delete(hypervisor: Hypervisor, path: str) -> None:
    """Delete the volume at that path."""
    with doing(f"delete volume {path}"):
        hypervisor.connection.storageVolLookupByPath(path).delete(0)


def refresh(hypervisor: Hypervisor) -> None:
    """Have the active pools of folders look at what is in them: an image that libvirt did not make there by way of
    the pool is no volume until then. A pool that cannot is passed over."""
    with doing("list the storage pools"):
        pools = hypervisor.connection.listAllStoragePools(
            libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE
            | libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_DIR
            | libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_FS
            | libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_NETFS
        )
    for one in pools:
        with suppress(libvirt.libvirtError):
            one.refresh(0)


def all_volumes(hypervisor: Hypervisor) -> list[Volume]:
    """Every volume of every active pool; one that vanishes meanwhile is left out."""
    with doing("list the storage pools"):
        pools = [pool for pool in hypervisor.connection.listAllStoragePools() if pool.isActive()]
        volumes = [volume for pool in pools for volume in pool.listAllVolumes()]
    found = []
    for volume in volumes:
        try:
            found.append(describe(volume))
        except NotFoundError:
            continue
    return found
