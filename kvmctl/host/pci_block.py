"""Which PCI devices the host's disks are on: below partitions, dm (LVM, crypt, multipath), md and NVMe multipath."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from kvmctl.host.files import read_permitted
from kvmctl.model.pci import Use, is_address

_BLOCK = "sys/class/block"
_ESCAPE = re.compile(r"\\([0-7]{3})")
_HEAD = re.compile(r"nvme(\d+)n(\d+)")
_CONTROLLER = re.compile(r"nvme(\d+)")
_MOST_MOUNTS = 8
"""Mount points that are told of one disk: container engines make hundreds."""


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing where it is absent."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def pci_in(path: Path) -> tuple[str, ...]:
    """The PCI devices that a path of /sys leads through, bridges too, from the outermost.

    More than one may be needed: a disk behind Intel's VMD hangs on that as well.
    """
    return tuple(part for part in Path(os.path.realpath(path)).parts if is_address(part))


def carriers(name: str, root: Path) -> frozenset[str]:
    """The PCI devices without which a block device is not there."""
    found: set[str] = set()
    waiting, seen = [name], {name}
    while waiting:
        path = Path(os.path.realpath(root / _BLOCK / waiting.pop()))
        found.update(pci_in(path))
        below = names_in(path / "slaves")
        if (path / "partition").exists():
            below.append(path.parent.name)
        if path.parent.name.startswith("nvme-subsys"):
            for controller in _controllers(path):
                found.update(pci_in(controller))
        waiting += [one for one in below if one not in seen]
        seen.update(below)
    return frozenset(found)


def _controllers(head: Path) -> list[Path]:
    """The controllers that an NVMe namespace of a subsystem is reached by: each has a hidden disk of its own, as
    nvme0c1n1 is the way to nvme0n1 by nvme1. An older kernel without them leaves only all of the subsystem."""
    every = [head.parent / name for name in names_in(head.parent) if _CONTROLLER.fullmatch(name)]
    found = _HEAD.fullmatch(head.name)
    if found is None:
        return every
    ways = [one for one in every if (one / f"nvme{found[1]}c{one.name.removeprefix('nvme')}n{found[2]}").exists()]
    return ways or every


def uses(root: Path, probe: bool = False) -> Iterator[tuple[str, Use]]:
    """What the host uses its disks for, each with the PCI device that it hangs on.

    `probe` also asks the kernel for each disk that nothing else is known of whether it is claimed, by opening it.
    """
    used: set[str] = set()
    for name, use in [*_mounts(root), *_swaps(root), *_volumes(root)]:
        for address in carriers(name, root):
            used.add(address)
            yield address, use
    if not probe:
        return
    for name in names_in(root / _BLOCK):
        free = carriers(name, root) - used
        if free and _claimed(root / "dev" / name):
            yield from ((address, Use("claimed", through=name)) for address in free)


def _mounts(root: Path) -> Iterator[tuple[str, Use]]:
    """What is mounted, by block device; also in the first process's namespace, which may see more than ours."""
    points: dict[str, list[tuple[str, str]]] = {}
    for process in ("self", "1"):
        for line in (read_permitted(root / "proc" / process / "mountinfo") or "").splitlines():
            fields, _, more = (half.split() for half in line.partition(" - "))
            if len(fields) < 5 or len(more) < 2:
                continue
            found = points.setdefault(_block_name(fields[2], _plain(more[1]), root), [])
            if (mounted := (fields[3], _plain(fields[4]))) not in found:
                found.append(mounted)
    points.pop("", None)
    for name, mounted_at in points.items():
        # A container's bind mounts of single folders say less than the mount of the whole.
        whole = [point for top, point in mounted_at if top == "/"] or [point for _top, point in mounted_at]
        for member in _members(name, root):
            yield from ((member, Use("mount", point, member)) for point in whole[:_MOST_MOUNTS])


def _block_name(number: str, source: str, root: Path) -> str:
    """The name in /sys/class/block of what is mounted; by its path where the number is none of a disk's (btrfs)."""
    link = root / "sys/dev/block" / number
    if link.exists():
        return os.path.basename(os.path.realpath(link))  # noqa: PTH119 - pairs with realpath
    return device_name(source, root) if number.startswith("0:") else ""


def device_name(path: str, root: Path) -> str:
    """The name in /sys/class/block of a path such as /dev/mapper/vg-root; empty where it is none of a disk."""
    if not path.startswith("/dev/"):
        return ""
    name = Path(os.path.realpath(root / path.removeprefix("/"))).name
    return name if (root / _BLOCK / name).exists() else ""


def _members(name: str, root: Path) -> list[str]:
    """The disks that a file system is on: of btrfs, mountinfo names only one."""
    for folder in names_in(root / "sys/fs/btrfs"):
        members = names_in(root / "sys/fs/btrfs" / folder / "devices")
        if name in members:
            return members
    return [name]


def _swaps(root: Path) -> Iterator[tuple[str, Use]]:
    """Disks and partitions that are swapped to. A file lies on something mounted."""
    for line in (read_permitted(root / "proc/swaps") or "").splitlines()[1:]:
        path = _plain(line.split()[0]) if line.split() else ""
        if name := device_name(path, root):
            yield name, Use("swap", path, name)


def _volumes(root: Path) -> Iterator[tuple[str, Use]]:
    """What dm and md have built of other disks, the topmost: a guest may have it, though nothing of it is mounted."""
    for name in names_in(root / _BLOCK):
        path = root / _BLOCK / name
        if names_in(path / "slaves") and not names_in(path / "holders"):
            title = (read_permitted(path / "dm/name") or "").strip()
            yield name, Use("volume", title or name, name)


def _claimed(path: Path) -> bool:
    """Whether the kernel keeps a disk for itself: a member of a ZFS pool, for example, is nowhere else to be seen."""
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            return False
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _plain(field: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)
