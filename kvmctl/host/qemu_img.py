"""Disk images, by QEMU's own tool. An image that a guest has open is locked by QEMU, and so is refused here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError

if TYPE_CHECKING:
    import subprocess

_PROGRAM = "qemu-img"
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_ANSWER = 60.0
"""Seconds for a question about an image."""
MOST_IMAGES = 64
"""Images in a chain beyond which something else than snapshots made it."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image. Bytes; `backing` is an absolute path, `allocation` what it takes of the disk."""

    path: str
    format: str
    size: int
    allocation: int
    backing: str | None
    backing_format: str | None
    snapshots: tuple[str, ...] = ()
    """Names of the snapshots within it."""
    bitmaps: tuple[str, ...] = ()
    """Names of the accounts of what was written that QEMU keeps in it."""
    compat: str | None = None
    """The version of qcow2: `0.10` can hold no bitmaps, `1.1` can."""


def chain(path: str, form: str) -> list[Image]:
    """The image of that format and those that it overlays, from the top. Raises NotFoundError, KvmctlError."""
    found: list[Image] = []
    next_: str | None = path
    while next_ is not None:
        if len(found) >= MOST_IMAGES or next_ in {one.path for one in found}:
            raise KvmctlError(f"the images below {path} have no end", f"qemu-img info -U --backing-chain {path}")
        found.append(image(next_, form))
        # As libvirt has it: what an overlay does not call anything else is raw.
        next_, form = found[-1].backing, found[-1].backing_format or "raw"
    return found


def image(path: str, form: str) -> Image:
    """One image, whether a guest has it open or not. Raises NotFoundError, KvmctlError.

    The format is never guessed: the guest itself writes what would be guessed from, on a raw disk.
    """
    data = info(path, form)
    backing = data.get("full-backing-filename") or data.get("backing-filename")
    return Image(
        path=path,
        format=str(data["format"]),
        size=int(data["virtual-size"]),
        allocation=int(data.get("actual-size", 0)),
        backing=str(backing).removeprefix("file:") if backing else None,
        backing_format=data.get("backing-filename-format"),
        snapshots=tuple(str(one["name"]) for one in data.get("snapshots", ())),
        bitmaps=tuple(str(one["name"]) for one in _specific(data).get("bitmaps", ())),
        compat=_specific(data).get("compat"),
    )


def info(path: str | Path, form: str) -> dict[str, Any]:
    """What the tool itself says of an image, whose backing file it does not look at. Raises as `image`."""
    found: dict[str, Any] = _read(_run("info", "-U", "-f", form, "--output=json", _plain(path), seconds=_ANSWER))
    return found


def required(path: str | Path, form: str, output: str = "qcow2") -> int:
    """Bytes that the image takes at most once it is converted to `output`. Raises NotFoundError, KvmctlError."""
    words = ("measure", "-U", "-f", form, "-O", output, "--output=json", _plain(path))
    return int(_read(_run(*words, seconds=_ANSWER))["required"])


def _plain(path: str | Path) -> str:
    """The path as the tool takes it for a file, whatever is in its name: `nbd:host` would be an address."""
    return f"file:{path}"


