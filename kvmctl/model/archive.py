"""A guest as one file: what its manifest says.

The file is a tar, compressed with zstd, that can be written and read in one go. Its members, in this order:

    manifest.json    this; it lists every part with its size, and so comes before all of them
    the parts        in the order of the manifest
    SHA256SUMS       the sum of every member before it, as sha256sum writes and checks them; without it, the file is cut
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kvmctl.model.errors import UsageError
from kvmctl.model.names import check_name
from kvmctl.model.units import MAX_SIZE

FORMAT = "kvmctl-guest"
VERSION = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
MAX_TEXT = 1 << 20
"""Bytes of a part that is read into memory."""
MAX_PARTS = 512

STATES = ("stopped", "running", "paused")
_NAMES = {
    "definition": "domain.xml",
    "spec": "guest.yaml",
    "nvram": "nvram.fd",
    "kernel": "boot/kernel",
    "initrd": "boot/initrd",
    "tpm": "tpm.state",
    "disk": "disks/{target}.qcow2",
    "backing": "disks/{target}.{level}.qcow2",
    "media": "disks/{target}.raw",
    "seed": "disks/{target}.seed",
    "memory": "memory.save",
}
"""The name of a part of each kind, which is all that it can be."""
IMAGES = ("disk", "media", "seed")
"""The kinds of parts that become volumes, one for each drive; a `backing` is a volume that a disk's is over."""
DEEPEST = 64
"""The images that a disk can be over."""
SMALL = {"definition": MAX_TEXT, "spec": MAX_TEXT, "nvram": 64 << 20, "tpm": MAX_TEXT, "seed": 64 << 20}
"""Bytes that a part of such a kind has at most."""
_TARGET = re.compile(r"[a-z]{3,8}", re.ASCII)
_VOLUME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_HINT = "only what kvmctl export writes can be imported"


@dataclass(frozen=True, slots=True)
class Part:
    """One member of the file. Bytes; `capacity` is what the guest sees of a disk.

    `target` is the drive's name in the domain, `volume` and `pool` what the image was called where it comes from.
    `level` is of a `backing`: 1 is what the disk is over, 2 what that is over.
    """

    kind: str
    size: int
    target: str | None = None
    capacity: int | None = None
    volume: str | None = None
    pool: str | None = None
    level: int | None = None

    @property
    def name(self) -> str:
        """Its name in the file."""
        return _NAMES[self.kind].format(target=self.target, level=self.level)

    @property
    def is_qcow2(self) -> bool:
        """Whether it is an image whose format says what it is over."""
        return self.kind in ("disk", "backing")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in the file. `state` is the guest's when it was exported; `consistency` is a sentence about its disks.

    `created` is when, in ISO 8601.
    """

    guest: str
    uuid: str
    state: str
    consistency: str
    created: str
    writer: str
    parts: tuple[Part, ...]
    autostart: bool = False

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    def of(self, kind: str) -> tuple[Part, ...]:
        """The parts of that kind."""
        return tuple(part for part in self.parts if part.kind == kind)

    def over(self, part: Part) -> Part | None:
        """The part that an image is over, None for one that stands for itself. Its name, less the folder, is what the
        image calls it."""
        level = (part.level or 0) + 1
        found = (one for one in self.of("backing") if (one.target, one.level) == (part.target, level))
        return next(found, None) if part.is_qcow2 else None


def is_volume(name: str) -> bool:
    """Whether an image may be called that."""
    return _VOLUME.fullmatch(name) is not None


def document(manifest: Manifest) -> dict[str, Any]:
    """The manifest with stable keys, as it is written."""
    data = asdict(manifest)
    parts = data.pop("parts")
    named = [{"name": part.name} | row for part, row in zip(manifest.parts, parts, strict=True)]
    return {
        "format": FORMAT,
        "version": VERSION,
        **data,
        "parts": [{key: value for key, value in row.items() if value is not None} for row in named],
    }


def parse(text: bytes) -> Manifest:
    """Read what `document` says. Raises UsageError for anything that it could not have said."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the manifest is no JSON document: {error}", _HINT) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UsageError("the manifest is not one of a guest", _HINT)
    version = found.get("version")
    if version != VERSION or isinstance(version, bool):
        raise UsageError(
            f"the file has version {str(version)[:20]} of the format, and this kvmctl reads version {VERSION}",
            "import it with the kvmctl that wrote it, or a newer one",
        )
    try:
        return _checked(found)
    except ValueError as error:
        raise UsageError(f"the manifest is not usable: {error}", _HINT) from error


