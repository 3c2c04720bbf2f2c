"""Writing to /sys/bus/pci with deadlines, and what drivers a device has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from kvmctl.host.files import read_permitted
from kvmctl.model.errors import KvmctlError, NotFoundError, RefusedError, TimedOutError, UnreachableError
from kvmctl.model.pci import NO_DRIVER, VFIO

ROOT = Path("/")
DEVICES = "sys/bus/pci/devices"
DRIVERS = "sys/bus/pci/drivers"
WRITE_SECONDS = 30.0
"""A driver may have to wait for its device, and network cards with many virtual functions take seconds."""
_MODPROBE_SECONDS = 30.0
_UNSET = "(null)"
_NVME_ADMIN = 0xC0484E41
"""NVME_IOCTL_ADMIN_CMD, for a structure of 72 bytes."""
_NVME_MILLISECONDS = 30_000


def link(path: Path) -> str | None:
    """The name of what a link of the kernel's leads to; None where there is none."""
    try:
        return path.readlink().name
    except OSError:
        return None


class Kernel:
    """The kernel's PCI files below `root`, written with deadlines."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def write(self, path: str, value: str, seconds: float = WRITE_SECONDS) -> None:
        """Write `value` to a file below the root.

        Raises KvmctlError with the kernel's reason, UnreachableError where that is missing permission, TimedOutError
        where it has not answered in time: it may still do what was asked.
        """
        target = self.root / path
        if not target.exists():
            raise NotFoundError(f"{target} is not there", "kvmctl pci list shows the devices that are")
        code, said = _write(target, value, seconds)
        if code:
            reason = said.rpartition(": ")[2].strip() or f"the writer ended with {code}"
            denied = "denied" in reason or "not permitted" in reason
            kind, hint = (UnreachableError, "run this as root") if denied else (KvmctlError, "dmesg may tell more")
            raise kind(f"the kernel did not take {value.strip()!r} for {target}: {reason}", hint)

    def nvme_admin(self, name: str, code: int, word10: int, word11: int, length: int) -> bytes:
        """Send an admin command to the NVMe controller /dev/`name`; the `length` bytes that it answers. Raises
        KvmctlError."""
        return _nvme_admin(self.root / "dev" / name, code, word10, word11, length)

    def load_vfio(self) -> None:
        """Have the driver vfio-pci in the kernel. Raises RefusedError where it cannot be."""
        driver = self.root / DRIVERS / VFIO
        if driver.is_dir():
            return
        said = _modprobe(VFIO) if self.root == ROOT else ""
        if not driver.is_dir():
            raise RefusedError(
                f"this kernel has no driver {VFIO}" + (f": {said}" if said else ""),
                "boot a kernel that has it: on Debian linux-image-amd64, whose modules are all there",
            )


def _write(target: Path, value: str, seconds: float) -> tuple[int, str]:
    """The exit code of the writer, and what it complained of.

    A driver that does not let go of its device holds whoever asks it to, and no signal ends that. So a process of
    its own asks, in a session that the user's interrupt does not reach either.
    """
    import subprocess

    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
    writer = subprocess.Popen(
        ["tee", str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        _out, said = writer.communicate(value.encode(), seconds)
    except subprocess.TimeoutExpired:
        writer.kill()  # some drivers wait so that this ends it, and then give up in good order
        for pipe in (writer.stdin, writer.stderr):
            if pipe:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            writer.wait(0.1)
        raise TimedOutError(
            f"the kernel has not answered within {seconds:g} s to {value.strip()!r} for {target}",
            "see what its driver waits for: dmesg; it may still be done later",
        ) from None
    return writer.returncode, said.decode(errors="replace").strip()


def _nvme_admin(device: Path, code: int, word10: int, word11: int, length: int) -> bytes:
    """One command by ioctl (struct nvme_admin_cmd of include/uapi/linux/nvme_ioctl.h)."""
    import ctypes
    import fcntl
    import struct

    answer = ctypes.create_string_buffer(max(1, length))
    address = ctypes.addressof(answer) if length else 0
    words = (code, 0, 0, 0, 0, 0, 0, address, 0, length, word10, word11, 0, 0, 0, 0, _NVME_MILLISECONDS, 0)
    command = bytearray(struct.pack("<BBHIIIQQIIIIIIIIII", *words))
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            status = fcntl.ioctl(descriptor, _NVME_ADMIN, command)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KvmctlError(f"{device} did not take a command: {error.strerror}", "dmesg may tell more") from error
    if status:
        raise KvmctlError(f"{device} refused command {code:#04x} with status {status:#06x}", "dmesg may tell more")
    return answer.raw[:length]


def _modprobe(module: str) -> str:
    """Load a kernel module; what was said where that failed."""
    import subprocess

    try:
        done = subprocess.run(
            ["modprobe", module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_MODPROBE_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"modprobe cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"modprobe {module} has not ended within {_MODPROBE_SECONDS:g} s"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if done.returncode and said else ""


def exists(address: str, root: Path = ROOT) -> bool:
    """Whether there is such a device."""
    return (root / DEVICES / address).is_dir()


def driver(address: str, root: Path = ROOT) -> str:
    """The driver that has the device, or `none`. Raises NotFoundError where there is no such device (any more)."""
    if not exists(address, root):
        raise NotFoundError(f"there is no PCI device {address}", "kvmctl pci list shows the devices")
    try:
        return (root / DEVICES / address / "driver").readlink().name
    except OSError:
        return NO_DRIVER


def override(address: str, root: Path = ROOT) -> str:
    """The driver that somebody has ordered for the device; empty where nobody has."""
    text = (read_permitted(root / DEVICES / address / "driver_override") or "").strip()
    return "" if text == _UNSET else text