def _specific(data: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = data.get("format-specific", {}).get("data", {})
    return found


def remove_bitmap(path: str, name: str) -> None:
    """Drop a bitmap of an image that no guest has open."""
    _run("bitmap", "-f", "qcow2", "--remove", path, name)


def create_overlay(path: str, base: str, base_format: str, relative: bool = False, there: bool = False) -> None:
    """Make an empty qcow2 image over another; nothing is replaced, but for a file that is `there` and holds nothing.
    Raises ConflictError, KvmctlError."""
    if os.path.lexists(path) and not (there and os.lstat(path).st_size == 0):
        raise ConflictError(f"{path} exists already", "move it away, or choose another name")
    named = os.path.relpath(base, Path(path).parent) if relative else base
    _run("create", "-q", "-f", "qcow2", "-b", named, "-F", base_format, path)


def is_untouched(overlay: str) -> bool:
    """Whether nothing was ever written to an overlay, so that it reads as its base does."""
    extents = _read(_run("map", "-U", "-f", "qcow2", "--output=json", _plain(overlay)))
    return all(one["depth"] > 0 or not one.get("present", True) for one in extents)


def commit(overlay: str, form: str) -> None:
    """Write what an overlay holds into its base; the overlay stays as it is. Can be done again."""
    _run("commit", "-q", "-d", "-f", form, overlay)


def rebase_unchecked(path: str, base: str, base_format: str) -> None:
    """Name another base, which has to read as the old one did; `base` may be relative to the image's folder."""
    _run("rebase", "-q", "-u", "-f", "qcow2", "-b", base, "-F", base_format, path)


def convert(
    source: str | Path,
    form: str,
    path: str | Path,
    out_format: str,
    progress: Callable[[float], None] = lambda _done: None,
    options: str = "",
    over: str = "",
) -> None:
    """Copy an image with everything below it into one; unused blocks are left out. `progress` gets 0.0 to 1.0,
    `options` are those of the new format. Where it is to be `over` a qcow2 image, named as from its own folder, which
    reads as what the source is over, it is the source alone that is copied.

    A file that is there is replaced. Raises ConflictError where a guest has the image open, since what it writes
    meanwhile would not be of one moment; KvmctlError. What was written stays.
    """
    more = [*(("-o", options) if options else ()), *(("-B", over, "-F", "qcow2") if over else ())]
    _run("convert", "-p", "-f", form, "-O", out_format, *more, _plain(source), _plain(path), progress=progress)


def _read(text: str) -> Any:
    import json

    return json.loads(text)


def _run(*arguments: str, progress: Callable[[float], None] | None = None, seconds: float | None = None) -> str:
    import subprocess  # every plan of a guest loads this module, and few need this

    # The tool ends with us, however we end: else it would go on writing a file that nobody knows of.
    command = ["setpriv", "--pdeathsig", "KILL", _PROGRAM, *arguments]
    environment = os.environ | {"LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            process_group=0,  # Ctrl-C is for us, and we end it
        )
    except OSError as error:
        raise NotFoundError(
            f"cannot run {command[0]}: {error.strerror}", "install util-linux and qemu-utils"
        ) from error
    try:
        if progress is not None:
            _follow(process, progress)
        out, err = process.communicate(timeout=seconds)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise KvmctlError(f"qemu-img has not answered about {arguments[-1]} in {seconds:.0f} s") from error
        raise
    if process.returncode:
        raise _failed(arguments, process.returncode, err.decode(errors="replace"))
    return out.decode(errors="replace")


def _follow(process: subprocess.Popen[bytes], progress: Callable[[float], None]) -> None:
    assert process.stdout is not None
    while piece := os.read(process.stdout.fileno(), 4096):
        if found := _PERCENT.findall(piece):
            progress(float(found[-1]) / 100)


def _failed(arguments: Sequence[str], code: int, said: str) -> KvmctlError:
    last = said.strip().splitlines()[-1].removeprefix(f"{_PROGRAM}: ") if said.strip() else f"exit code {code}"
    text = f"qemu-img {arguments[0]} {arguments[-1].removeprefix('file:')} failed: {last}"
    if code == 127 or "failed to execute" in said:
        return NotFoundError("there is no qemu-img on this host", "apt install qemu-utils")
    if "lock" in said:
        return ConflictError(text, "a guest or another program has the image open: stop it first")
    if "No space left" in said:
        return KvmctlError(text, "make room in the folder of that file, and try again")
    if "No such file" in said:
        return NotFoundError(text, "look at the images of the guest: kvmctl show")
    return KvmctlError(text, "look at the image: qemu-img check")


def sync(path: str) -> None:
    """Wait until a file, or a folder, is on the disk."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
