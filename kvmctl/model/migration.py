"""Moving a guest from one host to another: what is wished, what is known before, what is found, what happened.

Bytes, seconds and cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from kvmctl.model.hostpolicy import HostPolicy
from kvmctl.model.promise import Promise
from kvmctl.model.sample import ACTIVE

Severity = Literal["obstacle", "warning"]
Side = Literal["source", "target", "both"]
SAFE_CACHES = ("none", "directsync")
"""Cache modes with which nothing of a disk stays in the memory of the host that the guest leaves."""


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """How guests are to move."""

    offline: bool = False
    """Also guests that are off: their definitions, and with `copy_storage` their disks."""
    direct: bool = False
    """By way of this process instead of from daemon to daemon."""
    copy_storage: bool = False
    overwrite: bool = False
    """Write over images of the target that bear the names of copied ones."""
    assume_shared: bool = False
    force: bool = False
    """Break promises on the target knowingly."""
    bandwidth: int | None = None
    """Bytes a second."""
    connections: int | None = None
    """Over how many each guest is sent."""
    auto_converge: bool = False
    post_copy: bool = False
    tls: bool = False
    max_downtime: float | None = None
    """Seconds; None is the hypervisor's own, 0.3."""

    def of(self, state: str) -> MigrationOptions:
        """How a guest in that state is to move: one that runs does so live."""
        return replace(self, offline=self.offline and state not in ACTIVE)


@dataclass(frozen=True, slots=True)
class MovedDisk:
    """One disk of a guest, as both sides know it. None is what cannot be told from here."""

    target: str
    """`vda` and so on."""
    path: str | None
    kind: str
    """`file`, `block`, `volume`, `network`."""
    form: str = "raw"
    cache: str | None = None
    read_only: bool = False
    shareable: bool = False
    backing: bool = False
    """Whether the image is an overlay of another one."""
    capacity: int | None = None
    allocation: int | None = None
    shared: bool | None = None
    exists: bool | None = None
    """Whether the target has an image of that path."""
    needed_by: tuple[str, ...] = ()
    """What else at the target needs what has that path there, in words: other guests, images over it."""
    pool: str | None = None
    """The target's pool that holds the image's folder."""
    room: int | None = None
    """What is free in that pool."""
    held: bool = True
    """Whether a pool of the source holds the image's folder."""
    differs: bool = False
    """Whether the target's image of that path cannot be the same."""
    below: tuple[MovedDisk, ...] = ()
    """Of a guest that is off, the images that this one overlays, the next one first."""

    @property
    def copied(self) -> bool:
        """Whether a migration with storage copies it: libvirt leaves out what nobody writes to, or several do."""
        return bool(self.path) and not self.read_only and not self.shareable and self.kind != "network"


@dataclass(frozen=True, slots=True)
class MovedGuest:
    """What of a guest matters to whether it can move."""

    name: str
    uuid: str
    state: str
    persistent: bool
    virt_type: str
    arch: str
    machine: str
    cpu_mode: str | None
    memory: int
    """What it has now."""
    promise: Promise
    disks: tuple[MovedDisk, ...] = ()
    networks: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    """Bridges and devices of the host that its NICs are on."""
    host_devices: tuple[str, ...] = ()
    immovable: tuple[str, ...] = ()
    """Other devices that QEMU cannot move, in words."""
    files: tuple[str, ...] = ()
    """What else its definition names of the host's files: kernel, firmware."""
    uefi: bool = False
    nvram: bool = False
    tpm: bool = False
    snapshots: int = 0
    saved: bool = False
    """Whether libvirt has its memory in a file, to go on from at its next start."""
    job: str | None = None
    """What libvirt is doing with it."""
    has_run: bool = True
    """Whether its vCPUs have run since it was started here, or arrived."""


@dataclass(frozen=True, slots=True)
class TargetHost:
    """What the target says of itself, and of this guest. None is what it does not say."""

    uri: str
    same_host: bool
    versions: tuple[str, str]
    """libvirt's and the hypervisor's."""
    source_versions: tuple[str, str]
    machines: tuple[str, ...] | None
    """Of the guest's architecture and accelerator; None where it has none of them."""
    firmwares: tuple[str, ...] | None
    """Of `bios` and `uefi`, those that its libvirt finds by itself."""
    cpu: str | None
    """Why its processor or emulator cannot be the guest's, empty where it can."""
    networks: Mapping[str, bool]
    """Whether each is active."""
    interfaces: frozenset[str] | None
    namesake: str | None
    """The UUID of its guest of that name."""
    same_uuid: str | None
    """The name of its guest of that UUID."""
    running: Mapping[str, Promise]
    cores: int
    memory: int
    available: int | None
    policy: HostPolicy
    known_policy: bool
    """Whether that is what its owner has written, rather than the default."""
    missing_files: tuple[str, ...] = ()
    """Files of the guest's that its pools say are not there."""
    unseen_files: tuple[str, ...] = ()
    """Files of the guest's that no pool of it holds."""
    reachable_by: str | None = None
    """Why the source's daemon cannot reach it by this URI, empty where nothing speaks against it."""
    clock_ahead: float | None = None
    source_tls: str | None = None
    """Why the source cannot encrypt what it sends, empty where it can."""
    tls: str | None = None
    """Why it cannot encrypt what it is sent."""
    arriving: Mapping[str, MovedDisk] = field(default_factory=dict)
    """Images that guests before this one bring along, by path."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands in the way of a move, or that its owner should know."""

    guest: str
    severity: Severity
    what: str
    side: Side
    text: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class JobSample:
    """How far libvirt's job of moving a guest is."""

    elapsed: float
    setup: float = 0.0
    downtime: float | None = None
    memory_total: int = 0
    memory_sent: int = 0
    memory_left: int = 0
    disk_total: int = 0
    disk_sent: int = 0
    speed: int = 0
    dirty_rate: int = 0
    rounds: int = 0
    throttled: int = 0
    """Per cent by which auto-converge slows the vCPUs."""
    post_copy: bool = False

    @property
    def done(self) -> float:
        """The part that is sent, from 0 to 1: memory may have to be sent more than once."""
        total = self.memory_total + self.disk_total
        left = self.memory_left + max(0, self.disk_total - self.disk_sent)
        return max(0.0, min(1.0, 1 - left / total)) if total else 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a move is expected to go."""

    seconds: float
    downtime: float
    sent: int
    rounds: int
    converges: bool
    memory: int
    dirty_rate: int | None
    bandwidth: int
    source: str
    """Where the bandwidth is from."""
    throttled: int = 0
    """Per cent by which the guest has to be slowed down."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What one host has of a guest. `defined` is whether it outlives its running."""

    active: bool
    state: str
    defined: bool
    moving_in: bool = False
    """Whether it is a guest that has not arrived yet."""
