"""Swap areas enabled and disabled. Each is in the journal before it is begun, so that what a killed run has left is
found, and finished or removed by the next."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kvmctl.host import memory, swap, swap_file, swap_zram
from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.journal import Entry, Intent, Journal, boot_id
from kvmctl.host.swap import KIND, ROOT, Area
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError
from kvmctl.model.units import MIB, human_size

LEAST = MIB

ZRAM = "/dev/zram*"
"""What a zram device that is not chosen yet is called."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one area. `name` is as /proc/swaps has it; `size` bytes."""

    name: str
    kind: str
    size: int
    action: Literal["enable", "disable"]
    result: Literal["changed", "unchanged", "pending", "not applied"]
    reason: str = ""


def enable_zram(size: int, journal: Journal, dry_run: bool = False, root: Path = ROOT) -> Done:
    """Swap to a compressed disk of `size` bytes in memory. One of the same size that is there already is kept.

    Raises ConflictError where there is another of kvmctl's, RefusedError where the kernel has no zram or the size
    makes no sense, and as `swap.swapon`.
    """
    size = _whole(size)
    for area in swap.areas(root):
        if area.zram and is_ours(area, journal):
            if area.zram.size == size:
                return Done(area.name, "zram", size, "enable", "unchanged", "it is there already")
            raise ConflictError(
                f"kvmctl swaps to {area.name} of {human_size(area.zram.size)} already",
                f"kvmctl swap disable {Path(area.name).name}, then enable it with the size that you want",
            )
    swap_zram.check(size, root)
    if dry_run:
        return Done(ZRAM, "zram", size, "enable", "pending")
    swap_zram.load(root)
    device, added = swap_zram.free_device(root)
    data = _data("zram", size, added=added)
    return _enable(f"/dev/{device}", data, lambda: swap_zram.fill(device, size, data["uuid"], root), journal, root)


def enable_file(path: Path, size: int, journal: Journal, dry_run: bool = False, root: Path = ROOT) -> Done:
    """Make a file of `size` bytes that only root can read, and swap to it. One that kvmctl made is used again.

    Raises ConflictError where there is a file that kvmctl did not make, or one of another size; RefusedError where
    its place is not fit for it; and as `swap.swapon`.
    """
    size, name = _whole(size), str(path)
    there = swap_file.check_name(path, size)
    if there and any(area.name == name for area in swap.areas(root)):
        return Done(name, "file", size, "enable", "unchanged", "it is there already")
    if not there:
        swap_file.check_place(path, size)
    if dry_run:
        return Done(name, "file", size, "enable", "pending")
    if there:
        return _enable(name, _data("file", size, uuid=swap.header(path)[1]), lambda: None, journal, root)
    data = _data("file", size)
    temporary = path.with_name(f".{path.name}.{data['uuid'][:12]}")
    data["temporary"] = str(temporary)
    return _enable(name, data, lambda: swap_file.make(path, temporary, size, data["uuid"]), journal, root)


def _whole(size: int) -> int:
    """Whole pages. Raises RefusedError."""
    if size < LEAST:
        raise RefusedError(f"{human_size(size)} is too little to swap to", f"the least is {human_size(LEAST)}")
    return size // PAGE_SIZE * PAGE_SIZE


def _data(kind: str, size: int, uuid: str | None = None, added: bool = False) -> dict[str, Any]:
    """What the journal keeps of an area: all that is needed to remove it, and nothing else in its place."""
    uuid = uuid or os.urandom(16).hex()
    return {"kind": kind, "uuid": uuid, "size": size, "added": added, "temporary": "", "boot": boot_id()}


def _enable(name: str, data: dict[str, Any], make: Callable[[], None], journal: Journal, root: Path) -> Done:
    journal.begin(KIND, name, data)
    try:
        make()
        swap.swapon(root / name.lstrip("/"))
        if not any(area.name == name for area in swap.areas(root)):
            raise KvmctlError(f"{name} is not in /proc/swaps after it was enabled", "look at it: cat /proc/swaps")
    except BaseException:
        _remove(name, data, root)
        journal.done(KIND, name)
        raise
    journal.record(KIND, name, None, data)
    journal.done(KIND, name)
    return Done(name, data["kind"], data["size"], "enable", "changed")


def is_ours(area: Area, journal: Journal) -> bool:
    """Whether kvmctl made the area: its label says so, or the journal where the header cannot be read."""
    return area.ours or (area.uuid is None and area.name in journal.entries(KIND))


