"""From what a file says to what is on this hypervisor: volumes become paths, and what has to be made is
planned, not yet made."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from kvmctl.hypervisor import storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, NotFoundError, UsageError
from kvmctl.model.spec import DiskSpec, GuestSpec
from kvmctl.model.units import format_size

DEFAULT_POOL = "default"
INTENT = "volume"
"""The journal's word for a volume that was made for a guest whose definition does not name it yet."""
_VOLUME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}", re.ASCII)
ImageFormat = Literal["qcow2", "raw"]
_QCOW2_MAGIC = b"QFI\xfb"


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """A volume to be made. Bytes; `base` is the path of the image it overlays; `content` fills it."""

    pool: str
    name: str
    path: str
    capacity: int
    format: str
    base: str | None = None
    base_format: str | None = None
    content: bytes | None = None


def resolve_disks(hypervisor: Hypervisor, spec: GuestSpec) -> tuple[GuestSpec, tuple[VolumePlan, ...]]:
    """The guest with a path for every disk, and the volumes to be made for it.

    Raises NotFoundError, ConflictError or UsageError for the first disk that cannot be had.
    """
    if spec.disks is None:
        return spec, ()
    disks, plans = [], []
    for disk in spec.disks:
        if disk.volume is None:
            disks.append(_with_format(hypervisor, spec.name, disk))
            continue
        path, form, plan = _volume(hypervisor, spec.name, disk)
        disks.append(replace(disk, path=path, format=cast("ImageFormat | None", form)))
        plans += [plan] if plan else []
    return replace(spec, disks=tuple(disks)), tuple(plans)


def _with_format(hypervisor: Hypervisor, guest: str, disk: DiskSpec) -> DiskSpec:
    """An image whose format is not said is what its first bytes say now, and never asked again: once a guest
    runs, it is the guest who writes them."""
    from kvmctl.host.files import first_bytes

    if disk.format or not disk.path or not hypervisor.local:
        return disk
    if Path(disk.path).is_dir():
        raise UsageError(f"guest {guest}: the disk {disk.path} is a folder", "name an image file or a block device")
    if disk.path.startswith("/dev/") or disk.device == "cdrom":
        return replace(disk, format="raw")
    return replace(disk, format="qcow2" if first_bytes(disk.path, 4) == _QCOW2_MAGIC else "raw")


def _volume(hypervisor: Hypervisor, guest: str, disk: DiskSpec) -> tuple[str, str | None, VolumePlan | None]:
    name = disk.volume or ""
    if not _VOLUME.fullmatch(name):
        raise UsageError(f"guest {guest}: {name!r} is not usable as the name of a volume", "name it as in web1.qcow2")
    pool = storage.pool(hypervisor, disk.pool or DEFAULT_POOL)
    existing = storage.lookup(pool, name)
    base = _base(hypervisor, guest, disk)
    if existing is not None:
        if base and existing.backing != base.path:
            raise ConflictError(
                f"guest {guest}: volume {name!r} exists and overlays {existing.backing or 'nothing'}, not {base.path}",
                "choose another volume name, or leave out `base`",
            )
        return existing.path, disk.format or existing.format, None
    capacity = disk.size or (base.capacity if base else 0)
    if not capacity:
        raise UsageError(f"guest {guest}: volume {name!r} does not exist", "say its `size` to have it made")
    if base and capacity < base.capacity:
        raise UsageError(
            f"guest {guest}: volume {name!r} is smaller than its base {base.path}",
            f"say a `size` of {format_size(base.capacity)} or more, or none",
        )
    form = disk.format or "qcow2"
    if base and form != "qcow2":
        raise UsageError(f"guest {guest}: volume {name!r} overlays a base, which only qcow2 can", "leave out `format`")
    path = f"{storage.folder(pool)}/{name}"
    over = (base.path, base.format or "raw") if base else (None, None)
    return path, form, VolumePlan(pool.name(), name, path, capacity, form, *over)


def _base(hypervisor: Hypervisor, guest: str, disk: DiskSpec) -> storage.Volume | None:
    if disk.base is None:
        return None
    if disk.base.startswith("/"):
        found = storage.by_path(hypervisor, disk.base)
        where = "in no active storage pool"
    else:
        found = storage.lookup(storage.pool(hypervisor, disk.pool or DEFAULT_POOL), disk.base)
        where = f"not in pool {disk.pool or DEFAULT_POOL!r}"
    if found is None:
        raise NotFoundError(
            f"guest {guest}: the base image {disk.base!r} is {where}",
            "copy it into the pool's folder and run virsh pool-refresh",
        )
    return found
