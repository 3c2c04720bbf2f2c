"""A tar that is written and read in one go, compressed by zstd, with the sum of each member.

Reading takes nothing but plain files, under the names that are expected, in their order: no folder, link, device or
extended header, so that there is nothing in it that a program could be led astray by.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO

from kvmctl.model.errors import KvmctlError, UsageError

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
WINDOW = "128MiB"
"""Memory that decompressing takes at most; zstd's own limit, which what it writes by itself never needs."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PADDING = 1 << 16
"""Zeros that may stand after the end: other programs fill their last record."""
_ZEROS = bytes(CHUNK)
_CUT = "the file is cut off, or damaged: export the guest again, or copy the file again"

Moved = Callable[[int], None]
"""Told the bytes of each piece."""


def nobody(_count: int) -> None:
    """Progress that nobody wants to see."""


class Writer:
    """Writes members one after the other; `digests` are their SHA-256 sums by name."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self.digests: dict[str, str] = {}

    def add(self, name: str, size: int, source: IO[bytes], moved: Moved = nobody) -> None:
        """Write `size` bytes of `source` as a member. Raises KvmctlError where there are fewer."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        info.uname = info.gname = "root"
        digest = hashlib.sha256()
        try:
            # GNU's way of saying a size of 8 GiB or more needs no extended header, and every tar reads it.
            self._sink.write(info.tobuf(tarfile.GNU_FORMAT))
            left = size
            while left:
                chunk = source.read(min(CHUNK, left))
                if not chunk:
                    raise KvmctlError(f"{name} has become shorter while it was written", "try again")
                digest.update(chunk)
                self._sink.write(chunk)
                left -= len(chunk)
                moved(len(chunk))
            self._sink.write(bytes(-size % BLOCK))
        except BrokenPipeError:
            raise  # whoever compresses knows why
        except OSError as error:
            raise KvmctlError(f"cannot read {name}, or write it: {error.strerror}") from error
        self.digests[name] = digest.hexdigest()

    def finish(self) -> None:
        """Write the end."""
        self._sink.write(bytes(2 * BLOCK))


class Reader:
    """Reads members one after the other; `digests` are the SHA-256 sums of those that have been read, by name."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digests: dict[str, str] = {}

    def next(self, name: str) -> int:
        """The size of the next member. Raises UsageError where it is not a plain file of that name."""
        found = self.any(name)
        if found is None:
            raise UsageError(f"the file ends before {name}", _CUT)
        if found[0] != name:
            raise UsageError(
                f"member {found[0][:100]!r} stands where {name} is to be",
                "the file was tampered with, or is no guest's: only what kvmctl export writes can be imported",
            )
        return found[1]

    def any(self, wanted: str = "a file") -> tuple[str, int] | None:
        """Name and size of the next member; None where the end begins. Raises UsageError where it is no plain file."""
        block = self._exactly(BLOCK)
        if not any(block):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise UsageError(f"instead of {wanted} there is no member of a tar: {error}", _CUT) from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.linkname:
            raise UsageError(f"member {info.name[:100]!r} is not a plain file", "nothing else is taken")
        if info.size < 0:
            raise UsageError(f"member {info.name[:100]!r} has no size", _CUT)
        return info.name, info.size

    def pieces(self, name: str, size: int, moved: Moved = nobody) -> Iterator[bytes]:
        """The content of the member whose header has been read; all of it has to be taken."""
        digest, left = hashlib.sha256(), size
        while left:
            chunk = self._read(min(CHUNK, left))
            if not chunk:
                raise UsageError(f"the file ends within {name}", _CUT)
            digest.update(chunk)
            left -= len(chunk)
            moved(len(chunk))
            yield chunk
        self._exactly(-size % BLOCK)
        self.digests[name] = digest.hexdigest()

    def content(self, name: str, most: int) -> bytes:
        """The next member as a whole. Raises UsageError where it has more than `most` bytes."""
        size = self.next(name)
        if size > most:
            raise UsageError(f"member {name} has {size} bytes, more than it can have", "the file was tampered with")
        return b"".join(self.pieces(name, size))

    def end(self) -> None:
        """Read the end. Raises UsageError where anything else stands there."""
        left = _PADDING
        if any(self._exactly(2 * BLOCK)):
            raise UsageError("there is more in the file than its manifest lists", "the file was tampered with")
        while chunk := self._read(BLOCK):
            left -= len(chunk)
            if left < 0 or any(chunk):
                raise UsageError("there is something after the end of the archive", "the file was tampered with")

    def _read(self, count: int) -> bytes:
        try:
            return self._source.read(count)
        except OSError as error:
            raise KvmctlError(f"cannot read the file: {error.strerror}", "copy the file again") from error

    def _exactly(self, count: int) -> bytes:
        data = self._read(count) if count else b""
        if len(data) < count:
            raise UsageError("the file ends too early", _CUT)
        return data


def put(pieces: Iterator[bytes], target: BinaryIO) -> None:
    """Write pieces to a file, with holes for those that are zeros. Raises KvmctlError."""
    try:
        for piece in pieces:
            if piece == _ZEROS:
                target.seek(len(piece), 1)
            else:
                target.write(piece)
        target.truncate(target.tell())
        target.flush()
    except OSError as error:
        raise KvmctlError(f"cannot write {target.name}: {error.strerror}", "make room: df -h") from error


@contextmanager
def compressing(sink: int) -> Iterator[IO[bytes]]:
    """What is written to the stream goes compressed to the file descriptor. Raises KvmctlError."""
    with _zstd(["-3", "-T0", "--check"], subprocess.PIPE, sink) as process:
        assert process.stdin
        with suppress(BrokenPipeError):  # then zstd says why
            yield process.stdin
            process.stdin.close()
        if process.wait() != 0:
            raise KvmctlError(f"cannot write the archive: {_said(process)}", "make room where it goes")


@contextmanager
def decompressing(source: int | IO[bytes], whole: bool = True) -> Iterator[IO[bytes]]:
    """What the file descriptor holds, decompressed; unless the `whole` is wanted, it need not be read to its end.

    Raises UsageError where it cannot be decompressed.
    """
    with _zstd(["-d", f"--memory={WINDOW}"], source, subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield process.stdout
        except UsageError as error:
            # What zstd stumbled over is why there was no more to read.
            if not process.stdout.read(1) and process.wait() > 0:
                raise UsageError(f"the file cannot be decompressed: {_said(process)}", _CUT) from error
            raise
        if whole and (process.stdout.read(1) or process.wait() != 0):
            raise UsageError(f"the file cannot be decompressed: {_said(process)}", _CUT)


@contextmanager
def _zstd(options: list[str], source: int | IO[bytes], sink: int) -> Iterator[subprocess.Popen[bytes]]:
    command = ["zstd", "-q", "-c", *options]
    try:
        process = subprocess.Popen(command, stdin=source, stdout=sink, stderr=subprocess.PIPE, process_group=0)
    except FileNotFoundError as error:
        raise KvmctlError("the program zstd is not installed", "apt install zstd") from error
    try:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # as much at a time as we read and write, where the kernel allows it
                    fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, CHUNK)
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(OSError):  # what was not written is not wanted any more
                    stream.close()


def _said(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr
    return process.stderr.read(2000).decode(errors="replace").strip() or f"zstd ends with {process.returncode}"
