"""Images read and written through the streams of libvirt's storage: what is unused stays unused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, is_gone, translate
from kvmctl.hypervisor.sharing import FolderPool
from kvmctl.model.errors import NotFoundError

CHUNK = 262120
"""Bytes that one message of libvirt's protocol holds."""
Piece = bytes | int
"""Bytes of an image, or how many follow that were never written and read as zeroes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An image as a file: its `length` in bytes, and when it was last written, as its host tells."""

    length: int
    mode: str
    written: str


def stored(pool: FolderPool, name: str) -> Stored:
    """The image of that name. Raises NotFoundError."""
    volume = _volume(pool, name)
    with doing(f"read image {name}"):
        # Of a file this is its size, however large the disk is that it holds.
        length = int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])
        root = ElementTree.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt wrote it
    mode = root.findtext("target/permissions/mode") or "0600"
    return Stored(length, mode, root.findtext("target/timestamps/mtime") or "")


def make(pool: FolderPool, name: str, like: Stored) -> None:
    """Make a file of the same length that holds nothing. Raises ConflictError where there is one."""
    root = ElementTree.Element("volume")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "capacity").text = str(like.length)
    ElementTree.SubElement(root, "allocation").text = "0"
    target = ElementTree.SubElement(root, "target")
    # As what it is a copy of, it is made of bytes; libvirt sees what they are when it looks at it again.
    ElementTree.SubElement(target, "format", {"type": "raw"})
    ElementTree.SubElement(ElementTree.SubElement(target, "permissions"), "mode").text = like.mode
    with doing(f"make image {name} in pool {pool.name}"):
        pool.handle.createXML(ElementTree.tostring(root, encoding="unicode"), 0)


def delete(pool: FolderPool, name: str) -> None:
    """Delete an image. Raises NotFoundError."""
    volume = _volume(pool, name)
    with doing(f"delete image {name}"):
        volume.delete(0)


def look_again(pool: FolderPool) -> None:
    """Have libvirt see what the pool's images are; one that cannot now is left."""
    with suppress(libvirt.libvirtError):
        pool.handle.refresh(0)


def pieces(hypervisor: Hypervisor, pool: FolderPool, name: str) -> Iterator[Piece]:
    """The content of an image from its beginning to its end."""
    volume = _volume(pool, name)
    with doing(f"read image {name}"):
        stream = hypervisor.connection.newStream(0)
        volume.download(stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
    with _finished(stream, f"read image {name}"):
        while piece := _next(stream, name):
            yield piece


def _next(stream: Any, name: str) -> Piece:
    with doing(f"read image {name}"):
        got = stream.recvFlags(CHUNK, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
        return int(stream.recvHole(0)) if isinstance(got, int) else bytes(got)


class Writing:
    """An image that is being written from its beginning on."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._what = f"write image {name}"

    def put(self, piece: Piece) -> None:
        """Write what comes next."""
        with doing(self._what):
            if isinstance(piece, int):
                self._stream.sendHole(piece, 0)
                return
            sent = 0
            while sent < len(piece):
                sent += self._stream.send(piece[sent:])


@contextmanager
def writing(hypervisor: Hypervisor, pool: FolderPool, name: str) -> Iterator[Writing]:
    """Write an image that holds nothing yet; the host has all of it after the block."""
    volume = _volume(pool, name)
    with doing(f"write image {name}"):
        stream = hypervisor.connection.newStream(0)
        volume.upload(stream, 0, 0, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
    with _finished(stream, f"write image {name}"):
        yield Writing(stream, name)


@contextmanager
def _finished(stream: Any, what: str) -> Iterator[None]:
    """End a stream in good order after the block, or have it given up."""
    try:
        yield
    except BaseException:
        with suppress(libvirt.libvirtError):
            stream.abort()
        raise
    with doing(what):
        stream.finish()


def _volume(pool: FolderPool, name: str) -> Any:
    for again in (False, True):
        if again:
            look_again(pool)
        try:
            return pool.handle.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if not is_gone(error):
                raise translate(error, f"look for image {name}") from error
    raise NotFoundError(f"pool {pool.name} has no image {name}", f"virsh vol-list {pool.name} lists what it has")
