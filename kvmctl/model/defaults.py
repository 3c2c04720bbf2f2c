"""What a new guest gets where its owner says nothing. An existing guest keeps what it has instead."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from kvmctl.model import throttle
from kvmctl.model.errors import UsageError
from kvmctl.model.modes import Bus, disk_bus, nic_model
from kvmctl.model.passed import in_order
from kvmctl.model.platform import Platform, machine_family
from kvmctl.model.rules import check
from kvmctl.model.spec import (
    UNLIMITED,
    BootSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestSpec,
    IoSpec,
    MemorySpec,
    NicSpec,
    VncSpec,
)
from kvmctl.model.units import GIB

MEMORY_SIZE = GIB
"""Of a guest that says neither `memory.size` nor `memory.max`: enough for a server distribution to install."""
NETWORK = "default"
"""libvirt's own NAT network, for a nic that says none."""
POOL = "default"
"""The storage pool of a volume that says none."""
_HINT = "nothing was done: correct this in the guest file"
TARGET_PREFIXES: dict[str, str] = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}


def fill(spec: GuestSpec, platform: Platform) -> GuestSpec:
    """`spec` with a default wherever it says nothing; only what has no default (a MAC address) is left open.

    A guest that says nothing of disks or nics has none. Raises UsageError where the platform cannot do what
    is said, or where a default contradicts it.
    """
    try:
        full = _filled(spec, platform)
    except ValueError as error:
        raise UsageError(f"guest {spec.name}: {error}", _HINT) from error
    # That a disk has a volume as well as the path which came of it is no fault here.
    faults = [f"guest {spec.name}: {key}: {text}" for key, text in check(full) if not key.endswith(".volume")]
    if faults:
        raise UsageError("\n".join(faults), _HINT)
    return full


def _filled(spec: GuestSpec, platform: Platform) -> GuestSpec:
    boot = _boot(spec, platform)
    return replace(
        spec,
        cpu=_cpu(spec.cpu, platform),
        memory=_memory(spec.memory),
        boot=boot,
        io=IoSpec(spec.io.weight or 0),
        accelerator=platform.accelerator,
        disks=fill_disks(spec.disks or (), boot.machine, iothread=True),
        passthrough=in_order(replace(device, vlan=device.vlan or None) for device in spec.passthrough or ()),
        nics=tuple(fill_nic(nic, boot.machine, spec.cpu.max or spec.cpu.count or 1) for nic in spec.nics or ()),
        console=_console(spec.console),
        vnc=_vnc(spec.vnc, platform),
        agent=spec.agent is not False,
        rng=platform.rng is not False if spec.rng is None else spec.rng,
        autostart=bool(spec.autostart),
        rebalance=False if spec.rebalance is False else None,
        description=spec.description or None,
        labels=tuple(sorted(spec.labels or ())),
        project=spec.project or None,
        state=spec.state or "running",
    )


def _console(console: ConsoleSpec | None) -> ConsoleSpec:
    if console is None:
        return ConsoleSpec()
    return replace(console, log=console.log or None) if console.enabled else ConsoleSpec(enabled=False)


def _vnc(vnc: VncSpec | None, platform: Platform) -> VncSpec:
    if vnc is None or not vnc.enabled:
        return VncSpec(enabled=False)
    if platform.graphics is not None and "vnc" not in platform.graphics:
        raise ValueError("this hypervisor's QEMU is built without VNC")
    return vnc


def _cpu(cpu: CpuSpec, platform: Platform) -> CpuSpec:
    count = cpu.count or 1
    most = cpu.max or count
    if cpu.model is not None:
        platform.check_cpu_model(cpu.model)
    if platform.vcpus_max is not None and most > platform.vcpus_max:
        raise ValueError(f"a guest can have at most {platform.vcpus_max} vCPUs here, not {most}")
    return CpuSpec(
        count=count,
        max=most,
        shares="normal" if cpu.shares is None else cpu.shares,
        limit=UNLIMITED if cpu.limit is None else cpu.limit,
        reservation=cpu.reservation or 0.0,
        pin=cpu.pin or "",
        emulator_pin=cpu.emulator_pin or "",
        model=cpu.model or platform.default_cpu_model,
    )


