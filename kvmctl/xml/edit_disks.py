"""The disks and CD-ROM drives of an existing definition. Those that a guest file cannot say are never touched."""

from __future__ import annotations

from dataclasses import replace

from lxml.etree import _Element

from kvmctl.model import throttle
from kvmctl.model.defaults import POOL, TARGET_PREFIXES, fill_disks, free_target, seed_disk
from kvmctl.model.errors import UsageError
from kvmctl.model.spec import EJECTED, CloudInitSpec, DiskSpec, GuestSpec
from kvmctl.xml import devices, dom
from kvmctl.xml.metadata import Metadata
from kvmctl.xml.parse import is_iso_drive, is_seed_drive
from kvmctl.xml.render import iotune

_Present = list[tuple[_Element, DiskSpec]]


def edit(root: _Element, desired: GuestSpec, now: GuestSpec, said: Metadata) -> Metadata:
    """Make the disks, the ISO and the seed what `desired` says.

    Returns `said` with the drives that it has to tell of. Raises UsageError where a disk asks for a target that
    another has.
    """
    if desired.boot.iso is not None and (desired.boot.iso or None) != now.boot.iso:
        said = _iso(root, desired.boot.iso, desired, said)
    if desired.cloud_init is not None:
        said = _seed(root, desired.cloud_init, desired, said)
    if desired.disks is not None:
        _disks(root, desired.disks, now, said)
    return said


def _present(root: _Element) -> _Present:
    """Every drive that a guest file can say."""
    nodes = root.findall("devices/disk")
    return [(node, disk) for node in nodes if isinstance(disk := devices.disk(dom.readable(node)), DiskSpec)]


def _targets(root: _Element) -> set[str]:
    return {node.get("dev", "") for node in root.iterfind("devices/disk/target")}


def _iso(root: _Element, path: str, desired: GuestSpec, said: Metadata) -> Metadata:
    """Put the ISO into its drive, or into one that has it or is empty and that no disk in the file is, or into a
    new one; without a path take its drive out."""
    present = _present(root)
    drive = next((pair for pair in present if is_iso_drive(pair[1], said)), None)
    if not path:
        if drive:
            dom.remove(drive[0])
        return replace(said, iso=None)
    if drive is None:
        free = [pair for pair in present if pair[1].device == "cdrom" and not _is_listed(pair[1], desired)]
        drive = next((pair for pair in free if pair[1].path == path), None)
        drive = drive or next((pair for pair in free if _is_empty(pair[1])), None)
    if drive is None:
        return replace(said, iso=_add_drive(root, DiskSpec(path=path, device="cdrom"), desired))
    if drive[1].path != path:
        _set_path(drive[0], path)
    return replace(said, iso=drive[1].target)


def _is_listed(disk: DiskSpec, desired: GuestSpec) -> bool:
    return any(_is_same(wanted, disk) for wanted in desired.disks or ())


def _add_drive(root: _Element, wanted: DiskSpec, desired: GuestSpec) -> str | None:
    spoken_for = {disk.target for disk in desired.disks or () if disk.target}
    machine = root.find("os/type")
    name = None if machine is None else machine.get("machine")
    return _add(root, fill_disks((wanted,), name, _targets(root) | spoken_for)[0])


def _has_iothread(root: _Element) -> bool:
    return root.find("iothreads") is not None


def _seed(root: _Element, wanted: CloudInitSpec, desired: GuestSpec, said: Metadata) -> Metadata:
    before = said.cloud_init or CloudInitSpec()
    wanted = replace(wanted, seed=wanted.seed or before.seed, digest=wanted.digest or before.digest)
    drives = {disk.path: node for node, disk in _present(root) if disk.path}
    if wanted.seed and wanted.seed not in drives:
        if before.seed in drives:
            _set_path(drives[before.seed], wanted.seed)
        else:
            _add_drive(root, seed_disk(wanted.seed), desired)
    return replace(said, cloud_init=wanted)


def _disks(root: _Element, wanted: tuple[DiskSpec, ...], now: GuestSpec, said: Metadata) -> None:
    left = [pair for pair in _present(root) if not is_iso_drive(pair[1], said) and not is_seed_drive(pair[1], said)]
    kept: list[tuple[_Element, DiskSpec, DiskSpec]] = []
    added: list[DiskSpec] = []
    for disk in wanted:
        pair = next((pair for pair in left if _is_same(disk, pair[1])), None)
        if pair is None:
            added.append(disk)
        else:
            left.remove(pair)
            kept.append((*pair, disk))
    for node, _ in left:
        dom.remove(node)
    for node, present, disk in kept:
        _change(root, node, present, disk)
    taken = _targets(root)
    for disk in added:
        if disk.target in taken:
            raise UsageError(
                f"guest {now.name}: a disk cannot be {disk.target}, which is a drive that its file does not list",
                "leave out `target`, or choose another",
            )
    for disk in fill_disks(added, now.boot.machine, taken, _has_iothread(root)):
        _add(root, disk)


