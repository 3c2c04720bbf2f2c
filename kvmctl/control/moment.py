"""A guest's disks as they are at one moment, put together in a folder: of a guest that is off, runs, or is saved."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvmctl.control import nvram, tpm
from kvmctl.control.freeze import frozen
from kvmctl.control.images import Copy, Image, Source, copy_chains, copy_flat, image_of, required, source_of
from kvmctl.control.meter import Meter
from kvmctl.control.wait import interrupted
from kvmctl.host.staging import check_room, staging
from kvmctl.hypervisor import backups, domains, saved
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError
from kvmctl.model.sample import ACTIVE
from kvmctl.model.wording import argument
from kvmctl.xml.carried import Carried, carried
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
class Moment:
    """What was put together. `variables` are its firmware's, `tpm` is the state of its emulated TPM, `pause` how many
    seconds the guest was off for it.

    `check` raises ConflictError where an image that is read where it lies has been used meanwhile.
    """

    state: str
    consistency: str
    images: tuple[Image, ...]
    variables: bytes | None
    tpm: bytes | None = None
    memory: Path | None = None
    pause: float = 0.0
    check: Callable[[], None] = lambda: None


@contextmanager
def take(
    hypervisor: Hypervisor,
    domain: Any,
    found: Carried,
    place: Path,
    with_memory: bool,
    meter: Meter,
    chain: bool = False,
) -> Iterator[Moment]:
    """Put the guest's images together in `place`, an empty folder, or beside them where only they can be reached.
    With `chain` each image that a disk is over stays one.

    A guest that runs goes on meanwhile, unless its memory is wanted: then it is saved, and resumed as soon as its
    disks are copied, or cannot be. Raises ConflictError where somebody starts or stops it meanwhile, or where it
    runs on and its chain is wanted.
    """
    state = domains.state(domain)
    copy = partial(copy_chains, hypervisor) if chain else copy_flat
    sources = [source_of(hypervisor, drive) for drive in found.drives]
    if state in ACTIVE or state == "paused":
        _refuse_plugged(domain, found)
        if with_memory:
            yield _saved(domain, state, sources, place, meter, copy)
            return
        if chain:
            raise ConflictError(
                f"guest {domain.name()} runs, and QEMU copies the disks of a running guest as one image each",
                "stop it, add --with-memory, or leave out --chain",
            )
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
    yield _off(domain, sources, place, meter, copy)


def folders(found: Carried) -> list[Path]:
    """Where the copies of a running guest's disks may be made, beside where its archive goes."""
    paths = [Path(drive.path).parent for drive in found.drives if drive.path]
    return sorted({path for path in paths if not path.is_relative_to("/dev")})


def _refuse_plugged(domain: Any, found: Carried) -> None:
    now = {(drive.target, drive.path, drive.volume) for drive in carried(domains.live_definition(domain)).drives}
    stored = {(drive.target, drive.path, drive.volume) for drive in found.drives}
    if now != stored:
        names = sorted({drive[0] for drive in now ^ stored})
        raise ConflictError(
            f"drive {', '.join(names)} of guest {domain.name()} is not in its definition as it runs with it",
            "attach or detach it for good, or stop the guest",
        )


def _off(domain: Any, sources: Sequence[Source], place: Path, meter: Meter, copy: Copy) -> Moment:
    before = _stamps(sources)

    def check() -> None:
        if domains.state(domain) in ACTIVE or _stamps(sources) != before:
            raise ConflictError(
                f"guest {domain.name()} was used while its disks were copied", "try again, or export it running"
            )

    images = copy(sources, place, meter, True)
    check()
    return Moment("stopped", OFF, images, _variables(domain), tpm.state(domain), check=check)


def _variables(domain: Any) -> bytes | None:
    found = nvram.existing(domains.definition(domain))
    try:
        return None if found is None else Path(found).read_bytes()
    except OSError as error:
        raise KvmctlError(f"cannot read {found}: {error.strerror}") from error


def _stamps(sources: Sequence[Source]) -> list[int]:
    try:
        return [source.path.stat().st_mtime_ns for source in sources]
    except OSError as error:
        raise NotFoundError(f"cannot look at {error.filename}: {error.strerror}", "the guest's disk is gone") from error


def _running(
    hypervisor: Hypervisor,
    domain: Any,
    state: str,
    sources: Sequence[Source],
    place: Path,
    meter: Meter,
    stack: ExitStack,
) -> Moment:
    disks = [source for source in sources if source.drive.kind == "disk"]
    others = tuple(source.drive.target for source in sources if source.drive.kind != "disk")
    # QEMU's user may not reach where the archive goes, and does reach where the guest's images are.
    near = next((source.path.parent for source in disks if not source.path.is_relative_to("/dev")), place)
    folder = stack.enter_context(staging(near, "export", 0o711)) if disks else place
    check_room(folder, sum(map(required, disks)))
    targets = {source.drive.target: str(folder / f"{source.drive.target}.qcow2") for source in disks}
    is_frozen = _back_up(hypervisor, domain, targets, others, meter) if disks else False
    images = [image_of(source, Path(targets.get(source.drive.target, source.path))) for source in sources]
    return Moment(state, FROZEN if is_frozen else CRASH, tuple(images), _variables(domain), tpm.state(domain))


def _back_up(
    hypervisor: Hypervisor, domain: Any, targets: Mapping[str, str], others: tuple[str, ...], meter: Meter
) -> bool:
    """Have the disks copied; whether the guest's file systems were held still when that began."""
    is_frozen, ours = False, False
    try:
        with ExitStack() as stack:
            if _has_agent(domain) and domains.state(domain) == "running":
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


def _saved(domain: Any, state: str, sources: Sequence[Source], place: Path, meter: Meter, copy: Copy) -> Moment:
    if not SAVED.is_dir():
        raise RefusedError(
            f"{SAVED} is not where this hypervisor saves memory", "export the guest without --with-memory"
        )
    check_room(place, sum(map(required, sources)))
    begun = time.monotonic()
    meter.begin("save", 0)
    try:
        saved.save(domain)
        memory = _memory(domain, place)
        variables, sealed = _variables(domain), tpm.state(domain)
        images = copy(sources, place, meter, False)
    finally:
        # Ctrl-C may have come as soon as it was saved. It starts from that, paused where it was.
        if domains.has_saved_state(domain):
            domains.start(domain)
    return Moment(state, WITH_MEMORY, images, variables, sealed, memory, time.monotonic() - begun)


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
