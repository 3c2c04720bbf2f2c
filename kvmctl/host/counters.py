"""What a guest's threads have run and waited, read from the kernel itself: all guests at one moment.

libvirt tells the same, and takes seconds for it on a busy host, so that nobody knows which moment its figures are of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvmctl.host import cgroup
from kvmctl.host.cgroup import Mount
from kvmctl.host.files import read_figures, read_int, read_permitted

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the kernel keeps what it knows of one run of a guest; it stays the same until a vCPU comes or goes."""

    pid: int
    directory: Path
    """The guest's own directory of the CPU hierarchy."""
    version: int
    usage: Path
    """The file with the CPU that all of the guest's threads have used."""
    vcpus: tuple[Path, ...]
    """The `schedstat` of each vCPU's thread, in vCPU order."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Nanoseconds since the guest was started; what each vCPU waited is the time it was runnable and not running."""

    cpu_time: int
    vcpu_time: tuple[int, ...]
    vcpu_delay: tuple[int, ...]


def place(pid: int, visible: tuple[Mount, ...], proc: Path = _PROC) -> Place | None:
    """Where to look for the guest whose QEMU process is `pid`; None as for `cgroup.guest_directory`."""
    mount, own = cgroup.cpu_mount(visible), cgroup.guest_directory(pid, proc, visible)
    if mount is None or own is None:
        return None
    tasks = "tasks" if mount.version == 1 else "cgroup.threads"
    groups = cgroup.vcpu_directories(cgroup.threads_directory(own))
    threads = [(read_permitted(group / tasks) or "").split() for group in groups]
    files = tuple(proc / str(pid) / "task" / found[0] / "schedstat" for found in threads if found)
    return Place(pid, own, mount.version, _usage(own, mount, visible), files)


def _usage(own: Path, mount: Mount, visible: tuple[Mount, ...]) -> Path:
    """On v1 libvirt makes its groups in the hierarchies that it uses, which on a hybrid host may be the unified one
    and not cpuacct's."""
    inside = own.relative_to(mount.point)
    files = [each.point / inside / "cpuacct.usage" for each in visible if "cpuacct" in each.controllers]
    files += [each.point / inside / "cpu.stat" for each in visible if each.version == 2]
    return next((file for file in files if file.exists()), own / "cpu.stat")


def read(found: Place) -> Counters | None:
    """The counters now; None where the guest, or one of its vCPUs, is gone."""
    used = _microseconds(found.usage) if found.usage.name == "cpu.stat" else read_int(found.usage)
    threads = [(read_figures(file) or b"").split() for file in found.vcpus]
    if used is None or not all(len(fields) >= 2 for fields in threads):
        return None
    return Counters(used, tuple(int(f[0]) for f in threads), tuple(int(f[1]) for f in threads))


def _microseconds(file: Path) -> int | None:
    lines = (line.split() for line in (read_figures(file) or b"").splitlines())
    return next((int(words[1]) * 1000 for words in lines if words[:1] == [b"usage_usec"]), None)
