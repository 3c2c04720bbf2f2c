"""A guest as its owner describes it. Every field is optional: None means "not said", so leave as it is
on an existing guest and take the default on a new one. Memory is bytes, CPU is cores."""

import math
from dataclasses import dataclass
from typing import Literal

Level = Literal["low", "normal", "high"]
CPU_SHARES: dict[str, int] = {"low": 500, "normal": 1000, "high": 2000}
"""Per vCPU, as ESXi and FusionCompute count them."""
MEMORY_SHARES: dict[str, int] = {"low": 5, "normal": 10, "high": 20}
"""Per MiB of `size`, likewise."""
MAX_SHARES = 1_000_000
UNLIMITED = math.inf

Accelerator = Literal["auto", "kvm", "tcg"]
ACCELERATORS: dict[str, Accelerator] = {"kvm": "kvm", "qemu": "tcg"}
"""libvirt's `<domain type=…>`, and kvmctl's word for that accelerator."""
State = Literal["running", "paused", "stopped"]
Mode = Literal["emulated", "paravirtual", "passthrough"]
"""How a guest has a device: as real hardware that QEMU imitates, as one made for guests (virtio), or the host's own."""


@dataclass(frozen=True, slots=True)
class CpuSpec:
    """`limit` and `reservation` are cores; a limit of infinity is none. `shares` is the whole guest's."""

    count: int | None = None
    max: int | None = None
    shares: int | Level | None = None
    limit: float | None = None
    reservation: float | None = None
    pin: str | None = None
    """A cpuset such as `0-3,8` in canonical form; the empty string is no pinning."""
    emulator_pin: str | None = None
    """Likewise, for what QEMU does beside running vCPUs; the empty string leaves that to `pin`."""
    model: str | None = None
    """`host-passthrough`, `host-model`, `maximum`, or a model that libvirt knows by name."""
    fixed: int | None = None
    """vCPUs that a running guest cannot give back: found out when it is looked at, not said in a file."""


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """Bytes, in whole MiB. `size` is what the guest has now, `max` what its balloon can give back up to."""

    size: int | None = None
    max: int | None = None
    reservation: int | None = None
    shares: int | Level | None = None
    sharing: bool | None = None
    """Whether KSM may merge this guest's pages."""
    swap: bool | None = None
    """Whether kvmctl may page this guest out."""
    hugepages: int | None = None
    """Bytes a page; 0 is ordinary pages."""


@dataclass(frozen=True, slots=True)
class IoSpec:
    """The guest's part of disks that several guests want at once."""

    weight: int | None = None
    """Relative, 10 to 1000; 0 is the kernel's default, as of every process."""


@dataclass(frozen=True, slots=True)
class BootSpec:
    """Where the guest starts from. A kernel boots directly; otherwise an ISO, a disk or the network."""

    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    iso: str | None = None
    """Path of an ISO image in a CD-ROM drive that comes first in the boot order."""
    order: tuple[str, ...] | None = None
    """Of `disk`, `cdrom`, `network`."""
    firmware: Literal["bios", "uefi"] | None = None
    machine: str | None = None
    """`q35`, `pc`, or a versioned type such as `pc-q35-7.2`."""


EJECTED = ""
"""As the path of a CD-ROM drive: without a medium. Not said in a file, where a drive may be declared without one."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk. Either `path` (an existing file or block device) or `volume` in `pool`.

    `iops` and `bandwidth` are ceilings per second, of operations and of bytes, of reading and writing together or of
    one of them; a burst is what may be had for `burst_seconds` instead. 0 is no ceiling.
    """

    path: str | None = None
    volume: str | None = None
    pool: str | None = None
    size: int | None = None
    """Bytes of a volume to be made."""
    format: Literal["qcow2", "raw"] | None = None
    base: str | None = None
    """The image a new volume overlays: a volume of the same pool, or an absolute path."""
    bus: Literal["virtio", "scsi", "sata", "ide"] | None = None
    device: Literal["disk", "cdrom"] | None = None
    target: str | None = None
    """The name in the domain, `vda` and so on. Chosen by bus and order where not said."""
    cache: Literal["none", "writeback", "writethrough", "directsync", "unsafe"] | None = None
    read_only: bool | None = None
    mode: Mode | None = None
    """Said instead of `bus`, which comes of it: nothing that has been looked at or filled holds one."""
    iothread: bool | None = None
    """Whether a thread of its own, beside QEMU's main loop, serves the disk."""
    iops: int | None = None
    iops_burst: int | None = None
    read_iops: int | None = None
    read_iops_burst: int | None = None
    write_iops: int | None = None
    write_iops_burst: int | None = None
    bandwidth: int | None = None
    bandwidth_burst: int | None = None
    read_bandwidth: int | None = None
    read_bandwidth_burst: int | None = None
    write_bandwidth: int | None = None
    write_bandwidth_burst: int | None = None
    burst_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class NicSpec:
    """One network interface: on a libvirt `network`, on a host `bridge`, or `user` mode (no host network needed).

    A bandwidth is bytes per second, and what comes `in` to the guest apart from what goes `out`; a burst is bytes
    that may go at the speed of the peak. 0 is no ceiling.
    """

    network: str | None = None
    bridge: str | None = None
    user: bool | None = None
    model: str | None = None
    mac: str | None = None
    """Lower case, with colons. libvirt chooses one where not said."""
    mode: Mode | None = None
    """Said instead of `model`, as for a disk."""
    queues: int | None = None
    """Pairs of queues that as many vCPUs can use at once."""
    bandwidth_in: int | None = None
    bandwidth_in_peak: int | None = None
    bandwidth_in_burst: int | None = None
    bandwidth_out: int | None = None
    bandwidth_out_burst: int | None = None


