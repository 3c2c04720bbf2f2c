"""Paging memory of a guest's QEMU process out to the host's swap, without the guest's help."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from kvmctl.host import cgroup
from kvmctl.host.files import PAGE_SIZE, read_permitted
from kvmctl.model.errors import KvmctlError, NotFoundError, RefusedError, UnreachableError

PROC = Path("/proc")

_PROCESS_MADVISE = 440
"""The number of the system call (Linux 5.10), on x86_64 and aarch64 alike."""
COLD, PAGEOUT = 20, 21
"""MADV_COLD and MADV_PAGEOUT."""
_IOV_MAX = 1024

_SWAPPED = re.compile(r"^VmSwap:\s+(\d+) kB$", re.MULTILINE)
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(?:\[anon:[^\n]*)?$", re.MULTILINE)
"""A line of /proc/PID/maps of private anonymous memory that nothing runs in: TCG's buffer for translated code is
executable, and larger than many a guest."""
_SLACK = 4 << 20
"""Bytes by which the guest's memory as mapped may exceed what it was configured with."""
_LEAST_PART = 16
"""A mapping smaller than this part of the guest's memory is QEMU's own: a heap or a stack."""

_OWN = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw[x-]p \S+ 00:00 0 *(?:\[anon:[^\n]*)?$", re.MULTILINE)
_LEAST_OWN = 2 << 20
"""Bytes of a mapping of QEMU's own from which it is worth a look."""

Range = tuple[int, int]
"""Address and length of some memory of a process, in bytes."""


def swapped(pid: int, proc: Path = PROC) -> int:
    """Bytes of a process's memory that are in swap. Raises NotFoundError where it is gone."""
    found = _SWAPPED.search(read_permitted(proc / str(pid) / "status") or "")
    if found is None:
        raise NotFoundError(f"process {pid} is gone", "look at the guest: kvmctl list")
    return int(found[1]) * 1024


def guest_memory(pid: int, size: int | None = None, proc: Path = PROC) -> tuple[Range, ...]:
    """Where the memory of a guest of `size` bytes is mapped in its QEMU process; without a size, the largest mapping.

    Only private anonymous memory: what is shared, or huge pages, does not swap. Empty where there is none.
    """
    text = read_permitted(proc / str(pid) / "maps") or ""
    found = [(int(first, 16), int(end, 16) - int(first, 16)) for first, end in _MAPPING.findall(text)]
    found.sort(key=lambda mapping: mapping[1], reverse=True)
    if size is None:
        return tuple(found[:1])
    chosen: list[Range] = []
    left = size + _SLACK
    for start, length in found:
        # One mapping as a rule; one for each of the guest's NUMA nodes or memory modules where it has several.
        if left > _SLACK and size // _LEAST_PART <= length <= left:
            chosen.append((start, length))
            left -= length
    return tuple(sorted(chosen))


def own_memory(pid: int, size: int | None = None, proc: Path = PROC) -> tuple[Range, ...]:
    """What QEMU has mapped for itself beside the guest's memory, in pieces that are worth a look: heaps, and what an
    emulated CPU's code was translated to, of which most is run once. Only private anonymous memory."""
    text = read_permitted(proc / str(pid) / "maps") or ""
    guest = set(guest_memory(pid, size, proc))
    found = [(int(first, 16), int(end, 16) - int(first, 16)) for first, end in _OWN.findall(text)]
    return tuple(one for one in found if one not in guest and one[1] >= _LEAST_OWN)


def pageout(pid: int, most_bytes: int, ranges: Sequence[Range], proc: Path = PROC) -> int:
    """Page `ranges` of a process out, in this order and at most `most_bytes` of addresses; the bytes that really went
    to swap meanwhile.

    The kernel leaves pages that several processes have, as merged ones, where they are. Whether a page is in use does
    not matter to it: that the ranges are cold is the caller's to know. Raises NotFoundError where the process is gone,
    UnreachableError for who may not do it, RefusedError where the kernel cannot.
    """
    before = swapped(pid, proc)
    advise(pid, _cut(ranges, most_bytes))
    return max(0, swapped(pid, proc) - before)


def _cut(ranges: Sequence[Range], most_bytes: int) -> list[Range]:
    found = []
    left = most_bytes // PAGE_SIZE * PAGE_SIZE
    for start, length in ranges:
        if left <= 0:
            break
        found.append((start, min(length, left)))
        left -= length
    return found


def advise(pid: int, ranges: Sequence[Range], advice: int = PAGEOUT) -> None:
    """Have the kernel page these ranges out, or look at them early with `COLD`. One that is not mapped any more is
    passed over. Raises as `pageout`."""
    if not ranges:
        return
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise _error(error, pid) from error
    try:
        for first in range(0, len(ranges), _IOV_MAX):
            _advise_batch(process, pid, ranges[first : first + _IOV_MAX], advice)
    finally:
        os.close(process)


def _advise_batch(process: int, pid: int, ranges: Sequence[Range], advice: int) -> None:
    while ranges:
        done = _process_madvise(process, pid, ranges, advice)
        ends = accumulate(length for _start, length in ranges)
        # The kernel stops at a range that it cannot do, and tells how many bytes it has come.
        ranges = ranges[sum(end <= done for end in ends) + 1 :]


def _process_madvise(process: int, pid: int, ranges: Sequence[Range], advice: int) -> int:
    """Bytes advised before the first range that could not be."""
    vector = array("Q", [number for one in ranges for number in one])
    address, _length = vector.buffer_info()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    arguments = (_PROCESS_MADVISE, process, address, len(ranges), advice, 0)
    done: int = libc.syscall(*map(ctypes.c_long, arguments))
    if done >= 0:
        return done
    number = ctypes.get_errno()
    if number in (errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EINVAL):
        return 0
    raise _error(OSError(number, os.strerror(number)), pid)


def _error(error: OSError, pid: int) -> KvmctlError:
    what = f"memory of process {pid} cannot be paged out: {error.strerror}"
    if error.errno == errno.ESRCH:
        return NotFoundError(f"process {pid} is gone", "look at the guest: kvmctl list")
    if error.errno == errno.EPERM:
        return UnreachableError(what, "run this as root")
    if error.errno == errno.ENOSYS:
        return RefusedError(what, "this needs Linux 5.10 or later")
    return KvmctlError(what)


def reclaim_file(pid: int, proc: Path = PROC, visible: tuple[cgroup.Mount, ...] | None = None) -> Path | None:
    """The file by which the kernel is asked to reclaim memory of the guest's control group by its own choice; None
    with cgroup v1 and before Linux 5.19."""
    mounts = cgroup.mounts(proc) if visible is None else visible
    # A unified hierarchy beside v1's has no memory controller, and no such file.
    own = cgroup.guest_directory(pid, proc, tuple(mount for mount in mounts if mount.version == 2))
    path = own / "memory.reclaim" if own else None
    return path if path and path.exists() else None


def reclaim(pid: int, most_bytes: int, file: Path, proc: Path = PROC) -> int:
    """Have the kernel reclaim memory of a guest's control group, of what it takes for cold, merged pages too; the
    bytes of it that went to swap. Raises NotFoundError where the guest is gone, KvmctlError where the kernel refuses.
    """
    before = swapped(pid, proc)
    try:
        # Anonymous memory, not what the page cache has of its disks. Linux before 6.11 has no such wish.
        taken = _ask(file, f"{most_bytes} swappiness=200")
        if not taken:
            _ask(file, str(most_bytes))
    except FileNotFoundError as error:
        raise NotFoundError(f"{file.parent} is gone", "look at the guest: kvmctl list") from error
    except OSError as error:
        hint = "run this as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise KvmctlError(f"the kernel did not reclaim from {file.parent}: {error.strerror}", hint) from error
    return max(0, swapped(pid, proc) - before)


def _ask(file: Path, wish: str) -> bool:
    """Whether the kernel knows such a wish; that it found less to reclaim is no failure."""
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, wish.encode())
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno not in (errno.EAGAIN, errno.EINTR):
            raise
    finally:
        os.close(descriptor)
    return True
