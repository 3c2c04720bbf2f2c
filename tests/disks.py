"""Guests with disks whose content tells one state from another."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import Kvmctl
from tests.support import Guest

Names = Callable[..., str]
PATTERN_BYTES = 64 << 10


def define(
    kvmctl: Kvmctl,
    name: str,
    pool: str,
    folder: Path,
    state: str = "stopped",
    formats: Sequence[str] = ("qcow2",),
    more: str = "",
) -> list[Path]:
    """A guest of 64 MiB with a disk of 4 MiB of each format, in the pool; the images."""
    volumes = [f"{name}-{index}.{form}" for index, form in enumerate(formats)]
    disks = ", ".join(
        f"{{volume: {volume}, pool: {pool}, size: 4MiB, format: {form}}}"
        for volume, form in zip(volumes, formats, strict=True)
    )
    text = f"{{name: {name}, accelerator: tcg, memory: {{size: 64MiB}}, state: {state}, disks: [{disks}]{more}}}"
    kvmctl("apply", "-f", "-", stdin=f"guests: [{text}]\n")
    return [folder / volume for volume in volumes]


def disk(guest: Guest, index: int = 0) -> Path:
    """The image that the guest writes to."""
    from kvmctl.control.snapshots import facts_of

    return Path(facts_of(guest.domain).disks[index].path or "")


def form(path: Path) -> str:
    return "qcow2" if path.read_bytes()[:4] == b"QFI\xfb" else "raw"


def write(path: Path, value: int, at: int = 0) -> None:
    """Fill 64 KiB of an image that nobody has open with one byte, `at` times that far from its beginning."""
    _io(path, f"write -q -P {value} {at * PATTERN_BYTES} {PATTERN_BYTES}")


def holds(path: Path, value: int, at: int = 0) -> bool:
    """Whether those 64 KiB of an image, which may be open, are that byte."""
    done = _io(path, f"read -q -P {value} {at * PATTERN_BYTES} {PATTERN_BYTES}", "-U", "-r", check=False)
    return "verification failed" not in done and "error" not in done.lower()


def _io(path: Path, command: str, *options: str, check: bool = True) -> str:
    done = subprocess.run(
        ["qemu-io", *options, "-f", form(path), "-c", command, str(path)], capture_output=True, text=True, check=check
    )
    return done.stdout + done.stderr


def write_live(guest: Guest, value: int, at: int = 0) -> None:
    """The same of the first disk of a guest that has a process, as its own writes would go."""
    import libvirt_qemu

    device = "/machine/peripheral/virtio-disk0/virtio-backend"
    # Without the flush QEMU has the image's tables in its memory alone.
    for action in (f"write -q -P {value} {at * PATTERN_BYTES} {PATTERN_BYTES}", "flush"):
        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        said = libvirt_qemu.qemuMonitorCommand(guest.domain, f'qemu-io -d {device} "{action}"', flags)
        assert not said.strip(), said
