"""A guest's control group, found from /proc/PID/cgroup and this process's own mounts; no path is built
from a name.

libvirt's layouts:
    v1, without systemd  /machine/qemu-1-NAME.libvirt-qemu/{emulator,vcpu0}
    v1 and v2, systemd   /machine.slice/machine-qemu\\x2d1\\x2dNAME.scope/libvirt/{emulator,vcpu0}
The weight is on the guest's own directory (`….libvirt-qemu`, `….scope`); quotas are on the thread
directories, and the whole guest's is on their parent.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from kvmctl.host.files import read_int, read_permitted, write_kernel

WEIGHT_RANGE = (2, 10_000)
"""What both cgroup versions take: v1 has 2..262144, v2 1..10000, and libvirt before 9.1 checks v1's on both."""
KERNEL_WEIGHT_RANGE = {1: (2, 262_144), 2: (1, 10_000)}
WEIGHT_FILES = {1: "cpu.shares", 2: "cpu.weight"}
"""The kernel's file of a cgroup's weight, by cgroup version."""

_THREAD_DIRECTORY = re.compile(r"emulator|vcpu\d+|iothread\d+")
_GUEST_DIRECTORY = re.compile(r".+\.libvirt-[a-z]+|machine-.+\.scope")
_ESCAPE = re.compile(r"\\([0-7]{3})")

PARENTS = ("machine.slice", "machine")
"""What libvirt calls the common group of all guests: the former where systemd made it."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted cgroup hierarchy: `root` is the part of it that is visible at `point`."""

    point: Path
    root: str
    version: int
    controllers: frozenset[str]
    """v1 only; on v2 they are in the file `cgroup.controllers`."""


@dataclass(frozen=True, slots=True)
class CgroupCpu:
    """The CPU settings of one guest, as the kernel has them. None is unknown."""

    version: int
    path: Path
    """The guest's own directory."""
    weight: int | None
    """`cpu.shares` on v1, `cpu.weight` on v2."""
    quota_cores: float | None
    """The whole guest's; infinity is none."""
    vcpu_quota_cores: tuple[float | None, ...]
    """Each vCPU thread's, in vCPU order."""
    parent_weight: int | None
    """What the guests' common parent weighs against everything else on the host."""


