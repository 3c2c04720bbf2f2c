"""QEMU processes: which one is which guest's, and what the kernel says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kvmctl.host import cgroup
from kvmctl.host.files import PAGE_SIZE, read_figures, read_int, read_permitted, write_kernel
from kvmctl.model.host_sample import ProcessSample

_PROC = Path("/proc")
_STATUS_FIGURE = re.compile(rb"^(VmRSS|VmSwap|VmPTE|VmLck|VmPin|HugetlbPages):\s+(\d+) kB$", re.MULTILINE)
_KSM_FIGURE = re.compile(rb"^(ksm_merging_pages|ksm_process_profit|ksm_rmap_items) (-?\d+)$", re.MULTILINE)
_RMAP_ITEM = 64
"""Bytes that the kernel keeps for each page it follows; its own `ksm_process_profit` counts them so."""


def find_guests(uuids: Iterable[str], proc: Path = _PROC) -> dict[str, int]:
    """The QEMU process of each guest, by UUID, from one scan of all processes; absent where none runs.

    Any user may start a program that bears a guest's UUID, or a migration may run both its ends here:
    where several do, the one in a guest's control group is taken, which only libvirt can have made.
    """
    wanted = {uuid.lower(): uuid for uuid in uuids}
    found: dict[str, list[int]] = {}
    for directory in proc.iterdir() if wanted else ():
        if directory.name.isdigit() and (uuid := wanted.get(_uuid_of(directory))):
            found.setdefault(uuid, []).append(int(directory.name))
    visible = cgroup.mounts(proc) if any(len(pids) > 1 for pids in found.values()) else ()
    return {uuid: _likeliest(pids, proc, visible) for uuid, pids in found.items()}


def _uuid_of(directory: Path) -> str:
    arguments = (read_permitted(directory / "cmdline") or "").split("\0")
    try:
        return arguments[arguments.index("-uuid", 1) + 1].lower()
    except (ValueError, IndexError):
        return ""


def _likeliest(pids: list[int], proc: Path, visible: tuple[cgroup.Mount, ...]) -> int:
    ordered = sorted(pids)
    if len(ordered) == 1:
        return ordered[0]
    return next((pid for pid in ordered if cgroup.guest_directory(pid, proc, visible)), ordered[0])


def memory_of(pid: int, proc: Path = _PROC) -> ProcessSample | None:
    """What the kernel says of the memory of one guest's process; None when it is gone.

    From `status` and `ksm_stat`: `smaps_rollup` walks all page tables, which takes long on a large guest.
    """
    directory = f"{proc}/{pid}"
    status = read_figures(f"{directory}/status")
    if status is None:
        return None
    sizes = {name: int(kib) * 1024 for name, kib in _STATUS_FIGURE.findall(status)}
    merging, profit = _ksm(directory)
    # After the name, which may hold anything, the tenth field is the number of major faults.
    fields = (read_figures(f"{directory}/stat") or b"").rpartition(b")")[2].split()
    return ProcessSample(
        pid=pid,
        rss=sizes.get(b"VmRSS"),
        swapped=sizes.get(b"VmSwap"),
        ksm_merging_pages=merging,
        ksm_process_profit=profit,
        page_tables=sizes.get(b"VmPTE"),
        oom_score_adj=oom_score_adj(pid, proc),
        major_faults=int(fields[9]) if len(fields) > 9 else None,
        # Which of both a device's driver counts in depends on the kernel.
        locked=max(sizes.get(b"VmLck", 0), sizes.get(b"VmPin", 0)),
        hugetlb=sizes.get(b"HugetlbPages"),
    )


def oom_score_adj(pid: int, proc: Path = _PROC) -> int | None:
    """What the kernel adds to the badness of the process when memory has run out; None where it is gone."""
    return read_int(f"{proc}/{pid}/oom_score_adj")


def set_oom_score_adj(pid: int, value: int, proc: Path = _PROC) -> int:
    """Set that; what the kernel has afterwards. Raises KvmctlError."""
    return int(write_kernel(proc / str(pid) / "oom_score_adj", str(value)))


def sample(pid: int, proc: Path = _PROC, visible: tuple[cgroup.Mount, ...] | None = None) -> ProcessSample | None:
    """What the kernel says of one guest's process and control group; None when it is gone.

    `visible` are the cgroup mounts, which a caller with many guests reads once.
    """
    found = memory_of(pid, proc)
    cpu = cgroup.read(pid, proc, visible) if found else None
    return replace(found, weight=cpu.weight, quota=cpu.quota_cores) if found and cpu else found


def _ksm(directory: str) -> tuple[int | None, int | None]:
    """`ksm_merging_pages` and `ksm_process_profit`; Linux before 6.4 has the former in a file of its own,
    and the latter's formula is profit = merging · page size - rmap items · 64."""
    found = _KSM_FIGURE.findall(read_figures(f"{directory}/ksm_stat") or b"")
    figures = {name: int(value) for name, value in found}
    merging = figures.get(b"ksm_merging_pages")
    if merging is None:
        merging = read_int(f"{directory}/ksm_merging_pages")
    profit = figures.get(b"ksm_process_profit")
    if profit is None and merging is not None and b"ksm_rmap_items" in figures:
        profit = merging * PAGE_SIZE - figures[b"ksm_rmap_items"] * _RMAP_ITEM
    return merging, profit
