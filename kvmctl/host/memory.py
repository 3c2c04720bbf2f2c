"""The host's memory: total, available, swap, zram, zswap, huge pages and pressure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host import cgroup
from kvmctl.host.files import read_int, read_permitted
from kvmctl.model.metrics import Pressure

_ROOT = Path("/")
_MEMINFO = re.compile(r"^(\S+):\s+(\d+)(?: kB)?$", re.MULTILINE)
_PRESSURE = re.compile(r"^(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=[\d.]+ total=(\d+)$", re.MULTILINE)
_NO_LIMIT = 1 << 60
"""cgroup v1 writes "no limit" as the largest number of bytes that its page counter holds."""


@dataclass(frozen=True, slots=True)
class SwapArea:
    """One line of /proc/swaps; `kind` is `zram`, `partition` or `file`. Sizes are bytes."""

    name: str
    kind: str
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `limit` is what the control group at the top of this host's view allows, None if that is all."""

    total: int
    available: int
    swap_total: int
    swap_free: int
    limit: int | None
    hugepage_size: int | None
    hugepages_total: int
    hugepages_free: int


def read(root: Path = _ROOT) -> Memory:
    """The host's memory, from /proc/meminfo (which lxcfs may have adapted) and the visible cgroup limit."""
    figures = {name: int(value) for name, value in _MEMINFO.findall(read_permitted(root / "proc/meminfo") or "")}
    total, available = figures.get("MemTotal", 0) * 1024, figures.get("MemAvailable", 0) * 1024
    limit, used = _visible_limit(root)
    if limit is not None and limit < total:
        total, available = limit, min(available, max(0, limit - (used or 0)))
    return Memory(
        total=total,
        available=available,
        swap_total=figures.get("SwapTotal", 0) * 1024,
        swap_free=figures.get("SwapFree", 0) * 1024,
        limit=limit,
        hugepage_size=figures["Hugepagesize"] * 1024 if "Hugepagesize" in figures else None,
        hugepages_total=figures.get("HugePages_Total", 0),
        hugepages_free=figures.get("HugePages_Free", 0),
    )


def _visible_limit(root: Path) -> tuple[int | None, int | None]:
    """Limit and use of the topmost memory cgroup that can be seen: a whole machine has none there, a host
    in a namespace has its own. This process's own cgroup does not count: guests are not in it."""
    for mount in cgroup.mounts(root / "proc"):
        if mount.version == 2:
            names = ("memory.max", "memory.current")
        elif "memory" in mount.controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        limit = read_int(mount.point / names[0])
        if limit is not None and limit < _NO_LIMIT:
            return limit, read_int(mount.point / names[1])
    return None, None


def guests_limit(root: Path = _ROOT) -> int | None:
    """Bytes that the guests' common control group may have; None where it has no limit, or is not there yet."""
    found = _guests_group(root)
    return found[1] if found else None


def guests_available(root: Path = _ROOT) -> int | None:
    """Bytes that guests can still have until the kernel has to take memory from one of them, or kill it, because their
    common control group has reached its limit; None where it has none. What the group has cached of files counts as
    free: it goes first."""
    found = _guests_group(root)
    if found is None:
        return None
    directory, limit, version = found
    used = read_int(directory / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
    if used is None:
        return None
    prefix = "" if version == 2 else "total_"
    lines = (line.split() for line in (read_permitted(directory / "memory.stat") or "").splitlines())
    figures = {fields[0]: int(fields[1]) for fields in lines if len(fields) == 2 and fields[1].isdecimal()}
    cached = sum(figures.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
    return max(0, limit - max(0, used - cached))


def left_for_guests(now: Memory, root: Path = _ROOT) -> int:
    """Bytes that guests can still have of a host whose memory is `now`, and of their common control group's limit."""
    bound = guests_available(root)
    return now.available if bound is None else min(now.available, bound)


def _guests_group(root: Path) -> tuple[Path, int, int] | None:
    """The guests' common control group where it has a limit, that, and the version of its hierarchy."""
    for mount in cgroup.mounts(root / "proc"):
        file = "memory.max" if mount.version == 2 else "memory.limit_in_bytes" if "memory" in mount.controllers else ""
        for name in cgroup.PARENTS if file else ():
            limit = read_int(mount.point / name / file)
            if limit is not None and limit < _NO_LIMIT:
                return mount.point / name, limit, mount.version
    return None


def swap_areas(root: Path = _ROOT) -> tuple[SwapArea, ...]:
    """What the kernel swaps to, in its order."""
    areas = []
    for line in (read_permitted(root / "proc/swaps") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4:
            continue
        name, kind = fields[0], fields[1]
        if Path(name).name.startswith("zram"):
            kind = "zram"
        areas.append(SwapArea(name, kind, int(fields[2]) * 1024, int(fields[3]) * 1024))
    return tuple(areas)


def zram_used(root: Path = _ROOT) -> int | None:
    """Bytes of memory that all zram devices take for what they hold; None where there is none."""
    files = sorted((root / "sys/block").glob("zram*/mm_stat"))
    found = [(read_permitted(file) or "").split() for file in files]
    return sum(int(fields[2]) for fields in found if len(fields) > 2) if files else None


def zswap(root: Path = _ROOT) -> bool | None:
    """Whether zswap is on; None where this kernel has none."""
    text = read_permitted(root / "sys/module/zswap/parameters/enabled")
    return None if text is None else text.strip() in ("Y", "1")


def pressure(resource: str, root: Path = _ROOT) -> Pressure | None:
    """/proc/pressure of `cpu`, `memory` or `io`; None where the kernel keeps none."""
    return parse_pressure(read_permitted(root / "proc/pressure" / resource) or "")


def parse_pressure(text: str) -> Pressure | None:
    """A pressure stall file; None where it holds no `some` line."""
    lines = {match[1]: (float(match[2]), float(match[3]), int(match[4]) / 1e6) for match in _PRESSURE.finditer(text)}
    if "some" not in lines:
        return None
    return Pressure(*lines["some"], *lines.get("full", (None, None, None)))