def _checked(found: dict[str, Any]) -> Manifest:
    rows, autostart = found.pop("parts", None), found.pop("autostart", False)
    values = _texts(Manifest, {key: value for key, value in found.items() if key not in ("format", "version")})
    check_name(values["guest"])
    if not _UUID.fullmatch(values["uuid"]):
        raise ValueError("its UUID is none")
    if values["state"] not in STATES:
        raise ValueError("its state is none that a guest has")
    if not isinstance(rows, list) or len(rows) > MAX_PARTS:
        raise ValueError(f"it has no list of at most {MAX_PARTS} parts")
    parts = tuple(map(_part, rows))
    targets = [part.target for part in parts if part.kind in IMAGES]
    if len({part.name for part in parts}) < len(parts) or len(set(targets)) < len(targets):
        raise ValueError("a part is listed twice")
    _check_chains(parts)
    if not parts or parts[0].kind != "definition":
        raise ValueError("its first part is not the definition")
    return Manifest(**values, parts=parts, autostart=autostart is True)


def _check_chains(parts: tuple[Part, ...]) -> None:
    disks = {part.target for part in parts if part.kind == "disk"}
    levels = {(part.target, part.level) for part in parts if part.kind == "backing"}
    for target, level in levels:
        if target not in disks or (level != 1 and (target, (level or 0) - 1) not in levels):
            raise ValueError("an image is listed that no disk is over")


def _texts(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {field.name for field in fields(kind)} - {"parts", "autostart"}
    if set(found) != wanted:
        raise ValueError(f"these keys are too few or too many: {', '.join(sorted(set(found) ^ wanted))[:200]}")
    for key, value in found.items():
        if not isinstance(value, str) or len(value) > 400:
            raise ValueError(f"{key} is not a short text")
    return dict(found)


def _part(row: object) -> Part:
    if not isinstance(row, dict):
        raise ValueError("a part is no mapping")
    if not isinstance(row.get("kind"), str) or row["kind"] not in _NAMES:
        raise ValueError(f"there are no parts of kind {str(row.get('kind'))[:40]!r}")
    unknown = set(row) - {field.name for field in fields(Part)} - {"name"}
    if unknown:
        raise ValueError(f"a part has the unknown key {sorted(map(str, unknown))[0][:40]!r}")
    for key, pattern in (("target", _TARGET), ("volume", _VOLUME)):
        value = row.get(key)
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise ValueError(f"{key} {str(value)[:40]!r} of a part is not usable")
    if not isinstance(row.get("pool", ""), str) or len(row.get("pool", "")) > 200:
        raise ValueError("the pool of a part is no name")
    part = Part(**{key: value for key, value in row.items() if key != "name"})
    _check_part(part)
    if row.get("name") != part.name:
        raise ValueError(f"a part of kind {part.kind} is called {str(row.get('name'))[:60]!r}, not {part.name!r}")
    return part


def _check_part(part: Part) -> None:
    for size in (part.size, part.capacity if part.is_qcow2 else 0):
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
            raise ValueError(f"the size of a part of kind {part.kind} is none")
    if part.size > SMALL.get(part.kind, MAX_SIZE):
        raise ValueError(f"a part of kind {part.kind} has {part.size} bytes, more than such a part can have")
    if (part.target is not None) != (part.kind in (*IMAGES, "backing")):
        raise ValueError(f"a part of kind {part.kind} and its drive do not go together")
    level = part.level
    if (level is None) != (part.kind != "backing") or not (
        level is None or (type(level) is int and 1 <= level <= DEEPEST)
    ):
        raise ValueError(f"a part of kind {part.kind} and its level do not go together")


def sums(digests: Mapping[str, str]) -> bytes:
    """SHA-256 sums by member as `sha256sum` writes them."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()
