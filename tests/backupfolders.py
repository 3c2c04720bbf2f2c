"""Folders of backups as anybody could make them: sound ones, until somebody changes a part of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import archives, disks

FULL, NEXT, LAST = "20260101-000000-full", "20260102-000000-incremental", "20260103-000000-incremental"
IDS = (FULL, NEXT, LAST)
SMALL = ("nvram.fd", "tpm.state")


def make(folder: Path, name: str, image: Path) -> Path:
    """Three backups of a guest whose disk was `image`: each has one more of its blocks filled, with 1, 2, 3."""
    home = folder / name
    for index, id_ in enumerate(IDS):
        (home / id_ / "disks").mkdir(parents=True)
        disk = home / id_ / "disks/vda.qcow2"
        over = ["-b", f"../../{IDS[index - 1]}/disks/vda.qcow2", "-F", "qcow2"] if index else []
        size = [] if index else ["4M"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *over, disk, *size], check=True)
        disks.write(disk, index + 1, at=index)
        text = archives.definition(name).replace("/elsewhere/a.qcow2", str(image))
        (home / id_ / "domain.xml").write_text(text)
        write(home, id_, parent=IDS[index - 1] if index else None, guest=name)
    return home


def write(home: Path, id_: str, edit: Callable[[dict[str, Any]], Any] = lambda _found: None, **more: Any) -> None:
    """The manifest of one, as its files are now; `edit` changes it before it is written."""
    path = home / id_ / "backup.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    names = ("disks/vda.qcow2", "domain.xml", *(name for name in SMALL if (home / id_ / name).exists()))
    parts = [_part(home / id_, name) for name in names]
    plain = {"format": "kvmctl-backup", "version": 1, "id": id_, "uuid": archives.UUID, "parent": None}
    plain |= {"kind": id_.rpartition("-")[2], "created": "2026-01-01T00:00:00+00:00", "checkpoint": None}
    plain |= {"consistency": "it is off", "writer": "a test"}
    made = plain | found | {"parts": parts} | more
    edit(made)
    path.write_text(json.dumps(made))


def _part(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    content = path.read_bytes()
    is_disk = name.endswith(".qcow2")
    return {
        "name": name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "target": "vda" if is_disk else None,
        "capacity": (4 << 20) if is_disk else None,
    }


def rebase(path: Path, backing: str, form: str = "qcow2") -> None:
    """Have an image name another backing file."""
    subprocess.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", form, path], check=True)


def link(path: Path, to: Path) -> None:
    """Put a link where a file is."""
    path.unlink()
    path.symlink_to(to)