def mounts(proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """The cgroup hierarchies that this process can see."""
    return _mounts(read_permitted(proc / "self/mountinfo") or "")


@lru_cache(maxsize=4)
def _mounts(text: str) -> tuple[Mount, ...]:
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(source) < 3 or source[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if source[0] == "cgroup2" else 1
        controllers = frozenset(source[2].split(",")) if version == 1 else frozenset[str]()
        # A later mount on the same directory hides the earlier one.
        found[fields[4]] = Mount(Path(_unescape(fields[4])), _unescape(fields[3]), version, controllers)
    return tuple(found.values())


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def cpu_mount(visible: tuple[Mount, ...]) -> Mount | None:
    """The hierarchy that the CPU controller is in. On a hybrid host the unified one has none."""
    for mount in visible:
        if mount.version == 1 and "cpu" in mount.controllers:
            return mount
    return next((mount for mount in visible if mount.version == 2 and _has_cpu(mount)), None)


def _has_cpu(mount: Mount) -> bool:
    return "cpu" in (read_permitted(mount.point / "cgroup.controllers") or "").split()


def version(proc: Path = Path("/proc")) -> int:
    """The cgroup version that CPU weights are set in: 1, 2, or 0 where no CPU controller is mounted."""
    mount = cpu_mount(mounts(proc))
    return mount.version if mount else 0


def guest_directory(pid: int, proc: Path = Path("/proc"), visible: tuple[Mount, ...] | None = None) -> Path | None:
    """The guest's own directory in the CPU hierarchy, from any of its QEMU process's threads.

    None where the process is gone, runs in no cgroup of its own (a session guest), or its cgroup is
    not visible from this cgroup namespace.
    """
    found = _threads_directory(pid, proc, visible)
    return None if found is None else own_directory(found[1])


def own_directory(threads: Path) -> Path:
    """The guest's own directory, from the one that holds those of its threads."""
    return threads.parent if threads.name == "libvirt" else threads


def threads_directory(own: Path) -> Path:
    """The directory that holds those of a guest's threads, from the guest's own."""
    # Not by Path, which a tick of many guests would spend most of its time on.
    return own / "libvirt" if os.path.isdir(f"{own}/libvirt") else own  # noqa: PTH112


def _threads_directory(pid: int, proc: Path, visible: tuple[Mount, ...] | None) -> tuple[Mount, Path] | None:
    mount = cpu_mount(mounts(proc) if visible is None else visible)
    inside = _path_of(pid, mount, proc) if mount else None
    if mount is None or inside is None:
        return None
    path = PurePosixPath(inside)
    if _THREAD_DIRECTORY.fullmatch(path.name):
        path = path.parent
    if not _GUEST_DIRECTORY.fullmatch(path.parent.name if path.name == "libvirt" else path.name):
        return None
    relative = _below(str(path), mount.root)
    return None if relative is None else (mount, mount.point / relative)


def _path_of(pid: int, mount: Mount, proc: Path) -> str | None:
    for line in (read_permitted(proc / str(pid) / "cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and mount.version == 2) or (mount.version == 1 and "cpu" in controllers.split(",")):
            return path
    return None


def _below(path: str, root: str) -> PurePosixPath | None:
    """`path` relative to the visible `root`; None where it lies outside, which `..` says too."""
    try:
        relative = PurePosixPath(path).relative_to(root)
    except ValueError:
        return None
    return None if ".." in relative.parts else relative


def read(pid: int, proc: Path = Path("/proc"), visible: tuple[Mount, ...] | None = None) -> CgroupCpu | None:
    """The CPU settings of the guest whose QEMU process is `pid`; None as for `guest_directory`.

    `visible` saves parsing the mounts again for every guest.
    """
    found = _threads_directory(pid, proc, visible)
    if found is None or not found[1].is_dir():
        return None
    mount, threads = found
    own = own_directory(threads)
    return CgroupCpu(
        version=mount.version,
        path=own,
        weight=weight(own, mount.version),
        quota_cores=_smallest({quota(own, mount.version), quota(threads, mount.version)}),
        vcpu_quota_cores=tuple(quota(path, mount.version) for path in vcpu_directories(threads)),
        parent_weight=weight(own.parent, mount.version),
    )


def set_weight(directory: Path, version: int, value: int) -> int:
    """Give a group this weight; what the kernel's file holds afterwards. Raises KvmctlError."""
    return int(write_kernel(directory / WEIGHT_FILES[version], str(value)))


def vcpu_directories(threads: Path) -> list[Path]:
    """The directories of a guest's vCPUs in vCPU order, from the one that holds those of its threads."""
    return sorted(threads.glob("vcpu[0-9]*"), key=lambda path: int(path.name.removeprefix("vcpu")))


def _smallest(quotas: set[float | None]) -> float | None:
    return min((quota for quota in quotas if quota is not None), default=None)


def weight(directory: Path, cgroup_version: int) -> int | None:
    """`cpu.shares` or `cpu.weight` of a cgroup directory."""
    return read_int(f"{directory}/{WEIGHT_FILES[cgroup_version]}")


def quota(directory: Path, cgroup_version: int) -> float | None:
    """The CPU quota of one cgroup directory in cores; infinity is none, None is unknown."""
    if cgroup_version == 1:
        amount, period = read_int(directory / "cpu.cfs_quota_us"), read_int(directory / "cpu.cfs_period_us")
    else:
        text = read_permitted(directory / "cpu.max")
        if text is None:
            return None
        first, _, second = text.partition(" ")
        amount, period = -1 if first == "max" else int(first), int(second)
    if amount is None or not period:
        return None
    return math.inf if amount < 0 else amount / period
