"""Single fields of a guest's disks and nics, by dotted keys such as `disks.vda.iops`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvmctl.model.errors import NotFoundError, UsageError
from kvmctl.model.fields import DISK, NIC, Context, Field, attribute
from kvmctl.model.rules import check
from kvmctl.model.spec import DiskSpec, GuestSpec, NicSpec
from kvmctl.model.wording import nearest, quoted

LISTS: Mapping[str, Mapping[str, Field]] = {"disks": DISK, "nics": NIC}
_FIXED = frozenset({"path", "volume", "pool", "size", "base", "device", "target", "mac", "format"})
"""What makes a device the one that it is: changed in the guest's file, or by detaching and attaching."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A field of one device, which is named by its target or MAC address."""

    group: str
    name: str
    attribute: str
    value: object


def assignment(key: str, text: str, context: Context) -> Assignment:
    """Read `disks.vda.iops` and its value. Raises ValueError with a sentence."""
    group, _, rest = key.partition(".")
    name, dot, field = rest.partition(".")
    if not dot:
        raise ValueError(f"write it as in {'disks.vda.iops' if group == 'disks' else 'nics.52:54:00:12:34:56.model'}")
    table = {known: one for known, one in LISTS[group].items() if known not in _FIXED}
    if field in _FIXED:
        raise ValueError("this makes it the device that it is: kvmctl attach and detach give and take devices")
    if field not in table:
        raise ValueError(f"there is no such field {quoted(field)}; {nearest(field, table)}")
    return Assignment(
        group, name.lower() if group == "nics" else name, attribute(field), table[field].parse(text, context)
    )


def set_entries(spec: GuestSpec, current: GuestSpec, said: Sequence[Assignment]) -> GuestSpec:
    """`spec` with the lists that the guest has, less what is not said of a device, and with what is said.

    Raises NotFoundError for a device that the guest has not, UsageError for a contradiction.
    """
    for group in dict.fromkeys(one.group for one in said):
        mine = [one for one in said if one.group == group]
        now: tuple[DiskSpec | NicSpec, ...] = (current.disks if group == "disks" else current.nics) or ()
        names = [(disk.target if isinstance(disk, DiskSpec) else disk.mac) or "" for disk in now]
        if missing := next((one.name for one in mine if one.name not in names), None):
            raise NotFoundError(
                f"guest {current.name} has no {missing} among its {group} (it has: {', '.join(names) or 'none'})",
                f"kvmctl show {current.name} lists them",
            )
        changed = tuple(
            _with(entry, {one.attribute: one.value for one in mine if one.name == name})
            for entry, name in zip(now, names, strict=True)
        )
        spec = replace(spec, **{group: changed})  # type: ignore[arg-type]
    before = check(current, complete=False)
    after = check(replace(spec, boot=replace(spec.boot, machine=current.boot.machine)), complete=False)
    if faults := [f"{_named(key, spec)}: {text}" for key, text in after if (key, text) not in before]:
        raise UsageError("\n".join(faults), f"guest {current.name} was not changed")
    return spec


def _named(key: str, spec: GuestSpec) -> str:
    """The key of a fault with the device's name in it instead of its number."""
    group, _, rest = key.partition(".")
    number, _, field = rest.partition(".")
    entries: tuple[DiskSpec | NicSpec, ...] = (spec.disks if group == "disks" else spec.nics) or ()
    if group not in LISTS or not number.isdigit() or int(number) >= len(entries):
        return key
    entry = entries[int(number)]
    return f"{group}.{entry.target if isinstance(entry, DiskSpec) else entry.mac}.{field}".rstrip(".")


def _with(entry: DiskSpec | NicSpec, said: Mapping[str, object]) -> DiskSpec | NicSpec:
    """The entry with what is said, less what that takes the place of: a bus or model where a mode is said, and a
    ceiling for everything where one for a part of it is."""
    if "mode" in said:
        gone = ("bus", "iothread") if isinstance(entry, DiskSpec) else ("model", "queues")
        said = {**dict.fromkeys(gone), **said}
    if said.get("bus", "virtio") != "virtio":
        said = {"iothread": None, **said}
    if not str(said.get("model") or "virtio").startswith("virtio"):
        said = {"queues": None, **said}
    if not isinstance(entry, DiskSpec):
        return replace(entry, **said)  # type: ignore[arg-type]
    from kvmctl.model.throttle import DISK as CEILINGS
    from kvmctl.model.throttle import completed

    due = completed(replace(DiskSpec(), **{key: value for key, value in said.items() if key in CEILINGS}), entry)  # type: ignore[arg-type]
    taken = {name: 0 for name in CEILINGS if getattr(due, name) == 0 and name not in said}
    return replace(entry, **{**taken, **said})  # type: ignore[arg-type]