def _is_same(wanted: DiskSpec, present: DiskSpec) -> bool:
    """Whether a wanted disk is one that is there: by target where it says one, else by its image."""
    if wanted.target:
        return wanted.target == present.target
    if wanted.path and present.path:
        return wanted.path == present.path
    if wanted.volume or present.volume:
        return _volume(wanted) == _volume(present)
    return _is_empty(wanted) and _is_empty(present)


def _volume(disk: DiskSpec) -> tuple[str, str] | None:
    return (disk.pool or POOL, disk.volume) if disk.volume else None


def _is_empty(disk: DiskSpec) -> bool:
    return not disk.path and not disk.volume


def _change(root: _Element, node: _Element, now: DiskSpec, wanted: DiskSpec) -> None:
    if wanted.device and wanted.device != now.device:
        node.set("device", wanted.device)
    if _volume(now) is None or _volume(now) != _volume(wanted):
        _change_image(node, now, wanted)
    driver = {"type": (wanted.format, now.format), "cache": (wanted.cache, now.cache)}
    for attribute, (new, old) in driver.items():
        if new is not None and new != old:
            dom.child(node, "driver").set(attribute, new)
    if wanted.iothread is not None and wanted.iothread != bool(now.iothread):
        dom.mark(dom.child(node, "driver"), "iothread", "1" if wanted.iothread else None)
        _ensure_iothread(root, wanted)
    _set_ceilings(node, now, wanted)
    if wanted.read_only is not None and wanted.read_only != now.read_only:
        dom.drop(node, "readonly")
        if wanted.read_only:
            dom.child(node, "readonly")
    if wanted.bus and wanted.bus != now.bus:
        _move(root, node, now, wanted.bus)


def _set_ceilings(node: _Element, now: DiskSpec, wanted: DiskSpec) -> None:
    """The `<iotune>` with what is said of it; what a guest file cannot say of it stays."""
    wanted = throttle.completed(wanted, now)
    names = (*throttle.DISK, throttle.SECONDS)
    due = replace(now, **{name: value for name in names if (value := getattr(wanted, name)) is not None})
    old, new = throttle.disk_parameters(now), throttle.disk_parameters(due)
    if old == new:
        return
    parent = dom.child(node, "iotune")
    for name, value in new.items():
        if value != old[name]:
            dom.say(parent, name, str(value) if value else None)
    dom.prune(node, "iotune")


def _change_image(node: _Element, now: DiskSpec, wanted: DiskSpec) -> None:
    if wanted.path:
        if wanted.path != now.path:
            _set_path(node, wanted.path)
    elif wanted.path == EJECTED:
        dom.drop(node, "source", "backingStore")
    elif wanted.volume:
        node.set("type", "volume")
        _set_source(node, {"pool": wanted.pool or POOL, "volume": wanted.volume})


def _set_path(node: _Element, path: str) -> None:
    block = path.startswith("/dev/")
    node.set("type", "block" if block else "file")
    _set_source(node, {"dev" if block else "file": path})


def _set_source(node: _Element, image: dict[str, str]) -> None:
    source = dom.child(node, "source")
    for attribute in ("file", "dev", "pool", "volume", "mode", "index"):
        dom.mark(source, attribute, image.get(attribute))
    # It tells of the image that was.
    dom.drop(node, "backingStore")


def _move(root: _Element, node: _Element, now: DiskSpec, bus: str) -> None:
    """To another bus, where it needs another address and may need another name."""
    target = dom.child(node, "target")
    target.set("bus", bus)
    if not (now.target or "").startswith(TARGET_PREFIXES[bus]):
        target.set("dev", free_target(bus, _targets(root)))
    dom.drop(node, "address")
    if bus != "virtio" and (driver := node.find("driver")) is not None:
        dom.mark(driver, "iothread", None)
    _ensure_scsi(root, bus)


def _add(root: _Element, disk: DiskSpec) -> str | None:
    dom.add_device(root, "disk", disk=disk, ceilings=iotune(disk))
    _ensure_scsi(root, disk.bus)
    _ensure_iothread(root, disk)
    return disk.target


def _ensure_iothread(root: _Element, disk: DiskSpec) -> None:
    if disk.iothread and not _has_iothread(root):
        dom.say(root, "iothreads", "1")


def _ensure_scsi(root: _Element, bus: str | None) -> None:
    """libvirt would add a SCSI controller by itself, of a kind that no modern guest drives well."""
    if bus == "scsi" and root.find("devices/controller[@type='scsi']") is None:
        dom.add_device(root, "scsi")
