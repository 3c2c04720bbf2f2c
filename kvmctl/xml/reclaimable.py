"""Whether a guest's memory can be reclaimed, as its definition says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmctl.xml import tree

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_PINNING = ("hostdev[@type='pci']", "hostdev[@type='mdev']", "interface[@type='hostdev']", "disk[@type='nvme']")
"""What works by VFIO, and so on any of the guest's memory. Devices of USB or SCSI do not."""


def memory_fixed(root: Element) -> str:
    """Why the memory of a guest with this definition stays where it is, whatever it uses; empty where it can be taken
    by a balloon, merged and swapped."""
    if reason := pinned(root):
        return reason
    backing = root.find("memoryBacking")
    if backing is None:
        return ""
    source, access = backing.find("source"), backing.find("access")
    if (source is not None and source.get("type") == "memfd") or (
        access is not None and access.get("mode") == "shared"
    ):
        return "it is shared with other processes"
    return ""


def pinned(root: Element) -> str:
    """Why not even the kernel can take this guest's memory from it while it runs; empty where it can."""
    if any(root.find(f"devices/{device}") is not None for device in _PINNING):
        return "a device is passed through to it, which pins all of it"
    if root.find("memoryBacking/hugepages") is not None:
        return "it is on huge pages"
    return "it is locked" if root.find("memoryBacking/locked") is not None else ""


def has_balloon(root: Element) -> bool:
    """Whether the guest has a balloon that Linux' and other systems' virtio driver can be asked through."""
    balloon = root.find("devices/memballoon")
    return balloon is not None and (balloon.get("model") or "").startswith("virtio")


def stats_period(root: Element) -> int:
    """Seconds between two reports of the balloon driver; 0 is never."""
    stats = root.find("devices/memballoon/stats")
    return 0 if stats is None else tree.number(stats.get("period")) or 0


def memory_size(root: Element) -> int | None:
    """Bytes that the guest is to have (`currentMemory`, or all of `memory`); None where the definition does not say."""
    size = tree.size(root, "currentMemory")
    return tree.size(root, "memory") if size is None else size