def _memory(memory: MemorySpec) -> MemorySpec:
    size = memory.size or memory.max or MEMORY_SIZE
    ordinary = not memory.hugepages
    return MemorySpec(
        size=size,
        max=memory.max or size,
        reservation=memory.reservation or 0,
        shares="normal" if memory.shares is None else memory.shares,
        # Huge pages neither merge nor swap.
        sharing=ordinary if memory.sharing is None else memory.sharing,
        swap=ordinary if memory.swap is None else memory.swap,
        hugepages=memory.hugepages or 0,
    )


def _boot(spec: GuestSpec, platform: Platform) -> BootSpec:
    boot = spec.boot
    if boot.firmware:
        platform.check_firmware(boot.firmware)
    return BootSpec(
        kernel=boot.kernel or None,
        initrd=boot.initrd or None,
        cmdline=boot.cmdline or None,
        iso=boot.iso or None,
        order=boot.order or _order(spec),
        firmware=boot.firmware or platform.default_firmware,
        machine=platform.canonical_machine(boot.machine) if boot.machine else platform.default_machine,
    )


def _order(spec: GuestSpec) -> tuple[str, ...]:
    """An ISO first; the network only where there is nothing else to start from."""
    if spec.boot.iso:
        return ("cdrom", "disk")
    kinds = {disk.device or "disk" for disk in spec.disks or ()}
    if "disk" in kinds or spec.boot.kernel:
        return ("disk",)
    if "cdrom" in kinds:
        return ("cdrom",)
    return ("network",) if spec.nics else ("disk",)


def fill_disks(
    disks: Iterable[DiskSpec], machine: str | None, taken: Collection[str] = (), iothread: bool = False
) -> tuple[DiskSpec, ...]:
    """The disks with their defaults and a target each: the first of its bus that is neither said nor `taken`.

    `iothread` is whether one on virtio that does not say it is served by a thread of its own. Raises ValueError for
    a mode that this machine has no bus for.
    """
    given = tuple(disks)
    used = {*taken, *(disk.target for disk in given if disk.target)}
    filled = []
    for disk in given:
        filled.append(_fill_disk(disk, machine, used, iothread))
        used.add(filled[-1].target or "")
    return tuple(filled)


def bus_of(disk: DiskSpec, machine: str | None) -> Bus:
    """The bus of a new disk: what is said, or what comes of its mode, its target or its kind. Raises ValueError."""
    device = disk.device or "disk"
    told = disk_bus(disk.mode, device, machine) if disk.mode else _bus(disk.target, device, machine)
    return disk.bus or told


def _fill_disk(disk: DiskSpec, machine: str | None, taken: Collection[str], iothread: bool) -> DiskSpec:
    device = disk.device or "disk"
    bus = bus_of(disk, machine)
    ceilings = {name: getattr(disk, name) or None for name in (*throttle.DISK, throttle.SECONDS)}
    if disk.burst_seconds == 1:
        ceilings[throttle.SECONDS] = None
    threaded = iothread if disk.iothread is None else disk.iothread
    disk = replace(disk, mode=None, iothread=threaded if bus == "virtio" else None, **ceilings)
    return replace(
        disk,
        pool=(disk.pool or POOL) if disk.volume else disk.pool,
        device=device,
        bus=bus,
        format=disk.format or _format(disk, device),
        target=disk.target or free_target(bus, taken),
        read_only=device == "cdrom" or bool(disk.read_only),
    )


def _bus(target: str | None, device: str, machine: str | None) -> Bus:
    """What the target tells, as libvirt reads it, or else what suits the device."""
    usual: Bus = "virtio" if device == "disk" else cdrom_bus(machine)
    if target is None or target.startswith(TARGET_PREFIXES[usual]):
        return usual
    told: dict[str, Bus] = {"vd": "virtio", "sd": "scsi", "hd": "ide"}
    return told.get(target[:2], usual)


