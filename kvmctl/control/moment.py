"""A guest's disks as they are at one moment, put together in a folder: of a guest that is off, runs, or is saved."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.control import nvram
from kvmctl.control.freeze import frozen
from kvmctl.control.meter import Meter, shares
from kvmctl.control.wait import interrupted
from kvmctl.host import qcow2, qemu_img
from kvmctl.host.staging import check_room, staging
from kvmctl.hypervisor import backups, domains, saved, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.storage import Volume
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError
from kvmctl.model.sample import ACTIVE
from kvmctl.model.units import MIB
from kvmctl.model.wording import argument
from kvmctl.xml.carried import Carried, Drive, carried
from kvmctl.xml.snapshot import render_backup
from kvmctl.xml.tree import read

POLL = 0.2
"""Seconds between two looks at a job of the hypervisor."""
SAVED = Path("/var/lib/libvirt/qemu/save")
"""Where the system's libvirt keeps the memory of saved guests."""
FROZEN = "one moment, with the guest's file systems held still by its agent"
CRASH = "one moment of the running guest, as after a power failure: no guest agent answered"
OFF = "the guest was off"
WITH_MEMORY = "the moment at which the memory was saved"


@dataclass(frozen=True, slots=True)
class Image:
    """An image put together at `path`, of a drive. Bytes; `volume` and `pool` as they were called where they lay."""

    drive: Drive
    path: Path
    capacity: int
    volume: str | None
    pool: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """What was put together. `variables` are its firmware's, `pause` how many seconds the guest was off for it.

    `check` raises ConflictError where an image that is read where it lies has been used meanwhile.
    """

    state: str
    consistency: str
    images: tuple[Image, ...]
    variables: bytes | None
    memory: Path | None = None
    pause: float = 0.0
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Source:
    drive: Drive
    path: Path
    volume: Volume | None

    @property
    def form(self) -> str:
        return self.drive.form


@contextmanager
def take(
    hypervisor: Hypervisor, domain: Any, found: Carried, place: Path, with_memory: bool, meter: Meter
) -> Iterator[Moment]:
    """Put the guest's images together in `place`, an empty folder, or beside them where only they can be reached.

    A guest that runs goes on meanwhile, unless its memory is wanted: then it is saved, and resumed as soon as its
    disks are copied, or cannot be. Raises ConflictError where somebody starts or stops it meanwhile.
    """
    state = domains.state(domain)
    sources = [_source(hypervisor, drive) for drive in found.drives]
    if state in ACTIVE or state == "paused":
        _refuse_plugged(domain, found)
        if with_memory:
            yield _saved(domain, state, sources, place, meter)
            return
        with ExitStack() as stack:
            yield _running(hypervisor, domain, state, sources, place, meter, stack)
        return
    if with_memory:
        raise ConflictError(f"guest {domain.name()} is {state}, so it has no memory", "leave out --with-memory")
    if domains.has_saved_state(domain):
        raise ConflictError(
            f"guest {domain.name()} is saved, and its disks alone would be those of a guest cut off",
            f"kvmctl start {argument(domain.name())}, then export it",
        )
    yield _off(domain, sources, place, meter)


def _source(hypervisor: Hypervisor, drive: Drive) -> _Source:
    if drive.path is not None:
        return _Source(drive, Path(drive.path), storage.by_path(hypervisor, drive.path))
    volume = storage.lookup(storage.pool(hypervisor, drive.pool or ""), drive.volume or "")
    if volume is None:
        raise NotFoundError(
            f"there is no volume {drive.volume} in pool {drive.pool}", "virsh vol-list shows what is there"
        )
    return _Source(drive, Path(volume.path), volume)


def _refuse_plugged(domain: Any, found: Carried) -> None:
    now = {(drive.target, drive.path, drive.volume) for drive in carried(domains.live_definition(domain)).drives}
    stored = {(drive.target, drive.path, drive.volume) for drive in found.drives}
    if now != stored:
        names = sorted({drive[0] for drive in now ^ stored})
        raise ConflictError(
            f"drive {', '.join(names)} of guest {domain.name()} is not in its definition as it runs with it",
            "attach or detach it for good, or stop the guest",
        )


def _off(domain: Any, sources: Sequence[_Source], place: Path, meter: Meter) -> Moment:
    before = _stamps(sources)

    def check() -> None:
        if domains.state(domain) in ACTIVE or _stamps(sources) != before:
            raise ConflictError(
                f"guest {domain.name()} was used while its disks were copied", "try again, or export it running"
            )

    images = _convert(sources, place, meter, in_place=True)
    check()
    return Moment("stopped", OFF, images, _variables(domain), check=check)


def _variables(domain: Any) -> bytes | None:
    found = nvram.existing(domains.definition(domain))
    try:
        return None if found is None else Path(found).read_bytes()
    except OSError as error:
        raise KvmctlError(f"cannot read {found}: {error.strerror}") from error


def _stamps(sources: Sequence[_Source]) -> list[int]:
    try:
        return [source.path.stat().st_mtime_ns for source in sources]
    except OSError as error:
        raise NotFoundError(f"cannot look at {error.filename}: {error.strerror}", "the guest's disk is gone") from error


