"""What this host swaps to: its areas, zram, zswap and swappiness; and the system calls that switch an area on and off.

An area that kvmctl made bears its name as the label of its header, so it is known again after a reboot too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host.files import PAGE_SIZE, first_bytes, read_int, read_permitted
from kvmctl.model.errors import KvmctlError, RefusedError, UnreachableError

ROOT = Path("/")
KIND = "swap"
"""The kind of these entries in the journal."""
PRIORITY = 100
"""Areas of higher priority are filled first; the kernel gives those without one negative numbers."""
LABEL = b"kvmctl"

_MAGIC = b"SWAPSPACE2"
_HEADER = struct.Struct("=III16s16s")
"""At byte 1024: version, last page, number of bad pages, UUID, label (include/linux/swap.h)."""
_HEADER_AT = 1024
_SWAP_FLAG_PREFER = 0x8000
_ESCAPE = re.compile(r"\\([0-7]{3})")
_ZSWAP = re.compile(r"^(Zswap|Zswapped):\s+(\d+) kB$", re.MULTILINE)
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Zram:
    """A compressed disk in memory; bytes. `used` is what it takes of the host's memory for `stored`, `compressed` of
    it being data."""

    size: int
    algorithm: str
    stored: int
    compressed: int
    used: int


@dataclass(frozen=True, slots=True)
class Zswap:
    """The compressed pool before the swap areas; bytes, None where the kernel does not tell."""

    enabled: bool
    compressor: str | None
    max_pool_percent: int | None
    stored: int | None
    pool: int | None


@dataclass(frozen=True, slots=True)
class Area:
    """One area that the kernel swaps to; bytes. `kind` is `zram`, `partition` or `file`."""

    name: str
    kind: str
    size: int
    used: int
    priority: int
    uuid: str | None
    """From the header; None where this user may not read it."""
    ours: bool
    zram: Zram | None = None


def areas(root: Path = ROOT) -> tuple[Area, ...]:
    """What the kernel swaps to, in the order in which it lists them."""
    found = []
    for line in (read_permitted(root / "proc/swaps") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 5:
            continue
        name = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[0])
        kind = "zram" if re.fullmatch(r"/dev/zram\d+", name) else fields[1]
        label, uuid = header(root / name.lstrip("/"))
        found.append(
            Area(
                name=name,
                kind=kind,
                size=int(fields[2]) * 1024,
                used=int(fields[3]) * 1024,
                priority=int(fields[4]),
                uuid=uuid,
                # Another file may lie where one was that is swapped to and deleted.
                ours=label == LABEL and not name.endswith(_DELETED),
                zram=zram(Path(name).name, root) if kind == "zram" else None,
            )
        )
    return tuple(found)


def zram(device: str, root: Path = ROOT) -> Zram | None:
    """The figures of `zram0`; None where there is no such device."""
    folder = root / "sys/block" / device
    size = read_int(folder / "disksize")
    if size is None:
        return None
    figures = [int(word) for word in (read_permitted(folder / "mm_stat") or "").split()] or [0, 0, 0]
    chosen = re.search(r"\[([^]]+)\]", read_permitted(folder / "comp_algorithm") or "")
    return Zram(size, chosen[1] if chosen else "", *figures[:3])


def zswap(root: Path = ROOT) -> Zswap | None:
    """The compressed pool; None where this kernel has none. Its figures are from debugfs, else /proc/meminfo."""
    parameters = root / "sys/module/zswap/parameters"
    enabled = read_permitted(parameters / "enabled")
    if enabled is None:
        return None
    debug = root / "sys/kernel/debug/zswap"
    pages, pool = read_int(debug / "stored_pages"), read_int(debug / "pool_total_size")
    known = {name: int(kib) * 1024 for name, kib in _ZSWAP.findall(read_permitted(root / "proc/meminfo") or "")}
    compressor = read_permitted(parameters / "compressor")
    return Zswap(
        enabled=enabled.strip() in ("Y", "1"),
        compressor=compressor.strip() if compressor else None,
        max_pool_percent=read_int(parameters / "max_pool_percent"),
        stored=known.get("Zswapped") if pages is None else pages * PAGE_SIZE,
        pool=known.get("Zswap") if pool is None else pool,
    )


def swappiness(root: Path = ROOT) -> int | None:
    """How readily the kernel swaps instead of dropping page cache: 0 to 200, 60 unless set."""
    return read_int(root / "proc/sys/vm/swappiness")


def header(path: Path) -> tuple[bytes | None, str | None]:
    """Label and UUID of the swap header of a file or device; None, None where it has none or cannot be read."""
    try:
        found = first_bytes(path, PAGE_SIZE)
    except KvmctlError:
        return None, None
    if len(found) < PAGE_SIZE or not found.endswith(_MAGIC):
        return None, None
    _version, _last, _bad, uuid, label = _HEADER.unpack_from(found, _HEADER_AT)
    return label.rstrip(b"\0"), uuid.hex()


def write_header(file: int, size: int, uuid: str) -> None:
    """Make an open file or device of `size` bytes a swap area of ours. Raises OSError."""
    page = bytearray(PAGE_SIZE)
    _HEADER.pack_into(page, _HEADER_AT, 1, size // PAGE_SIZE - 1, 0, bytes.fromhex(uuid), LABEL)
    page[-len(_MAGIC) :] = _MAGIC
    os.pwrite(file, page, 0)
    os.fsync(file)


def swapon(path: Path, priority: int = PRIORITY) -> None:
    """Have the kernel swap to a file or device. Raises RefusedError where its file system cannot be swapped to,
    UnreachableError for who may not, KvmctlError for what else the kernel says."""
    number = _call("swapon", os.fsencode(path), _SWAP_FLAG_PREFER | priority)
    if number in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
        raise RefusedError(
            f"the kernel cannot swap to {path}: {os.strerror(number)}", "choose another file system, or use --zram"
        )
    _raise(number, f"the kernel does not swap to {path}")


def swapoff(path: Path) -> None:
    """Have the kernel read all back that is in an area, and use it no more. Raises as `swapon`; RefusedError where
    memory does not suffice after all. What was an area no more is no error."""
    number = _call("swapoff", os.fsencode(path))
    if number == errno.ENOMEM:
        raise RefusedError(
            f"what is swapped to {path} does not fit in memory", "stop or shrink a guest first, or enable another area"
        )
    if number != errno.EINVAL:
        _raise(number, f"swapping to {path} does not end")


def _raise(number: int, what: str) -> None:
    if number == errno.EPERM:
        raise UnreachableError(f"{what}: {os.strerror(number)}", "run this as root")
    if number:
        raise KvmctlError(f"{what}: {os.strerror(number)}")


def _call(name: str, *arguments: bytes | int) -> int:
    """The error number of a call of the C library; 0 is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    return ctypes.get_errno() if function(*arguments) else 0