def _format(disk: DiskSpec, device: str) -> Literal["qcow2", "raw"] | None:
    """By the name alone; who can look into the image says `format` before."""
    if disk.path is None and disk.volume is None:
        return None
    if device == "cdrom":
        return "raw"
    return "qcow2" if disk.path is None or disk.path.endswith(".qcow2") else "raw"


def cdrom_bus(machine: str | None) -> Bus:
    """The bus of a CD-ROM drive that says none: what every firmware of that machine can start from."""
    buses: dict[str, Bus] = {"q35": "sata", "pc": "ide", "": "ide"}
    return buses.get(machine_family(machine), "scsi")


def free_target(bus: str, taken: Collection[str]) -> str:
    """The first name on that bus that is not taken."""
    prefix = TARGET_PREFIXES[bus]
    number = 0
    while f"{prefix}{_letters(number)}" in taken:
        number += 1
    return f"{prefix}{_letters(number)}"


def _letters(number: int) -> str:
    """0 is a, 25 z, 26 aa: as Linux names disks."""
    text = ""
    while number >= 0:
        text = chr(ord("a") + number % 26) + text
        number = number // 26 - 1
    return text


MOST_QUEUES = 8
"""Queue pairs that a nic has by itself: more than eight vCPUs seldom wait for one nic, and each pair costs memory."""


def fill_nic(nic: NicSpec, machine: str | None, vcpus: int) -> NicSpec:
    """The nic of a guest of so many vCPUs, with its defaults; libvirt chooses the MAC address.

    Raises ValueError for a mode that this machine has no model for.
    """
    network = nic.network if nic.network or nic.bridge or nic.user else NETWORK
    model = nic.model or (nic_model(nic.mode, machine) if nic.mode else "virtio")
    queues = (nic.queues or min(vcpus, MOST_QUEUES)) if model.startswith("virtio") and not nic.user else None
    ceilings = {name: getattr(nic, name) or None for name in throttle.NIC}
    nic = replace(nic, mode=None, queues=queues, **ceilings)
    return replace(nic, network=network, user=nic.user or None, model=model)


@dataclass(frozen=True, slots=True)
class Drives:
    """The disks of a new guest, and the drives that its ISO and its seed are in."""

    disks: tuple[DiskSpec, ...]
    iso: DiskSpec | None
    seed: DiskSpec | None

    @property
    def all(self) -> tuple[DiskSpec, ...]:
        """In the order of their targets on each bus."""
        return (*self.disks, *(drive for drive in (self.iso, self.seed) if drive))


def drives(spec: GuestSpec) -> Drives:
    """What a filled `spec` needs drives for."""
    disks = spec.disks or ()
    iso = cdrom(spec.boot.iso, spec.boot.machine, (*disks,)) if spec.boot.iso else None
    seed_path = spec.cloud_init.seed if spec.cloud_init else None
    before = (*disks, *((iso,) if iso else ()))
    return Drives(disks, iso, fill_disks((seed_disk(seed_path),), None, _taken(before))[0] if seed_path else None)


def seed_disk(path: str) -> DiskSpec:
    """The drive of a cloud-init seed. A virtio disk, since the kernels of cloud images have no driver for the
    controllers of CD-ROM drives."""
    return DiskSpec(path=path, format="raw", bus="virtio", read_only=True, iothread=False)


def cdrom(path: str, machine: str | None, others: Iterable[DiskSpec]) -> DiskSpec:
    """A CD-ROM drive with the image `path`, beside `others`."""
    return fill_disks((DiskSpec(path=path, device="cdrom"),), machine, _taken(others))[0]


def _taken(disks: Iterable[DiskSpec]) -> list[str]:
    return [disk.target for disk in disks if disk.target]