def choose(names: Sequence[str], journal: Journal, root: Path = ROOT) -> list[Area]:
    """The areas of these names (`zram1`, /dev/zram1, the path of a file); without names all that kvmctl made.

    What kvmctl made and is not swapped to any more is among them. Raises NotFoundError.
    """
    active = [replace(area, ours=is_ours(area, journal)) for area in swap.areas(root)]
    swapped_to = {area.name for area in active}
    left = [
        Area(name, entry.new["kind"], entry.new["size"], 0, 0, entry.new["uuid"], ours=True)
        for name, entry in journal.entries(KIND).items()
        if name not in swapped_to and is_left(name, entry.new, root)
    ]
    if not names:
        return [area for area in (*active, *left) if area.ours]
    known = {area.name: area for area in (*left, *active)}
    found: dict[str, Area] = {}
    for name in names:
        path = name if "/" in name else f"/dev/{name}"
        area = known.get(path) or _idle_file(path, root)
        if area is None:
            hint = f"it swaps to {', '.join(swapped_to)}" if swapped_to else "it swaps to nothing"
            raise NotFoundError(f"this host does not swap to {path}", hint)
        found[path] = area
    return list(found.values())


def is_left(name: str, data: Mapping[str, Any], root: Path = ROOT) -> bool:
    """Whether anything of the area is still there, and not somebody else's of the same name in its place."""
    return bool(swap.header(root / name.lstrip("/"))[1] == data["uuid"])


def _idle_file(path: str, root: Path) -> Area | None:
    """A file that kvmctl made before this boot, and that nothing has switched on since."""
    file = root / path.lstrip("/")
    if not path.startswith("/") or not swap_file.is_made(file):
        return None
    return Area(path, "file", file.stat().st_size, 0, 0, swap.header(file)[1], ours=True)


def check_fits(chosen: Sequence[Area], root: Path = ROOT) -> None:
    """Raise RefusedError unless what is swapped to these areas fits in memory. What zram takes of it comes free as it
    is read back."""
    needed, freed = sum(area.used for area in chosen), sum(area.zram.used for area in chosen if area.zram)
    available = memory.left_for_guests(memory.read(root), root)
    if needed > available + freed:
        more = f", {human_size(freed)} that zram takes come free" if freed else ""
        raise RefusedError(
            f"{human_size(needed)} are swapped to {', '.join(area.name for area in chosen)}, {human_size(available)} "
            f"of memory are available{more}: {human_size(needed - available - freed)} too little",
            "stop or shrink a guest first, or disable one area at a time",
        )


def disable(area: Area, journal: Journal, root: Path = ROOT) -> Done:
    """Swap to the area no more; what kvmctl made is removed, and anybody else's stays, unused.

    After a crash it is done again, and does what is left to do. Raises as `swap.swapoff`.
    """
    entry = journal.entries(KIND).get(area.name)
    if not area.ours:
        swap.swapoff(root / area.name.lstrip("/"))
        why = "not made by kvmctl, so it is there still"
        return Done(area.name, area.kind, area.size, "disable", "changed", why)
    fallback = {"kind": area.kind, "uuid": area.uuid, "size": area.size, "added": False, "temporary": ""}
    _remove(area.name, entry.new if entry else fallback, root)
    journal.forget(KIND, area.name)
    return Done(area.name, area.kind, area.size, "disable", "changed")


def remove(name: str, entry: Entry, root: Path = ROOT) -> None:
    """Undo what the journal tells of, if it fits in memory. Raises as `check_fits` and `disable`."""
    check_fits([area for area in swap.areas(root) if area.name == name and area.uuid == entry.new["uuid"]], root)
    _remove(name, entry.new, root)


def _remove(name: str, data: Mapping[str, Any], root: Path) -> None:
    """Leave nothing of an area that has this UUID. Raises KvmctlError where that cannot be."""
    path = root / name.lstrip("/")
    if data["temporary"]:
        swap_file.delete(Path(data["temporary"]))
    whole = is_left(name, data, root)
    if whole:
        swap.swapoff(path)
    if data["kind"] == "zram":
        swap_zram.give_back(path.name, data, root)
    elif whole:
        swap_file.delete(path)


def recover(journal: Journal, root: Path = ROOT) -> list[str]:
    """Finish or remove what a run that was killed has begun; a sentence on each. Raises as `swap.swapoff`."""
    return [_recover(intent, journal, root) for intent in journal.unfinished(KIND)]


def _recover(intent: Intent, journal: Journal, root: Path) -> str:
    name, data = intent.key, intent.data
    if any(area.name == name and area.uuid == data["uuid"] for area in swap.areas(root)):
        journal.record(KIND, name, None, data)
        said = f"a run that was interrupted had enabled {name}: it is kept"
    elif data["kind"] == "zram" and data["boot"] != boot_id():
        said = f"{name}, which a run that was interrupted had begun to set up, is gone since the reboot"
    else:
        _remove(name, data, root)
        said = f"a run that was interrupted had begun to set up {name}: what there was of it is removed"
    journal.done(KIND, name)
    return said
