"""Ceilings of disks and nics, as libvirt names and counts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvmctl.model.spec import DiskSpec, NicSpec
from kvmctl.model.units import KIB

DISK: Mapping[str, str] = {
    f"{way}{ours}{burst}": f"{theirs_way}_{theirs}_sec{theirs_burst}"
    for ours, theirs in (("iops", "iops"), ("bandwidth", "bytes"))
    for way, theirs_way in (("", "total"), ("read_", "read"), ("write_", "write"))
    for burst, theirs_burst in (("", ""), ("_burst", "_max"))
}
"""Attributes of a DiskSpec, with libvirt's names of the same, as `<iotune>` and `virDomainSetBlockIoTune` have them."""
LENGTH = "_length"
"""What libvirt's name of a burst has at its end where it is the burst's seconds."""
SECONDS = "burst_seconds"
NIC: Mapping[str, tuple[str, str, int]] = {
    "bandwidth_in": ("inbound", "average", 1000),
    "bandwidth_in_peak": ("inbound", "peak", 1000),
    "bandwidth_in_burst": ("inbound", "burst", KIB),
    "bandwidth_out": ("outbound", "average", 1000),
    "bandwidth_out_burst": ("outbound", "burst", KIB),
}
"""Attributes of a NicSpec, with libvirt's direction, name, and bytes that it counts in. A peak of what goes out libvirt
takes and ignores, since the kernel's policing of incoming packets has none."""
FIELDS = frozenset({*DISK, SECONDS, *NIC})
"""All these attributes."""


def disk_parameters(disk: DiskSpec) -> dict[str, int]:
    """Every parameter of the disk in libvirt's names; 0 is no ceiling."""
    found = {theirs: int(getattr(disk, ours) or 0) for ours, theirs in DISK.items()}
    bursts = [theirs for ours, theirs in DISK.items() if ours.endswith("_burst")]
    return found | {f"{name}{LENGTH}": (disk.burst_seconds or 1) if found[name] else 0 for name in bursts}


def disk_ceilings(parameters: Mapping[str, int]) -> dict[str, int | None]:
    """The attributes of a DiskSpec that libvirt's parameters come to; those that differ in length have the longest."""
    lengths = [int(parameters.get(f"{theirs}{LENGTH}", 0)) for theirs in DISK.values()]
    found: dict[str, int | None] = {ours: int(parameters.get(theirs, 0)) or None for ours, theirs in DISK.items()}
    return found | {SECONDS: max(lengths) if max(lengths) > 1 else None}


def nic_parameters(nic: NicSpec) -> dict[str, int]:
    """Every parameter of the nic in libvirt's names and units; 0 is no ceiling."""
    return {f"{way}.{name}": int(getattr(nic, ours) or 0) // unit for ours, (way, name, unit) in NIC.items()}


def nic_ceilings(parameters: Mapping[str, int]) -> dict[str, int | None]:
    """The attributes of a NicSpec that libvirt's parameters come to."""
    return {ours: int(parameters.get(f"{way}.{name}", 0)) * unit or None for ours, (way, name, unit) in NIC.items()}


def completed(wanted: DiskSpec, now: DiskSpec) -> DiskSpec:
    """`wanted` with the ceilings that `now` has taken away where they would contradict those that it says: one for
    reading and writing together excludes those for each, and a burst below its ceiling is none."""
    taken: dict[str, int] = {}
    for what in ("iops", "bandwidth"):
        parts = (f"read_{what}", f"write_{what}")
        if getattr(wanted, what):
            taken |= {name: 0 for part in parts for name in (part, f"{part}_burst")}
        elif any(getattr(wanted, part) for part in parts):
            taken |= {what: 0, f"{what}_burst": 0}
        for rate in (what, *parts):
            ceiling, burst = getattr(wanted, rate), getattr(now, f"{rate}_burst")
            if ceiling is not None and burst and (not ceiling or burst < ceiling):
                taken[f"{rate}_burst"] = 0
    changed = {name: value for name, value in taken.items() if getattr(wanted, name) is None and getattr(now, name)}
    return replace(wanted, **changed) if changed else wanted  # type: ignore[arg-type]
