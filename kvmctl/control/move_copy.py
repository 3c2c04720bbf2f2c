"""Images that libvirt does not copy, copied to another host by way of this process, and read back there: discs, and
all that guests have that are off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

from kvmctl.control import chains
from kvmctl.control.wait import interrupted
from kvmctl.hypervisor import copying, sharing
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.copying import Piece
from kvmctl.hypervisor.sharing import FolderPool
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError
from kvmctl.model.migration import JobSample, MovedDisk

BLOCK = 65536
"""Bytes that are looked at together, whether any of them is not zero."""
_ZEROES = bytes(BLOCK)

Note = Callable[[tuple[str, ...]], None]
"""Takes down which images at the target are not whole yet, or of no use without the rest."""


class Sum:
    """The sum of an image's content, the same whether its zeroes are written or not."""

    def __init__(self) -> None:
        self._sum = sha256()
        self._held = bytearray()
        self._at = 0

    def add(self, piece: Piece) -> None:
        """Take in what comes next."""
        if isinstance(piece, bytes):
            self._take(piece)
            return
        if self._held:
            fill = min(piece, BLOCK - len(self._held))
            self._take(bytes(fill))
            piece -= fill
        whole = piece // BLOCK * BLOCK
        self._at += whole
        self._take(bytes(piece - whole))

    def _take(self, data: bytes) -> None:
        self._held += data
        whole = len(self._held) // BLOCK * BLOCK
        for begin in range(0, whole, BLOCK):
            self._block(bytes(self._held[begin : begin + BLOCK]))
        del self._held[:whole]

    def _block(self, block: bytes) -> None:
        if block != _ZEROES[: len(block)]:
            self._sum.update(self._at.to_bytes(8, "big") + block)
        self._at += len(block)

    def result(self) -> tuple[int, str]:
        """The length of it all, and the sum. Nothing is added any more."""
        if self._held:
            self._block(bytes(self._held))
            self._held.clear()
        return self._at, self._sum.hexdigest()


