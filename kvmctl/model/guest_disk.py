"""A guest's disks and snapshots, as what is to be copied, frozen or merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["internal", "external"]


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """A disk whose content is the guest's own state: no CD-ROM, nothing read-only. `target` is as in `vda`."""

    target: str
    path: str | None
    """None for a disk on a network, or one that is a volume of a pool by name."""
    format: str
    block_device: bool = False


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What decides how a guest's state can be kept."""

    name: str
    uuid: str
    state: str
    disks: tuple[GuestDisk, ...]
    skipped: tuple[str, ...] = ()
    """Targets of what is left out: CD-ROMs, read-only and empty drives."""
    flash: bool = False
    """Whether its firmware keeps variables in a file (UEFI)."""
    passthrough: bool = False
    agent: bool = False
    """Whether an agent in the guest is connected."""

    @property
    def active(self) -> bool:
        """Whether it has a process, so memory."""
        return self.state not in ("stopped", "crashed")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that libvirt knows. `created` is seconds since the epoch, `state` the guest's then."""

    name: str
    parent: str | None
    current: bool
    created: int
    state: str
    kind: Kind
    memory: bool
    description: str
    overlays: tuple[tuple[str, str], ...] = ()
    """Of an external one: (target, path of the image that the guest writes to since)."""
    frozen: tuple[tuple[str, str], ...] = ()
    """(target, path of the image that holds the state), from the definition kept with it."""
