"""A folder of a guest's backups: what each says of itself.

    DIR/GUEST/20261126-053000-full/         backup.json  SHA256SUMS  domain.xml  nvram.fd  tpm.state
                                            boot/kernel  boot/initrd  disks/vda.qcow2  disks/sda.seed
    DIR/GUEST/20261127-053000-incremental/  the same; its disks hold what changed, over those of the one before

A disk of any of them is whole for every tool that reads qcow2, since it names the one that it is over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from kvmctl.model.errors import ConflictError, UsageError
from kvmctl.model.units import MAX_SIZE

FORMAT = "kvmctl-backup"
VERSION = 1
MANIFEST = "backup.json"
SUMS = "SHA256SUMS"
MAX_MANIFEST = 1 << 20
"""Bytes."""
Kind = Literal["full", "incremental"]
ID = re.compile(r"\d{8}-\d{6}-(full|incremental)", re.ASCII)
_PART = re.compile(
    r"domain\.xml|nvram\.fd|tpm\.state|boot/kernel|boot/initrd|disks/([a-z]{2,8})\.(qcow2|seed)", re.ASCII
)
_SUM = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HINT = "only what kvmctl backup wrote can be used"


@dataclass(frozen=True, slots=True)
class Part:
    """One file. Bytes; `capacity` is what the guest sees of a disk, `target` the disk's name in the domain."""

    name: str
    size: int
    sha256: str
    target: str | None = None
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. `parent` is the id of the one that an incremental is over, `checkpoint` what libvirt calls the
    moment from which the next can be one; `created` is in ISO 8601."""

    id: str
    guest: str
    uuid: str
    kind: Kind
    parent: str | None
    created: str
    checkpoint: str | None
    consistency: str
    writer: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(part.size for part in self.parts)

    @property
    def targets(self) -> tuple[str, ...]:
        """The disks that it holds; a cloud-init seed is none."""
        return tuple(part.target for part in self.parts if part.target and part.capacity is not None)


def text(manifest: Manifest) -> str:
    """The manifest as it is written."""
    return json.dumps({"format": FORMAT, "version": VERSION} | asdict(manifest), indent=1) + "\n"


def parse(content: str) -> Manifest:
    """Read what `text` says. Raises UsageError for anything that it could not have said."""
    try:
        found = json.loads(content)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("it is not one of a backup")
        if found.get("version") != VERSION:
            raise ValueError(f"it has version {str(found.get('version'))[:20]}, and this kvmctl reads {VERSION}")
        return _manifest({key: value for key, value in found.items() if key not in ("format", "version")})
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the manifest is not usable: {error}", _HINT) from error


def _manifest(found: dict[str, Any]) -> Manifest:
    rows = found.pop("parts", None)
    if set(found) | {"parts"} != {field.name for field in fields(Manifest)}:
        raise ValueError("it has too few keys, or too many")
    if not all(isinstance(value, str) or (value is None and key in _MAY_LACK) for key, value in found.items()):
        raise ValueError("a value is not a text")
    if found["kind"] not in get_args(Kind) or not _is_id(found["id"]):
        raise ValueError("its kind or its id is none")
    if (found["parent"] is None) != (found["kind"] == "full") or not (
        found["parent"] is None or _is_id(found["parent"])
    ):
        raise ValueError("its kind and what it is over do not go together")
    if not isinstance(rows, list) or not rows:
        raise ValueError("it has no parts")
    parts = tuple(_part(row) for row in rows)
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("a part is listed twice")
    return Manifest(**found, parts=parts)


_MAY_LACK = ("parent", "checkpoint")


def _is_id(value: str) -> bool:
    return ID.fullmatch(value) is not None


def _part(row: object) -> Part:
    if not isinstance(row, dict) or set(row) != {field.name for field in fields(Part)}:
        raise ValueError("a part has too few keys, or too many")
    match = _PART.fullmatch(row["name"]) if isinstance(row["name"], str) else None
    if match is None:
        raise ValueError("the name of a part is none that a backup has")
    if not (isinstance(row["sha256"], str) and _SUM.fullmatch(row["sha256"])):
        raise ValueError("the sum of a part is none")
    target, is_disk = match[1], match[2] == "qcow2"
    sizes = [row["size"], *([row["capacity"]] if is_disk else [])]
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_SIZE for size in sizes):
        raise ValueError("the size of a part is none")
    if row["target"] != target or (not is_disk and row["capacity"] is not None):
        raise ValueError("a part and its disk do not go together")
    return Part(**row)


def sums(parts: Sequence[Part]) -> str:
    """The sums as sha256sum writes and checks them."""
    return "".join(f"{part.sha256}  {part.name}\n" for part in parts)


def lineage(manifests: Mapping[str, Manifest], id_: str) -> list[Manifest]:
    """What is needed to restore a backup, the full one first. Raises ConflictError where one of them is missing."""
    found: list[Manifest] = []
    next_: str | None = id_
    while next_ is not None:
        one = manifests.get(next_)
        if one is None or one in found:
            raise ConflictError(f"backup {id_} is over {next_}, which is not there", "take a full backup")
        found.insert(0, one)
        next_ = one.parent
    return found
