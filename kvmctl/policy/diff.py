"""What has to change for a guest to be what its owner says. Only what is said is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace

from kvmctl.model import fields, throttle
from kvmctl.model.change import Change, How
from kvmctl.model.passed import describe as describe_passed
from kvmctl.model.passed import label as label_passed
from kvmctl.model.passed import match as match_passed
from kvmctl.model.spec import DiskSpec, GuestSpec, NicSpec, PassedSpec
from kvmctl.model.units import format_size

LIVE = frozenset({
    "cpu.count", "cpu.shares", "cpu.limit", "cpu.reservation", "cpu.pin", "cpu.emulator-pin", "memory.size",
    "memory.reservation", "memory.shares", "memory.swap", "io.weight", "autostart", "rebalance", "description",
})  # fmt: skip
"""Fields that a running guest takes at once; the rest is stored for its next start."""
FOLLOWED_LIVE = ("cpu.count", "cpu.limit", "cpu.pin", "cpu.emulator-pin", "io.weight")
"""Live fields whose running value is compared as well: somebody may have changed it with virsh. The balloon
is not among them, since moving it is the controller's business, and neither is the weight."""
NOT_COMPARED = frozenset({"state"})
_PINNED = "a device is passed through to the guest, which pins all of its memory: its balloon would free nothing"
_NEXT_START = "takes effect when the guest is next started"


def diff(desired: GuestSpec, current: GuestSpec, live: GuestSpec | None = None) -> tuple[Change, ...]:
    """The Changes that make `current` say what `desired` says, in the field table's order.

    `current` is the definition the guest starts from next, `live` what it runs with now (None when it is off).
    """
    found = [
        *_scalars(desired, current, live),
        *_project(desired, current),
        *_labels(desired, current),
        *_devices(desired, current, live),
    ]
    return tuple(found)


def _scalars(desired: GuestSpec, current: GuestSpec, live: GuestSpec | None) -> Iterator[Change]:
    for key, field in fields.FIELDS.items():
        wanted = fields.get(desired, key)
        if wanted is None or key in NOT_COMPARED or _is_moot(key, desired):
            continue
        now = fields.get(current, key)
        if _same(key, wanted, now) and live is not None and key in FOLLOWED_LIVE:
            now = fields.get(live, key)
        if _same(key, wanted, now):
            continue
        how, reason = _how(key, wanted, current, live)
        if how == "restart" and _same(key, wanted, fields.get(current, key)):
            continue  # it is stored, and the running guest takes it no sooner
        if how == "restart" and live is not None and _same(key, wanted, fields.get(live, key)):
            how, reason = "live", ""  # it runs with what is wanted: only its definition was changed by somebody
        shown = None if now is None else field.show(now)
        yield Change(desired.name, key, shown, field.show(wanted), "set", how, reason)


def _is_moot(key: str, desired: GuestSpec) -> bool:
    """Whether the field is of a console or display that the guest shall not have."""
    group, _, name = key.partition(".")
    return group in ("console", "vnc") and name != "enabled" and fields.get(desired, f"{group}.enabled") is False