@dataclass(frozen=True, slots=True)
class PassedSpec:
    """One device of the host that the guest has itself: a PCI function, or an mdev.

    A file may say `vf_of` alone, for any virtual function of that card which is free; a definition always says which
    one the guest has. One with a `mac` is a network function, whose address and VLAN libvirt sets.
    """

    pci: str | None = None
    """The address as the kernel writes it."""
    vf_of: str | None = None
    """The address of the physical function that it is a virtual function of."""
    mdev: str | None = None
    """The UUID, in lower case."""
    mac: str | None = None
    vlan: int | None = None
    """0 is none."""
    spoof_check: bool | None = None
    """Whether the card drops what the guest sends from another MAC address; where not said, as its driver has it."""
    trust: bool | None = None
    """Whether the guest may change its MAC address and receive everything; where not said, as its driver has it."""


@dataclass(frozen=True, slots=True)
class CloudInitSpec:
    """The NoCloud seed of a guest. Paths of key and data files are read when the seed is made."""

    hostname: str | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    """Each either a public key or the absolute path of one."""
    user_data: str | None = None
    """Absolute path of a complete user-data file, instead of hostname, user and keys."""
    network_config: str | None = None
    seed: str | None = None
    """Path of the seed image, and the SHA-256 of what is in it: recorded in the guest, not said in a file."""
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class VncSpec:
    """A VNC display; `listen` is an IP address, `port` 0 lets QEMU choose."""

    enabled: bool = True
    listen: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True, slots=True)
class ConsoleSpec:
    """The serial console, and the file that everything said on it is appended to."""

    enabled: bool = True
    log: str | None = None


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """One guest. Lists are complete where given: a disk or nic that the list lacks is taken off the guest
    (its image is never deleted); what a guest file cannot express is never touched."""

    name: str
    cpu: CpuSpec = CpuSpec()
    memory: MemorySpec = MemorySpec()
    boot: BootSpec = BootSpec()
    io: IoSpec = IoSpec()
    accelerator: Accelerator | None = None
    disks: tuple[DiskSpec, ...] | None = None
    nics: tuple[NicSpec, ...] | None = None
    passthrough: tuple[PassedSpec, ...] | None = None
    cloud_init: CloudInitSpec | None = None
    console: ConsoleSpec | None = None
    vnc: VncSpec | None = None
    agent: bool | None = None
    rng: bool | None = None
    autostart: bool | None = None
    description: str | None = None
    labels: tuple[tuple[str, str], ...] | None = None
    """Sorted by key."""
    rebalance: bool | None = None
    """Whether the tick may move the guest's weight. Only the opt-out is stored: a definition says False or nothing."""
    project: str | None = None
    """The `project:` of the file that declares this guest."""
    state: State | None = None
    """What `apply` brings a new guest to (`running` where not said). An existing guest is only ever
    started or resumed by it, never stopped or paused."""


@dataclass(frozen=True, slots=True)
class GuestFile:
    """What one or more guest files declare."""

    guests: tuple[GuestSpec, ...]
    project: str | None = None


def cpu_shares(shares: int | Level | None, vcpus: int) -> int:
    """The whole guest's CPU shares as a number; a level counts per vCPU, and none is `normal`."""
    return shares if isinstance(shares, int) else CPU_SHARES[shares or "normal"] * vcpus


def memory_shares(shares: int | Level | None, size: int) -> int:
    """The whole guest's memory shares as a number; a level counts per MiB of `size` bytes, and none is `normal`."""
    return shares if isinstance(shares, int) else MEMORY_SHARES[shares or "normal"] * (size >> 20)
