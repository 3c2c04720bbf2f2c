"""A zram device to swap to: chosen, set up, and given back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmctl.host import memory, swap
from kvmctl.host.files import read_int, read_permitted, write_kernel
from kvmctl.model.errors import KvmctlError, RefusedError
from kvmctl.model.units import human_size

MOST_RATIO = 4
"""zram larger than so many times the host's memory could not be filled: nothing compresses that well."""
ALGORITHMS = ("zstd", "lz4")
"""In order of preference: zstd keeps more in the same memory, lz4 takes less time than it and than the kernel's own."""

_MODPROBE_SECONDS = 30.0


def check(size: int, root: Path) -> None:
    """Raise RefusedError where zram of `size` bytes makes no sense on this host."""
    total = memory.read(root).total
    if total and size > MOST_RATIO * total:
        raise RefusedError(
            f"zram of {human_size(size)} is more than {MOST_RATIO} times this host's {human_size(total)} of memory, "
            "where what it holds has to fit in when it is compressed",
            f"at most {human_size(MOST_RATIO * total)}; as much as there is memory is usual",
        )


def load(root: Path) -> None:
    """Have the kernel offer zram. Raises RefusedError where it has none."""
    control = root / "sys/class/zram-control"
    modprobe = shutil.which("modprobe", path=f"{os.defpath}:/usr/sbin:/sbin")
    if not control.is_dir() and modprobe:
        # What it says does not matter: the folder is what counts.
        with suppress(OSError, subprocess.TimeoutExpired):
            command = [modprobe, "zram"]
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MODPROBE_SECONDS, check=False
            )
    if not control.is_dir():
        raise RefusedError(
            "this kernel has no zram, not as a module either",
            "kvmctl swap enable --file PATH SIZE, or boot a kernel with CONFIG_ZRAM",
        )


def free_device(root: Path) -> tuple[str, bool]:
    """A device that nobody has set up, such as `zram0`, and whether it was added for this. Raises KvmctlError."""
    for folder in sorted((root / "sys/block").glob("zram*")):
        if read_int(folder / "disksize") == 0:
            return folder.name, False
    number = read_int(root / "sys/class/zram-control/hot_add")
    if number is None:
        raise KvmctlError("the kernel adds no zram device", "run this as root")
    return f"zram{number}", True


def fill(device: str, size: int, uuid: str, root: Path) -> None:
    """Set the device up with a swap header. Raises KvmctlError, also where another program did so meanwhile."""
    folder, node = root / "sys/block" / device, root / "dev" / device
    offered = (read_permitted(folder / "comp_algorithm") or "").replace("[", " ").replace("]", " ").split()
    if chosen := next((name for name in ALGORITHMS if name in offered), ""):
        write_kernel(folder / "comp_algorithm", chosen)
    write_kernel(folder / "disksize", str(size))
    try:
        file = os.open(node, os.O_RDWR)
        try:
            swap.write_header(file, size, uuid)
        finally:
            os.close(file)
    except OSError as error:
        raise KvmctlError(f"cannot write to {node}: {error.strerror}", "look whether /dev is the kernel's") from error


def give_back(device: str, data: Mapping[str, Any], root: Path) -> None:
    """Reset the device if it is still the one that `data` tells of, and take it away if it was added for kvmctl.

    Raises KvmctlError where it is in use.
    """
    folder = root / "sys/block" / device
    found = swap.zram(device, root)
    if found is None:
        return
    uuid = swap.header(root / "dev" / device)[1]
    # Set up and without a header yet: nothing has been written to it.
    begun = uuid is None and found.stored == 0 and found.size == data["size"]
    if found.size and (uuid == data["uuid"] or begun):
        _write(folder / "reset", "1")
    if data["added"] and read_int(folder / "disksize") == 0:
        _write(root / "sys/class/zram-control/hot_remove", device.removeprefix("zram"))


def _write(path: Path, value: str) -> None:
    """To a file that cannot be read back."""
    try:
        path.write_text(value)
    except OSError as error:
        raise KvmctlError(
            f"the kernel did not take {value!r} for {path}: {error.strerror}",
            "look who has it open: fuser -v /dev/zram*",
        ) from error