class Meter:
    """How far the copying of one guest's images is, and no faster than it may be."""

    def __init__(self, total: int, bandwidth: int | None, show: Callable[[JobSample], None]) -> None:
        self._total, self._bandwidth, self._show = total, bandwidth, show
        self._done, self._begun = 0, time.monotonic()

    def sample(self) -> JobSample:
        """How far it is."""
        spent = time.monotonic() - self._begun
        speed = round(self._done / spent) if spent > 0 else 0
        return JobSample(spent, disk_total=max(self._total, self._done), disk_sent=self._done, speed=speed)

    def through(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Count what passes. Raises KvmctlError once the move is given up."""
        for piece in pieces:
            if isinstance(piece, bytes):
                self._done += len(piece)
                self._show(self.sample())
                if self._bandwidth:
                    interrupted.wait(max(0.0, self._begun + self._done / self._bandwidth - time.monotonic()))
            if interrupted.is_set():
                raise KvmctlError("the move was given up", "kvmctl migrate does it again from the beginning")
            yield piece


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where one image is, and where it is to be."""

    path: str
    here: FolderPool
    there: FolderPool

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class Copier:
    """Copies the images of guests between two hosts. Several guests may be copied at once."""

    def __init__(self, source: Hypervisor, target: Hypervisor, bandwidth: int | None) -> None:
        self.source = source
        self.target = target
        self._bandwidth = bandwidth
        self._bases: set[str] = set()
        self._one = threading.Lock()

    def copy(self, disks: Sequence[MovedDisk], note: Note, show: Callable[[JobSample], None]) -> JobSample:
        """Copy the disks with what they overlay, as it is; an image that others may overlay too is left where the
        target has it, and has to be the same. Raises KvmctlError."""
        bases = [base for disk in disks for base in disk.below if not base.shared]
        # All of it passes here twice: when it is copied, and when it is read back.
        total = 2 * sum(image.allocation or 0 for image in (*bases, *disks))
        meter = Meter(total, self._bandwidth, show)
        made: tuple[str, ...] = ()
        ends = [self._ends(image) for image in (*bases, *disks)]
        before = [copying.stored(one.here, one.name) for one in ends]

        def noted(path: str, whole: bool) -> None:
            nonlocal made
            made = tuple(one for one in made if one != path) if whole else (*made, path)
            note(made)

        for disk in disks:
            for base in reversed(disk.below):
                if not base.shared:
                    self._base(self._ends(base), meter, noted)
            own = self._ends(disk)
            if disk.read_only:
                # A disc may be in other guests as well.
                self._base(own, meter, noted)
                continue
            if disk.exists:
                self._refuse_used(own.path)
                copying.delete(own.there, own.name)
            self._image(own, meter, noted)
        for one, was in zip(ends, before, strict=True):
            # All of them at the end: the guest may have been on for a while.
            found = copying.stored(one.here, one.name)
            if (found.length, found.written) != (was.length, was.written):
                raise ConflictError(f"{one.path} was written to meanwhile", "see who uses it, and try again")
        return meter.sample()

    def making(self, disks: Sequence[MovedDisk], overwrite: bool) -> tuple[str, ...]:
        """Which of these images libvirt will make at the target, asked anew: the target may have them since it was
        looked at, and what it has is not ours to remove. Raises ConflictError where one may not be written over,
        RefusedError where a guest there uses it."""
        pools = sharing.folder_pools(self.target)
        found: list[str] = []
        for disk in disks:
            path = PurePosixPath(str(disk.path))
            pool = pools.get(str(path.parent))
            if pool is None:
                continue
            if sharing.image_at(pool, path.name) is None:
                found.append(str(path))
            elif not overwrite:
                raise ConflictError(
                    f"the target has an image {path} by now", "remove it there, or write over it by --overwrite"
                )
            else:
                self._refuse_used(str(path))
        return tuple(found)

    def _refuse_used(self, path: str) -> None:
        """The guest that moves is not at the target yet, so that any that uses the image is another one."""
        if users := chains.users(self.target).get(path):
            raise RefusedError(
                f"guest {', '.join(sorted(users.values()))} of the target uses {path}, which would be written over",
                "give one of the two an image of another name",
            )

    def _ends(self, disk: MovedDisk) -> _Ends:
        path = str(disk.path)
        folder = str(PurePosixPath(path).parent)
        here, there = (sharing.folder_pools(one).get(folder) for one in (self.source, self.target))
        if here is None or there is None:
            host = self.source if here is None else self.target
            raise NotFoundError(f"{host.uri} has no pool of {folder} any more", "virsh pool-start starts one")
        return _Ends(path, here, there)

    def _base(self, ends: _Ends, meter: Meter, noted: Callable[[str, bool], None]) -> None:
        with self._one:
            if ends.path in self._bases:
                return
            if sharing.image_at(ends.there, ends.name) is None:
                self._image(ends, meter, noted)
                # It is whole, and of use to other guests: it stays, whatever becomes of this one.
                noted(ends.path, True)
            elif self._read(self.source, ends.here, ends, meter) != self._read(self.target, ends.there, ends, meter):
                raise ConflictError(
                    f"the target has another {ends.path}, and the guest would read that",
                    "give one of the two another name; kvmctl export puts all of a disk into one image",
                )
            self._bases.add(ends.path)

    def _image(self, ends: _Ends, meter: Meter, noted: Callable[[str, bool], None]) -> None:
        """Make the image at the target, and read it back."""
        noted(ends.path, False)
        try:
            copying.make(ends.there, ends.name, copying.stored(ends.here, ends.name))
        except KvmctlError:
            # Somebody else's: it is not to be removed.
            noted(ends.path, True)
            raise
        sent = Sum()
        with copying.writing(self.target, ends.there, ends.name) as image:
            for piece in meter.through(copying.pieces(self.source, ends.here, ends.name)):
                sent.add(piece)
                image.put(piece)
        copying.look_again(ends.there)
        if self._read(self.target, ends.there, ends, meter) != sent.result():
            raise KvmctlError(
                f"the copy of {ends.path} reads other than what was sent", "examine the target's storage, and try again"
            )

    def _read(self, hypervisor: Hypervisor, pool: FolderPool, ends: _Ends, meter: Meter) -> tuple[int, str]:
        found = Sum()
        for piece in meter.through(copying.pieces(hypervisor, pool, ends.name)):
            found.add(piece)
        return found.result()
