"""What has to hold between the fields of one guest. A field that is not said is never at fault."""

from collections.abc import Callable, Iterator

from kvmctl.model.modes import disk_bus, disk_mode, nic_mode, nic_model
from kvmctl.model.spec import DiskSpec, GuestSpec, NicSpec, PassedSpec
from kvmctl.model.units import format_cores, format_size

Fault = tuple[str, str]
"""The dotted key that is at fault (a disk's is `disks.0.target`), and a sentence."""


def check(spec: GuestSpec, complete: bool = True) -> list[Fault]:
    """Every contradiction in `spec`, in the order of a guest file.

    A spec that is not `complete` says only what is to change on a guest: nothing is missing from it.
    """
    boot = _boot(spec, complete)
    return [*_cpu(spec), *_memory(spec), *boot, *_disks(spec), *_nics(spec), *_passed(spec), *_cloud_init(spec)]


def _cpu(spec: GuestSpec) -> Iterator[Fault]:
    cpu = spec.cpu
    if cpu.count is not None and cpu.max is not None and cpu.max < cpu.count:
        yield "cpu.max", f"a maximum of {cpu.max} vCPUs is less than the {cpu.count} of cpu.count"
    if cpu.reservation is None:
        return
    reserved = format_cores(cpu.reservation)
    if cpu.limit is not None and cpu.reservation > cpu.limit:
        yield "cpu.reservation", f"a reservation of {reserved} cores is above the limit of {format_cores(cpu.limit)}"
    if cpu.count is not None and cpu.reservation > cpu.count:
        yield "cpu.reservation", f"a reservation of {reserved} cores is more than {cpu.count} vCPUs can use"


def _memory(spec: GuestSpec) -> Iterator[Fault]:
    memory = spec.memory
    size = None if memory.size is None else f"the {format_size(memory.size)} of memory.size"
    if memory.size is not None and memory.max is not None and memory.max < memory.size:
        yield "memory.max", f"a maximum of {format_size(memory.max)} is less than {size}"
    if memory.size is not None and memory.reservation is not None and memory.reservation > memory.size:
        yield "memory.reservation", f"a reservation of {format_size(memory.reservation)} is more than {size}"
    if memory.hugepages and memory.sharing:
        yield "memory.sharing", "huge pages cannot be merged: leave out memory.hugepages or set memory.sharing to false"
    if memory.hugepages and memory.swap:
        yield "memory.swap", "huge pages cannot be swapped: leave out memory.hugepages or set memory.swap to false"


def _boot(spec: GuestSpec, complete: bool) -> Iterator[Fault]:
    boot = spec.boot
    if boot.kernel is not None:
        if boot.iso is not None:
            yield "boot.iso", "a guest starts either from boot.kernel or from boot.iso, not from both"
    elif complete:
        for key, value in (("initrd", boot.initrd), ("cmdline", boot.cmdline)):
            if value is not None:
                yield f"boot.{key}", "it has an effect only together with boot.kernel"


def _disks(spec: GuestSpec) -> Iterator[Fault]:
    targets: dict[str, int] = {}
    images: dict[tuple[str, str], int] = {}
    for index, disk in enumerate(spec.disks or ()):
        key = f"disks.{index}"
        for part, message in (*_disk_source(disk), *_disk_bus(disk, spec.boot.machine), *_disk_ceilings(disk)):
            yield f"{key}.{part}" if part else key, message
        if disk.target is not None and targets.setdefault(disk.target, index) != index:
            yield f"{key}.target", f"the target {disk.target} is that of disk {targets[disk.target] + 1} already"
        image = ("", disk.path) if disk.path else (disk.pool or "", disk.volume or "")
        if image[1] and images.setdefault(image, index) != index:
            part = "path" if disk.path else "volume"
            yield f"{key}.{part}", f"the image {image[1]} is that of disk {images[image] + 1} already"


def _disk_source(disk: DiskSpec) -> Iterator[Fault]:
    if disk.path is None and disk.volume is None and disk.device != "cdrom":
        yield "", "a disk needs a path (an existing file or block device) or a volume; only a cdrom may be empty"
        return
    if disk.path is not None and disk.volume is not None:
        yield "volume", "a disk has either a path or a volume, not both"
    if disk.volume is None:
        for part, value in (("pool", disk.pool), ("size", disk.size), ("base", disk.base)):
            if value is not None:
                yield part, "it has a meaning only together with volume"
        if disk.format is not None and disk.path is None:
            yield "format", "an empty drive has no format"
    if disk.base is not None and disk.format == "raw":
        yield "format", "a volume over a base image has to be qcow2"


def _disk_bus(disk: DiskSpec, machine: str | None) -> Iterator[Fault]:
    if disk.bus == "ide" and machine is not None and "q35" in machine:
        yield "bus", f"the machine type {machine} has no ide: use sata, or the machine type pc"
    if disk.bus == "virtio" and disk.device == "cdrom":
        yield "bus", "a cdrom cannot be on virtio: use sata or scsi"
    if disk.bus in ("ide", "sata") and disk.device != "cdrom" and disk.read_only:
        yield "read-only", f"QEMU has no read-only disk on {disk.bus}: use virtio or scsi"
    if disk.mode is not None and disk.bus is not None and disk.mode != disk_mode(disk.bus):
        yield "mode", f"a disk on {disk.bus} is {disk_mode(disk.bus)}, not {disk.mode}: say either the mode or the bus"
    elif disk.mode is not None and (why := _impossible(disk_bus, disk.mode, disk.device or "disk", machine or "q35")):
        yield "mode", why
    # Where neither bus nor mode is said, the target tells: see `defaults.bus_of`.
    other = disk.bus != "virtio" if disk.bus else not disk.mode and (disk.target or "").startswith(("sd", "hd"))
    if disk.iothread and (other or disk.mode == "emulated" or disk.device == "cdrom"):
        yield "iothread", "only a disk on virtio has a thread of its own"


