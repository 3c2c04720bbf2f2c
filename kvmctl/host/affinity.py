"""Which CPUs the threads of a guest's QEMU may run on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from kvmctl.host.files import read_permitted

_PROC = Path("/proc")


def gather(pid: int, proc: Path = _PROC) -> None:
    """Let the emulator's other threads run where its main thread may, which libvirt has pinned.

    libvirt moves them with their control group alone, and since Linux 6.2 a thread that had inherited a narrower
    affinity keeps to that in a wider group. A vCPU or I/O thread has a group of its own; what has gone is left.
    """
    group = read_permitted(proc / str(pid) / "cgroup")
    with suppress(OSError):
        allowed = os.sched_getaffinity(pid)
        for task in (proc / str(pid) / "task").iterdir():
            if read_permitted(task / "cgroup") == group and not _runs_vcpu(task):
                os.sched_setaffinity(int(task.name), allowed)


def _runs_vcpu(task: Path) -> bool:
    """Whether it runs a vCPU, by the name that QEMU gives it: without control groups nothing else tells them apart."""
    return (read_permitted(task / "comm") or "").startswith("CPU ")
