"""Disk images, measured and converted by qemu-img."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvmctl.host.tarstream import Moved, nobody
from kvmctl.model.errors import ConflictError, KvmctlError

_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")
_STEP = 512
SECONDS = 60
"""For a question about an image."""


def info(path: Path, form: str) -> dict[str, Any]:
    """What qemu-img says of an image of that format, whose backing file it does not look at. Raises KvmctlError."""
    return _ask(["info", "-U", "--output=json", "-f", form, _plain(path)], path)


def required(path: Path, form: str, output: str = "qcow2") -> int:
    """Bytes that the image takes at most once it is converted to `output`. Raises KvmctlError."""
    return int(_ask(["measure", "-U", "--output=json", "-f", form, "-O", output, _plain(path)], path)["required"])


def _plain(path: Path) -> str:
    """The path as qemu-img takes it for a file, whatever is in its name: `nbd:x` would be an address."""
    return f"file:{path}"


def _ask(words: Sequence[str], path: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(["qemu-img", *words], capture_output=True, check=False, timeout=SECONDS)
    except FileNotFoundError as error:
        raise _missing() from error
    except subprocess.TimeoutExpired as error:
        raise KvmctlError(f"qemu-img has not answered about {path} in {SECONDS} s") from error
    if done.returncode != 0:
        raise _failed(f"read {path}", done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def convert(
    source: Path, form: str, target: Path, output: str, size: int, moved: Moved = nobody, sub: str = ""
) -> None:
    """Write the whole of an image of that format, backing files included, to a new one; unused blocks are left out.

    `moved` is told shares of `size` bytes. `sub` are options of the new image. Raises ConflictError where a guest has
    the image open, KvmctlError.
    """
    options = ["-o", sub] if sub else []
    # No lock is passed over: an image that a guest writes to meanwhile would not be that of one moment.
    command = ["qemu-img", "convert", "-p", "-f", form, "-O", output, *options, _plain(source), _plain(target)]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
        )
    except FileNotFoundError as error:
        raise _missing() from error
    with process:
        try:
            _follow(process, size, moved)
        except BaseException:
            process.kill()
            raise
        assert process.stderr
        said = process.stderr.read()
    if process.returncode != 0:
        raise _failed(f"convert {source}", said)


def _follow(process: subprocess.Popen[bytes], size: int, moved: Moved) -> None:
    assert process.stdout
    seen, told = b"", 0
    while data := os.read(process.stdout.fileno(), 4096):
        seen = (seen + data)[-_STEP:]
        if found := _PERCENT.findall(seen):
            now = int(size * float(found[-1]) / 100)
            moved(now - told)
            told = now
    moved(size - told)


def _missing() -> KvmctlError:
    return KvmctlError("the program qemu-img is not installed", "apt install qemu-utils")


def _failed(doing: str, said: bytes) -> KvmctlError:
    text = said.decode(errors="replace").strip().removeprefix("qemu-img: ")
    if '"write" lock' in text or '"consistent read" lock' in text:
        return ConflictError(f"cannot {doing}: another program has it open", "stop what uses it, or try again")
    return KvmctlError(f"cannot {doing}: {text}", "look at it: qemu-img check")