def _impossible(choose: Callable[..., object], *said: object) -> str:
    """Why no hardware comes of a mode; empty where some does."""
    try:
        choose(*said)
    except ValueError as error:
        return str(error)
    return ""


def _disk_ceilings(disk: DiskSpec) -> Iterator[Fault]:
    bursts = []
    for what in ("iops", "bandwidth"):
        for way in ("read", "write"):
            if getattr(disk, what) and getattr(disk, f"{way}_{what}"):
                yield f"{way}-{what}", f"say either {what}, for reading and writing together, or one for each"
        for name in (what, f"read_{what}", f"write_{what}"):
            rate, burst = getattr(disk, name), getattr(disk, f"{name}_burst")
            key = name.replace("_", "-")
            if burst and not rate:
                yield f"{key}-burst", f"it is for a while beyond {key}, which is not limited: say {key} as well"
            elif burst and burst < rate:
                yield f"{key}-burst", f"it is less than {key}, and a burst is more"
            bursts += [burst] if burst else []
    if disk.burst_seconds is not None and not bursts:
        yield "burst-seconds", "it has a meaning only together with a burst"


def _nics(spec: GuestSpec) -> Iterator[Fault]:
    addresses: dict[str, int] = {}
    for index, nic in enumerate(spec.nics or ()):
        if sum(map(bool, (nic.network, nic.bridge, nic.user))) != 1:
            yield f"nics.{index}", "a nic has exactly one of network, bridge and user"
        for part, message in (*_nic_model(nic, spec.boot.machine), *_nic_ceilings(nic)):
            yield f"nics.{index}.{part}", message
        if nic.mac is not None and addresses.setdefault(nic.mac, index) != index:
            yield f"nics.{index}.mac", f"the MAC address {nic.mac} is that of nic {addresses[nic.mac] + 1} already"


def _nic_model(nic: NicSpec, machine: str | None) -> Iterator[Fault]:
    if nic.mode is not None and nic.model is not None and nic.mode != nic_mode(nic.model):
        yield "mode", f"a nic {nic.model} is {nic_mode(nic.model)}, not {nic.mode}: say either the mode or the model"
    elif nic.mode is not None and (why := _impossible(nic_model, nic.mode, machine or "q35")):
        yield "mode", why
    if (nic.queues or 1) > 1:
        if not (nic.model or "virtio").startswith("virtio") or nic.mode == "emulated":
            yield "queues", "only a virtio nic has more queues than one"
        if nic.user:
            yield "queues", "QEMU's own network has one queue: use a network or a bridge"


def _nic_ceilings(nic: NicSpec) -> Iterator[Fault]:
    for way in ("in", "out"):
        average, peak = getattr(nic, f"bandwidth_{way}"), getattr(nic, f"bandwidth_{way}_peak", None)
        for part, value in (("peak", peak), ("burst", getattr(nic, f"bandwidth_{way}_burst"))):
            if value and not average:
                yield f"bandwidth.{way}-{part}", f"it goes beyond bandwidth.{way}, which is not limited: say that too"
        if peak and average and peak < average:
            yield f"bandwidth.{way}-peak", f"it is less than bandwidth.{way}, and a peak is more"
        if nic.user and average:
            yield f"bandwidth.{way}", "QEMU's own network has no limit: use a network or a bridge"


def _passed(spec: GuestSpec) -> Iterator[Fault]:
    named: dict[str, int] = {}
    addresses = {nic.mac: "a nic" for nic in spec.nics or () if nic.mac}
    for index, device in enumerate(spec.passthrough or ()):
        key = f"passthrough.{index}"
        for part, message in _passed_source(device):
            yield f"{key}.{part}" if part else key, message
        for part, name in (("pci", device.pci), ("mdev", device.mdev)):
            if name is not None and named.setdefault(name, index) != index:
                yield f"{key}.{part}", f"{name} is device {named[name] + 1} of the guest already"
        cards = {other.vf_of for other in spec.passthrough or () if other is not device}
        if device.pci is not None and device.pci in cards:
            yield f"{key}.pci", "a card goes as a whole or function by function, not both"
        if device.mac is not None and addresses.setdefault(device.mac, key) != key:
            yield f"{key}.mac", f"the MAC address {device.mac} is that of another nic of the guest already"


def _passed_source(device: PassedSpec) -> Iterator[Fault]:
    if device.mdev is None and device.pci is None and device.vf_of is None:
        yield "", "a device of the host needs pci (its address), vf-of (the card that has functions) or mdev (a UUID)"
    elif device.mdev is not None:
        for part, value in (("pci", device.pci), ("vf-of", device.vf_of), ("mac", device.mac), ("vlan", device.vlan),
                            ("spoof-check", device.spoof_check), ("trust", device.trust)):  # fmt: skip
            if value is not None:
                yield part, "an mdev has none: leave it out"
    elif device.pci is not None and device.pci == device.vf_of:
        yield "vf-of", "a function is not the card that it is a function of: leave out pci, and a free one is taken"


def _cloud_init(spec: GuestSpec) -> Iterator[Fault]:
    seed = spec.cloud_init
    if seed is None or seed.user_data is None:
        return
    for key, value in (("hostname", seed.hostname), ("user", seed.user), ("ssh-keys", seed.ssh_keys)):
        if value:
            yield f"cloud-init.{key}", f"user-data is the complete seed: put the {key} in there"