def _convert(sources: Sequence[_Source], place: Path, meter: Meter, in_place: bool = False) -> tuple[Image, ...]:
    """Copy what has to be; with `in_place`, a disk that a copy would make no smaller is taken where it lies."""
    sizes = [_required(source) for source in sources]
    whole = [in_place and _is_compact(source, size) for source, size in zip(sources, sizes, strict=True)]
    copied = sum(size for size, stays in zip(sizes, whole, strict=True) if not stays)
    check_room(place, copied)
    meter.begin("copy", copied)
    images = []
    for source, size, stays in zip(sources, sizes, whole, strict=True):
        target = source.path
        if source.drive.kind == "disk" and not stays:
            target = place / f"{source.drive.target}.qcow2"
            qemu_img.convert(source.path, source.form, target, "qcow2", shares(meter, size))
        elif source.drive.kind != "disk" and source.form != "raw":
            target = place / f"{source.drive.target}.raw"
            qemu_img.convert(source.path, source.form, target, "raw", shares(meter, size))
        images.append(_image(source, target))
    return tuple(images)


def _is_compact(source: _Source, size: int) -> bool:
    """Whether the image is one file that holds little more than the `size` bytes that a copy of it would take."""
    if source.drive.kind != "disk" or source.form != "qcow2" or source.path.stat().st_size > size + (size >> 4) + MIB:
        return False
    try:
        qcow2.check(source.path)
    except KvmctlError:
        return False
    return not qemu_img.image(str(source.path), "qcow2").bitmaps


def _required(source: _Source) -> int:
    if source.drive.kind != "disk" and source.form == "raw":
        return 0
    return qemu_img.required(source.path, source.form, "qcow2" if source.drive.kind == "disk" else "raw")


def _image(source: _Source, path: Path) -> Image:
    capacity = qemu_img.image(str(path), "qcow2").size if source.drive.kind == "disk" else path.stat().st_size
    volume = source.volume
    return Image(source.drive, path, capacity, volume.name if volume else None, volume.pool if volume else None)


def _running(
    hypervisor: Hypervisor,
    domain: Any,
    state: str,
    sources: Sequence[_Source],
    place: Path,
    meter: Meter,
    stack: ExitStack,
) -> Moment:
    disks = [source for source in sources if source.drive.kind == "disk"]
    others = tuple(source.drive.target for source in sources if source.drive.kind != "disk")
    # QEMU's user may not reach where the archive goes, and does reach where the guest's images are.
    near = next((source.path.parent for source in disks if source.path.parent != Path("/dev")), place)
    folder = stack.enter_context(staging(near, "export", 0o711)) if disks else place
    check_room(folder, sum(map(_required, disks)))
    targets = {source.drive.target: str(folder / f"{source.drive.target}.qcow2") for source in disks}
    is_frozen = _back_up(hypervisor, domain, targets, others, meter) if disks else False
    images = [_image(source, Path(targets.get(source.drive.target, source.path))) for source in sources]
    return Moment(state, FROZEN if is_frozen else CRASH, tuple(images), _variables(domain))


def _back_up(
    hypervisor: Hypervisor, domain: Any, targets: Mapping[str, str], others: tuple[str, ...], meter: Meter
) -> bool:
    """Have the disks copied; whether the guest's file systems were held still when that began."""
    is_frozen, ours = False, False
    try:
        with ExitStack() as stack:
            if _has_agent(domain):
                with suppress(KvmctlError):
                    stack.enter_context(frozen(hypervisor, domain))
                    is_frozen = True
            ours = True
            try:
                backups.begin(domain, render_backup(targets, None, others), None)
            except KvmctlError:
                ours = False  # a job that stands in the way is somebody else's
                raise
        _follow(domain, meter)
    except BaseException:
        if ours:
            backups.abort(domain)
        raise
    if (reason := backups.failure(domain)) is not None:
        raise KvmctlError(
            f"the disks of guest {domain.name()} were not copied: {reason}",
            "look at the host's space and at the guest's log",
        )
    return is_frozen


def _has_agent(domain: Any) -> bool:
    root = read(domains.live_definition(domain))
    return any(
        target.get("name") == "org.qemu.guest_agent.0" and target.get("state") == "connected"
        for target in root.iterfind("devices/channel/target")
    )


def _follow(domain: Any, meter: Meter) -> None:
    told, begun = 0, False
    while (now := backups.progress(domain)) is not None:
        done, total = now
        if not begun and total:
            meter.begin("copy", total)
            begun = True
        if begun:
            meter.moved(done - told)
            told = done
        if interrupted.wait(POLL):
            raise KvmctlError("interrupted while the disks were copied")


def _saved(domain: Any, state: str, sources: Sequence[_Source], place: Path, meter: Meter) -> Moment:
    if not SAVED.is_dir():
        raise RefusedError(
            f"{SAVED} is not where this hypervisor saves memory", "export the guest without --with-memory"
        )
    check_room(place, sum(map(_required, sources)))
    begun = time.monotonic()
    meter.begin("save", 0)
    try:
        saved.save(domain)
        memory = _memory(domain, place)
        variables = _variables(domain)
        images = _convert(sources, place, meter)
    finally:
        # Ctrl-C may have come as soon as it was saved. It starts from that, paused where it was.
        if domains.has_saved_state(domain):
            domains.start(domain)
    return Moment(state, WITH_MEMORY, images, variables, memory, time.monotonic() - begun)


def _memory(domain: Any, place: Path) -> Path:
    written, own = SAVED / f"{domain.name()}.save", place / "memory.save"
    if not saved.is_save_of(domain, str(written)):
        raise KvmctlError(
            f"{written} is not the saved memory of guest {domain.name()}", "export it without --with-memory"
        )
    try:
        os.link(written, own)
    except OSError:
        shutil.copyfile(written, own)  # on another file system
    return own
