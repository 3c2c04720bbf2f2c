"""The cgroup that all guests are in: what it weighs, and what it competes with at its level."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host import cgroup, daemons, systemd
from kvmctl.host.cgroup import Mount
from kvmctl.host.files import read_int, read_permitted, write_kernel

_PROC = Path("/proc")
_KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD, in a task's flags."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The guests' common parent. `weight` is `cpu.shares` on v1, `cpu.weight` on v2; None where it has none, which
    is where the CPU controller is not enabled for it."""

    path: Path
    version: int
    weight: int | None
    unit: str | None = None
    """The systemd unit that owns it, and through which it has to be changed; None where systemd does not."""

    @property
    def file(self) -> Path:
        """The kernel's file that holds the weight."""
        return self.path / cgroup.WEIGHT_FILES[self.version]


@dataclass(frozen=True, slots=True)
class Competitors:
    """What competes with the guests' parent at its level."""

    groups: tuple[tuple[str, int], ...]
    """The sibling cgroups that have processes: name and weight."""
    alone: bool
    """Whether tasks of users may be at the level itself, in no cgroup of its own. systemd keeps them away."""


@dataclass(frozen=True, slots=True)
class Alone:
    """The tasks of users that compete with the guests' parent without a cgroup of their own, at one moment."""

    tasks: int
    busy: int
    """How many of them run or want to."""
    sessions: bool
    """Whether the kernel lets all tasks of a session weigh together what one would (`sched_autogroup_enabled`)."""


def parent(directories: Iterable[Path], visible: tuple[Mount, ...], root: Path = Path("/")) -> Parent | None:
    """The parent of the guests whose own cgroup directories these are; without any, where libvirt would put them.

    None where the CPU controller is not visible, where no guest has run yet, or where guests have no parent in
    common but the whole host (partitions of their own): no one weight could keep their capacity then. `root` is for
    a host's files that lie elsewhere.
    """
    mount = cgroup.cpu_mount(visible)
    if mount is None:
        return None
    found = [_topmost(above, mount) for above in {directory.parent for directory in directories}]
    found = found or [path for name in cgroup.PARENTS if (path := mount.point / name).is_dir()][:1]
    common = Path(os.path.commonpath(found)) if found else mount.point
    if common == mount.point or not common.is_relative_to(mount.point) or not common.is_dir():
        return None
    return at(common, mount, root)


def at(directory: Path, mount: Mount, root: Path = Path("/")) -> Parent:
    """The parent at this directory of the CPU hierarchy."""
    unit = directory.name if directory.name.endswith(".slice") and daemons.has_systemd(root) else None
    return Parent(directory, mount.version, cgroup.weight(directory, mount.version), unit)


def _topmost(above: Path, mount: Mount) -> Path:
    """libvirt's own directory, which `above` a guest's may be a partition of."""
    named = [
        path for path in (above, *above.parents) if path.name in cgroup.PARENTS and path.is_relative_to(mount.point)
    ]
    return named[-1] if named else above


def set_weight(found: Parent, value: int) -> int:
    """Give the parent this weight until the next boot; what the kernel's file holds afterwards.

    Raises KvmctlError where systemd or the kernel does not take it.
    """
    if found.unit is None:
        return int(write_kernel(found.file, str(value)))
    name = "CPUShares" if found.version == 1 else "CPUWeight"
    return systemd.set_property(found.unit, name, value, found.file)


def competitors(found: Parent) -> Competitors:
    """What competes with the parent at its level now."""
    return Competitors(tuple(_groups(found)), found.unit is None)


def _groups(found: Parent) -> Iterator[tuple[str, int]]:
    for path in sorted(found.path.parent.iterdir()):
        if path == found.path or not path.is_dir():
            continue
        weight = cgroup.weight(path, found.version)
        if weight is not None and _has_processes(path, found.version):
            yield path.name, weight


def _has_processes(directory: Path, version: int) -> bool:
    if version == 2:
        return "populated 1" in (read_permitted(directory / "cgroup.events") or "").splitlines()
    walk = os.walk(directory)
    return any((read_permitted(Path(path) / "cgroup.procs") or "").strip() for path, _folders, _files in walk)


def _is_top(level: Path, version: int) -> bool:
    """Whether this is the hierarchy's real root, which a cgroup namespace may hide: only there sessions count."""
    return (level / "release_agent").exists() if version == 1 else not (level / "cgroup.type").exists()


def alone(found: Parent, proc: Path = _PROC) -> Alone:
    """The tasks at the parent's level, without the kernel's and this program's own. Reads a file for each task."""
    level, top = found.path.parent, _is_top(found.path.parent, found.version)
    wanting = list(_tasks(level, found.version, proc))
    sessions = top and read_int(proc / "sys/kernel/sched_autogroup_enabled") == 1
    return Alone(len(wanting), sum(wanting), sessions)


def _tasks(level: Path, version: int, proc: Path) -> Iterator[bool]:
    """Whether it wants CPU now, of each task of a user."""
    own = {path.name for path in (proc / "self/task").glob("*")}
    for task in (read_permitted(level / ("tasks" if version == 1 else "cgroup.threads")) or "").split():
        # After the name, which may hold anything, the state is the first field, and flags are the seventh.
        fields = (read_permitted(proc / task / "stat") or "").rpartition(")")[2].split()
        if len(fields) > 6 and task not in own and not int(fields[6]) & _KERNEL_THREAD:
            yield fields[0] == "R"