def _same(key: str, wanted: object, now: object) -> bool:
    if key == "boot.machine" and isinstance(wanted, str) and isinstance(now, str):
        return now == wanted or now.startswith({"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(wanted, "\0"))
    if key == "accelerator" and wanted == "auto":
        return now is not None
    if key == "rebalance":
        return (wanted is False) == (now is False)
    if key in ("description", "boot.cmdline", "boot.iso"):
        return (wanted or None) == (now or None)
    if isinstance(wanted, float) and isinstance(now, float):
        # A quota holds whole microseconds of a 100 ms period, so 1e-5 cores is as near as it gets.
        return wanted == now or abs(wanted - now) < 1e-5
    return wanted == now


def _how(key: str, wanted: object, current: GuestSpec, live: GuestSpec | None) -> tuple[How, str]:
    if key == "boot.machine" and _family(str(wanted)) != _family(current.boot.machine or ""):
        return "refused", "the machine type of an existing guest fixes the addresses of its devices"
    if live is None:
        return "live", ""
    if key == "boot.iso" and current.boot.iso and live.boot.iso:
        return "live", ""  # another medium in its drive, or none
    kept = _kept_vcpus(wanted, live) if key == "cpu.count" else ""
    if key == "memory.size" and live.passthrough:
        kept = _PINNED
    if key in LIVE and not kept:
        return "live", _most(key, wanted, live)
    return "restart", f"{kept}; {_NEXT_START}" if kept else _NEXT_START


def _most(key: str, wanted: object, live: GuestSpec) -> str:
    """Why the running guest gets a part of what is wanted only; empty where it gets all."""
    most = live.memory.max or live.memory.size
    if key == "memory.size" and isinstance(wanted, int) and most and wanted > most:
        return f"a running guest gets no more than its present maximum, {format_size(most)}, until its next start"
    return ""


def _kept_vcpus(wanted: object, live: GuestSpec) -> str:
    """Why the running guest keeps the very vCPUs that it has; empty where some can come or go."""
    count = live.cpu.count or 1
    if not isinstance(wanted, int) or reachable_vcpus(wanted, live) != count:
        return ""
    if wanted > count:
        return f"a running guest gets no more than its present maximum, {count}"
    if live.accelerator == "tcg":
        return "QEMU cannot take a vCPU from a guest that it emulates"
    return "a running guest keeps the vCPUs that it was started with"


def reachable_vcpus(wanted: int, live: GuestSpec) -> int:
    """As many of the wanted vCPUs as the guest can have while it runs."""
    return min(max(wanted, live.cpu.fixed or 1), live.cpu.max or wanted)


def _family(machine: str) -> str:
    return "q35" if "q35" in machine else "pc" if machine.startswith("pc") else machine


def _project(desired: GuestSpec, current: GuestSpec) -> Iterator[Change]:
    if desired.project is not None and desired.project != current.project:
        yield Change(desired.name, "project", current.project, desired.project)


def _labels(desired: GuestSpec, current: GuestSpec) -> Iterator[Change]:
    if desired.labels is None:
        return
    wanted, now = dict(desired.labels), dict(current.labels or ())
    for key in sorted(wanted.keys() | now.keys()):
        if wanted.get(key) != now.get(key):
            yield Change(desired.name, f"labels.{key}", now.get(key), wanted.get(key))


def _devices(desired: GuestSpec, current: GuestSpec, live: GuestSpec | None) -> Iterator[Change]:
    if desired.disks is not None:
        disks = match_disks(desired.disks, current.disks or ())
        yield from _list(desired.name, "disks", disks, current.disks or (), None if live is None else live.disks or ())
    if desired.nics is not None:
        nics = match_nics(desired.nics, current.nics or ())
        yield from _list(desired.name, "nics", nics, current.nics or (), None if live is None else live.nics or ())

    if desired.passthrough is not None:
        passed = match_passed(desired.passthrough, current.passthrough or ())
        running = None if live is None else live.passthrough or ()
        yield from _list(desired.name, "passthrough", passed, current.passthrough or (), running)


Device = DiskSpec | NicSpec | PassedSpec


def match_disks(wanted: Sequence[DiskSpec], now: Sequence[DiskSpec]) -> list[tuple[DiskSpec, DiskSpec | None]]:
    """Each wanted disk with the present one of the same target, or of the same path, or None."""
    left = list(now)
    pairs: list[tuple[DiskSpec, DiskSpec | None]] = []
    for disk in wanted:
        match = next((other for other in left if _is_disk(disk, other)), None)
        if match is not None:
            left.remove(match)
        pairs.append((disk, match))
    return pairs


def _is_disk(wanted: DiskSpec, now: DiskSpec) -> bool:
    if wanted.target:
        return wanted.target == now.target
    if wanted.path or now.path:
        return wanted.path == now.path or _is_volume(wanted, now)
    return _is_volume(wanted, now) or not (wanted.volume or now.volume)


def match_nics(wanted: Sequence[NicSpec], now: Sequence[NicSpec]) -> list[tuple[NicSpec, NicSpec | None]]:
    """Each wanted nic with the present one of the same MAC; those without a MAC by their order."""
    named = {nic.mac for nic in wanted if nic.mac}
    rest = [nic for nic in now if nic.mac not in named]
    by_mac = {nic.mac: nic for nic in now}
    return [(nic, by_mac.get(nic.mac) if nic.mac else (rest.pop(0) if rest else None)) for nic in wanted]


def _list(
    guest: str,
    kind: str,
    pairs: Sequence[tuple[Device, Device | None]],
    now: Sequence[Device],
    running: Sequence[Device] | None,
) -> Iterator[Change]:
    """`running` are the devices that the guest runs with; None where it is off."""
    how: How = "live" if running is None else "restart"
    reason = "" if running is None else _NEXT_START
    kept = [match for _, match in pairs if match is not None]
    for index, (wanted, match) in enumerate(pairs):
        if match is None:
            plugged = running is None or is_pluggable(wanted)
            yield Change(
                guest,
                f"{kind}.{label(wanted, index)}",
                None,
                describe(wanted),
                "add",
                "live" if plugged else how,
                "" if plugged else reason,
            )
            continue
        name = label(match, index)
        with_it = next((device for device in running or () if label(device, -1) == name), None)
        yield from _of_device(guest, f"{kind}.{name}", wanted, match, with_it, how)
    for index, device in enumerate(now):
        if device not in kept:
            yield Change(guest, f"{kind}.{label(device, index)}", describe(device), None, "remove", how, reason)


def is_pluggable(device: Device) -> bool:
    """Whether a running guest can be given the device, or let go of it: no machine has such SATA or IDE."""
    return not isinstance(device, DiskSpec) or (device.bus in ("virtio", "scsi") and device.device != "cdrom")


def _of_device(
    guest: str, prefix: str, wanted: Device, now: Device, running: Device | None, how: How
) -> Iterator[Change]:
    """What differs of one device. Ceilings, and a CD-ROM drive's medium, a running guest takes at once; its ceilings
    are compared as well, since somebody may have changed them with virsh."""
    if isinstance(wanted, DiskSpec) and isinstance(now, DiskSpec):
        wanted = throttle.completed(wanted, now)
    differences = {
        name: (old, new, "restart" if how == "restart" else "live") for name, old, new in _differences(wanted, now)
    }
    if running is not None:
        found = {name: (old, new) for name, old, new in _differences(wanted, running)}
        for name in throttle.FIELDS & (found.keys() | differences.keys()):
            old, new = found.get(name) or differences[name][:2]
            differences[name] = (old, new, "live")
        if "path" in differences and _is_cdrom(now) and _is_cdrom(running):
            differences["path"] = (*differences["path"][:2], "live")
    if "path" in differences and isinstance(now, DiskSpec) and _is_cdrom(now) and not now.path:
        differences.pop("format", None)  # an empty drive has none: it comes with the medium
    for name in [field.name for field in dataclass_fields(wanted) if field.name in differences]:
        old, new, way = differences[name]
        reason = _NEXT_START if way == "restart" else ""
        key = fields.KEYS[name]
        show = _TABLES[type(wanted)][key].show
        shown = None if old is None else show(old)
        yield Change(guest, f"{prefix}.{key}", shown, show(new), "set", "live" if way == "live" else "restart", reason)


_TABLES = {DiskSpec: fields.DISK, NicSpec: fields.NIC, PassedSpec: fields.PASSED}
_OF_VOLUMES = frozenset({"volume", "pool", "size", "base"})
"""What a volume is made with; a disk in a definition has only the path that came of it."""


def _differences(wanted: Device, now: Device) -> Iterator[tuple[str, object, object]]:
    passed_over = _OF_VOLUMES | {"mode"} | ({"path"} if _is_volume(wanted, now) else set())
    for field in dataclass_fields(wanted):
        new, old = getattr(wanted, field.name), getattr(now, field.name)
        if new is None or field.name in passed_over or new == old:
            continue
        # Of a card, what is not said is its driver's choice, which may be either.
        chosen = field.name in ("spoof_check", "trust")
        if new is False and (old is None or _is_cdrom(now)) and not chosen:
            continue
        if not new and not old and not chosen:  # no ceiling, no medium, no VLAN
            continue
        if field.name in (throttle.SECONDS, "queues") and new == (old or 1):
            continue
        yield field.name, old, new


def _is_cdrom(device: Device) -> bool:
    """A CD-ROM drive is read-only whatever is said."""
    return isinstance(device, DiskSpec) and device.device == "cdrom"


def _is_volume(wanted: Device, now: Device) -> bool:
    """Whether both name the same volume: a definition that somebody else wrote may say it without its path."""
    if not isinstance(wanted, DiskSpec) or not isinstance(now, DiskSpec) or now.volume is None:
        return False
    return (wanted.volume, wanted.pool or "default") == (now.volume, now.pool or "default")


def label(device: Device, index: int) -> str:
    """How a report names a device: its target or MAC, else its place in the list."""
    if isinstance(device, PassedSpec):
        return label_passed(device)
    return (device.target if isinstance(device, DiskSpec) else device.mac) or str(index)


def describe(device: Device) -> str:
    """A device in a few words, for a report."""
    if isinstance(device, PassedSpec):
        return describe_passed(device)
    if isinstance(device, DiskSpec):
        return device.path or (f"{device.pool or 'default'}/{device.volume}" if device.volume else "an empty drive")
    return f"network {device.network}" if device.network else f"bridge {device.bridge}" if device.bridge else "user"


def raise_maxima(desired: GuestSpec, current: GuestSpec) -> GuestSpec:
    """`desired` with the maximum raised where a size or a number of vCPUs is above the present one."""
    cpu, memory = desired.cpu, desired.memory
    maximum = memory.max or current.memory.max or current.memory.size
    if memory.size and maximum and memory.size > maximum:
        memory = replace(memory, max=memory.size)
    maximum_cpus = cpu.max or current.cpu.max or current.cpu.count
    if cpu.count and maximum_cpus and cpu.count > maximum_cpus:
        cpu = replace(cpu, max=cpu.count)
    return replace(desired, cpu=cpu, memory=memory)


def overlay(base: GuestSpec, over: GuestSpec) -> GuestSpec:
    """`base` with everything that `over` says."""
    said: dict[str, object] = {}
    for field in dataclass_fields(over):
        below, above = getattr(base, field.name), getattr(over, field.name)
        if above is None:
            continue
        if field.name in ("cpu", "memory", "io", "boot"):
            above = replace(
                below, **{f.name: v for f in dataclass_fields(above) if (v := getattr(above, f.name)) is not None}
            )
        said[field.name] = above
    return replace(base, **said)  # type: ignore[arg-type]
