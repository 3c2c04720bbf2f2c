"""Snapshots and backups of a Linux guest that writes to its disk all the time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor.connection import Hypervisor
from tests import disks
from tests.conftest import Kvmctl
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

Pool = tuple[str, Path]

WRITER = (
    "(n=0; while :; do if [ -e /run/frozen ]; then : >/run/idle; usleep 10000; else rm -f /run/idle; n=$((n + 1)); "
    "echo $n | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; echo $n >/run/new; mv /run/new /run/n; fi; done) &"
)
"""Counts on the disk's first sector, and notes in memory what is there by now."""


@pytest.fixture
def writing(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
    pool: Pool,
) -> tuple[Guest, Console]:
    name = make_name("writer")
    kvmctl(
        "apply",
        "-f",
        "-",
        stdin=f"guests:\n  - name: {name}\n    accelerator: {accelerator}\n"
        "    memory: {size: 256MiB}\n    agent: true\n"
        f"    disks: [{{volume: {name}.qcow2, pool: {pool[0]}, size: 1MiB}}]\n"
        f"    boot: {{kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet}}\n",
    )
    guest = Guest(hypervisor, name)
    line = console(guest)
    line.ready()
    line.run(WRITER)
    return guest, line


def counted(image: Path, tmp_path: Path) -> int:
    """What the guest had written to that image."""
    raw = tmp_path / "raw"
    command = ["qemu-img", "convert", "-U", "-f", disks.form(image), "-O", "raw", str(image), str(raw)]
    subprocess.run(command, check=True)
    return int(raw.read_bytes()[:512].rstrip(b"\0"))


def now(line: Console) -> int:
    # The file is not there before the first.
    return int(line.run("cat /run/n 2>/dev/null || echo 0"))


def test_each_image_holds_the_moment_that_it_is_of(
    kvmctl: Kvmctl, writing: tuple[Guest, Console], folder: Path, tmp_path: Path
) -> None:
    guest, line = writing
    base = disks.disk(guest)
    until(lambda: now(line), lambda n: n > 3, 30, "the counter")
    moments = [now(line)]
    assert "no agent" in kvmctl("snapshot", "create", guest.name, "s", "--disk-only").err
    images = [base]
    for option in ([], ["--incremental"]):
        moments.append(now(line))
        id_ = kvmctl("backup", guest.name, folder, *option, "-o", "name").out.strip()
        images.append(folder / guest.name / id_ / "disks/vda.qcow2")
    moments.append(now(line))
    for image, before, after in zip(images, moments, moments[1:], strict=False):
        # The guest had written one more than it has noted, at most.
        assert before <= counted(image, tmp_path) <= after + 1
    # It writes on, and the merge loses nothing of it.
    kvmctl("snapshot", "delete", guest.name, "s", "--yes")
    assert disks.disk(guest) == base
    merged = now(line)
    until(lambda: now(line), lambda n: n > merged + 3, 30, "the counter")
    line.run(": >/run/frozen; while [ ! -e /run/idle ]; do usleep 1000; done")
    assert counted(base, tmp_path) == now(line)


def test_memory_and_disk_go_back_to_one_moment(
    kvmctl: Kvmctl, writing: tuple[Guest, Console], console: Callable[[Guest], Console]
) -> None:
    guest, line = writing
    assert "memory and its disks" in kvmctl("snapshot", "create", guest.name, "m").err
    taken = now(line)
    until(lambda: now(line), lambda n: n > taken + 100, 120, "the counter")
    late = now(line)
    said = kvmctl("snapshot", "revert", guest.name, "m", "--yes")
    assert "and running" in said.err
    again = console(guest)
    again.ready()
    again.run(": >/run/frozen; while [ ! -e /run/idle ]; do usleep 1000; done")
    back = now(again)
    assert back < late
    again.run("sync; echo 3 >/proc/sys/vm/drop_caches")
    on_disk = again.run("dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\000'")
    assert int(on_disk) == back
