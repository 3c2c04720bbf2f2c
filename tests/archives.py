"""Archives of guests as anybody could make them: sound ones, and ones that lead astray."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UUID = "11111111-2222-4333-8444-555555555555"


@dataclass
class Member:
    """One member of a tar."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""

    def write(self, tar: tarfile.TarFile) -> None:
        """Add it."""
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname, info.size = self.kind, self.link, len(self.content)
        tar.addfile(info, io.BytesIO(self.content))


def definition(name: str, uuid: str = UUID, inside: str = "", devices: str = "", kind: str = "qemu") -> str:
    """A small definition with one disk, `vda`."""
    return (
        f"<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type></os>{inside}<devices>"
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/elsewhere/a.qcow2'/>"
        f"<target dev='vda' bus='virtio'/></disk>{devices}</devices></domain>"
    )


def qcow2(folder: Path, *options: str, size: str = "1M") -> bytes:
    """A qcow2 image as qemu-img makes it."""
    path = folder / "made.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True)
    return path.read_bytes()


@dataclass
class Archive:
    """An archive that is sound until somebody changes a part of it."""

    name: str
    disk: bytes
    xml: str = ""
    pool: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        text = (self.xml or definition(self.name)).encode()
        disk = {"name": "disks/vda.qcow2", "kind": "disk", "size": len(self.disk), "target": "vda"}
        disk |= {"capacity": 1 << 20, "volume": f"{self.name}.qcow2"} | ({"pool": self.pool} if self.pool else {})
        self.manifest = {
            "format": "kvmctl-guest",
            "version": 1,
            "guest": self.name,
            "uuid": UUID,
            "state": "stopped",
            "consistency": "the guest was off",
            "created": "2026-01-01T00:00:00+00:00",
            "writer": "a test",
            "autostart": False,
            "parts": [{"name": "domain.xml", "kind": "definition", "size": len(text)}, disk],
        }
        self.members = [Member("domain.xml", text), Member("disks/vda.qcow2", self.disk)]

    def all(self, sums: bytes | None = None) -> list[Member]:
        """Every member, with the manifest and the sums, which are true unless others are given."""
        members = [Member("manifest.json", json.dumps(self.manifest).encode()), *self.members]
        lines = "".join(f"{hashlib.sha256(one.content).hexdigest()}  {one.name}\n" for one in members)
        return [*members, Member("SHA256SUMS", lines.encode() if sums is None else sums)]

    def write(self, path: Path, sums: bytes | None = None, more: Sequence[Member] = ()) -> Path:
        """Write it as a file, with `more` members after the sums."""
        path.write_bytes(compress(pack([*self.all(sums), *more])))
        return path


def pack(members: Sequence[Member]) -> bytes:
    """A tar of these."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            member.write(tar)
    return out.getvalue()


def compress(data: bytes) -> bytes:
    """As zstd does it."""
    return subprocess.run(["zstd", "-q", "-c", "-1"], input=data, capture_output=True, check=True).stdout
