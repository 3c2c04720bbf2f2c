"""`kvmctl events` of what a Linux guest does by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl, environment
from tests.following import Follower
from tests.support import PREFIX, Console, Guest

pytestmark = pytest.mark.booted


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """An image of 64 MiB on a file system that has 1 MiB."""
    folder = Path("/var/lib/libvirt") / f"{PREFIX}small-{os.getpid()}"
    folder.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "tmpfs", folder], check=True)
    try:
        image = folder / "disk.raw"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        yield image
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def test_balloon_io_error_reboot_and_power_off(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
    small_disk: Path,
    state: Path,
    tmp_path: Path,
) -> None:
    guest = Guest(hypervisor, make_name("events"))
    file = tmp_path / "guests.yaml"
    file.write_text(
        f"guests:\n- name: {guest.name}\n  accelerator: {accelerator}\n  memory: {{size: 256MiB, max: 320MiB}}\n"
        f"  boot: {{kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet}}\n"
        f"  disks: [{{path: {small_disk}}}]\n  nics: []\n"
    )
    words = ("--kind", "lifecycle,balloon,io-error,reboot", "-o", "json", guest.name)
    with Follower(tmp_path, environment(state, tmp_path / "run"), *words) as following:
        assert f"no guest on {hypervisor.uri} is named {guest.name!r} yet" in following.err
        kvmctl("apply", "-f", file)
        assert following.find("defined")["detail"] == "new"
        line = console(guest)
        line.ready()
        kvmctl("set", guest.name, "memory.size=192MiB")
        assert following.find("balloon", "192MiB")["balloon"] == 192 << 20
        os.write(line.file, b"! dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync\n")
        told = following.find("io-error")
        assert told["reason"] == "enospc"
        assert told["path"] == str(small_disk)
        assert told["detail"].endswith("the guest is paused")
        following.find("paused", "I/O error")
        guest.domain.reset()
        following.find("reboot")
        kvmctl("resume", guest.name)
        line.ready()
        os.write(line.file, b"! poweroff -f\n")
        following.find("stopping", "shut down by the guest")
        following.find("stopped", "shut down")
        assert following.end() == 130
