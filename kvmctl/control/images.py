"""The images of a guest, put together as the parts of an archive: each disk as one, or with all that it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvmctl.control.meter import Meter, shares
from kvmctl.host import qcow2, qemu_img
from kvmctl.host.staging import check_room
from kvmctl.hypervisor import storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.storage import Volume
from kvmctl.model.errors import KvmctlError, NotFoundError
from kvmctl.model.units import MIB
from kvmctl.xml.carried import Drive


@dataclass(frozen=True, slots=True)
class Image:
    """An image put together at `path`, of a drive. Bytes; `volume` and `pool` as they were called where they lay.

    `level` is None for what the guest uses, 1 for what that is over, and so on.
    """

    drive: Drive
    path: Path
    capacity: int
    volume: str | None
    pool: str | None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A drive's image where it lies, and the volume that it is, if it is one."""

    drive: Drive
    path: Path
    volume: Volume | None

    @property
    def form(self) -> str:
        """Its format."""
        return self.drive.form


Copy = Callable[[Sequence[Source], Path, Meter, bool], tuple[Image, ...]]
"""Puts images together in a folder; takes what need not be copied where it lies if the last says so."""


def source_of(hypervisor: Hypervisor, drive: Drive) -> Source:
    """Where the image of a drive lies. Raises NotFoundError."""
    if drive.path is not None:
        return Source(drive, Path(drive.path), storage.by_path(hypervisor, drive.path))
    volume = storage.lookup(storage.pool(hypervisor, drive.pool or ""), drive.volume or "")
    if volume is None:
        raise NotFoundError(
            f"there is no volume {drive.volume} in pool {drive.pool}", "virsh vol-list shows what is there"
        )
    return Source(drive, Path(volume.path), volume)


def copy_flat(sources: Sequence[Source], place: Path, meter: Meter, in_place: bool) -> tuple[Image, ...]:
    """Copy what has to be; with `in_place`, a disk that a copy would make no smaller is taken where it lies."""
    sizes = [required(source) for source in sources]
    whole = [in_place and _is_compact(source, size) for source, size in zip(sources, sizes, strict=True)]
    copied = sum(size for size, stays in zip(sizes, whole, strict=True) if not stays)
    check_room(place, copied)
    meter.begin("copy", copied)
    return tuple(
        image_of(source, source.path if stays else _copy(source, place, size, meter))
        for source, size, stays in zip(sources, sizes, whole, strict=True)
    )


def _copy(source: Source, place: Path, size: int, meter: Meter) -> Path:
    """One image with all that it is over, as what the archive has it as."""
    form = "qcow2" if source.drive.kind == "disk" else "raw"
    if form == source.form == "raw":
        return source.path
    target = place / f"{source.drive.target}.{form}"
    qemu_img.convert(source.path, source.form, target, form, shares(meter, size))
    return target


def copy_chains(
    hypervisor: Hypervisor, sources: Sequence[Source], place: Path, meter: Meter, _in_place: bool
) -> tuple[Image, ...]:
    """Copy each image of each disk, over the copy of what it is over, which it names as the file beside it."""
    chains = [qemu_img.chain(str(one.path), one.form) if one.drive.kind == "disk" else [] for one in sources]
    sizes = [
        sum(each.allocation for each in chain) if chain else required(one)
        for one, chain in zip(sources, chains, strict=True)
    ]
    check_room(place, sum(sizes))
    meter.begin("copy", sum(sizes))
    images: list[Image] = []
    for source, chain, size in zip(sources, chains, sizes, strict=True):
        if chain:
            images += _copy_chain(hypervisor, source, chain, place, meter)
        else:
            images.append(image_of(source, _copy(source, place, size, meter)))
    return tuple(images)


def _copy_chain(
    hypervisor: Hypervisor, source: Source, chain: list[qemu_img.Image], place: Path, meter: Meter
) -> list[Image]:
    target, over, made = source.drive.target, "", []
    for level, one in reversed(list(enumerate(chain))):
        path = place / (f"{target}.{level}.qcow2" if level else f"{target}.qcow2")
        qemu_img.convert(one.path, one.format, path, "qcow2", shares(meter, one.allocation), over=over)
        # What a guest's own definition names as a volume is one; what that is over, libvirt may know or not.
        volume = storage.by_path(hypervisor, one.path) if level else source.volume
        made.append(replace(image_of(replace(source, volume=volume), path), level=level or None))
        over = path.name
    return made[::-1]


def _is_compact(source: Source, size: int) -> bool:
    """Whether the image is one file that holds little more than the `size` bytes that a copy of it would take."""
    if source.drive.kind != "disk" or source.form != "qcow2" or source.path.stat().st_size > size + (size >> 4) + MIB:
        return False
    try:
        qcow2.check(source.path)
    except KvmctlError:
        return False
    return not qemu_img.image(str(source.path), "qcow2").bitmaps


def required(source: Source) -> int:
    """Bytes that a copy of it takes at most, with all that it is over; 0 for what is taken where it lies."""
    if source.drive.kind != "disk" and source.form == "raw":
        return 0
    return qemu_img.required(source.path, source.form, "qcow2" if source.drive.kind == "disk" else "raw")


def image_of(source: Source, path: Path) -> Image:
    """The image that is at that path now, which has come of the source."""
    capacity = qemu_img.image(str(path), "qcow2").size if source.drive.kind == "disk" else path.stat().st_size
    volume = source.volume
    return Image(source.drive, path, capacity, volume.name if volume else None, volume.pool if volume else None)
