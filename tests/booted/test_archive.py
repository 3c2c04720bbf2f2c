"""A booted Linux guest that counts goes into a file with its memory, and counts on: here, and on another host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl, environment
from tests.hosts import PrivateHost, private_host
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

URI = "qemu:///system"
SECTOR, FAR = 512, 32 << 20
"""Bytes of a block, and where the guest writes the second of its two."""


@pytest.fixture
def guest(
    hypervisor: Hypervisor,
    make_name: Callable[..., str],
    micro: MicroGuest,
    accelerator: str,
    pool: tuple[str, Path],
) -> Guest:
    """A running guest with a disk, kernel and initial RAM disk."""
    name, image = make_name("moving"), pool[1] / "moving.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    text = (
        f"<domain type='{'kvm' if accelerator == 'kvm' else 'qemu'}'><name>{name}</name>"
        "<memory unit='MiB'>256</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{micro.kernel}</kernel>"
        f"<initrd>{micro.initrd}</initrd><cmdline>console=ttyS0 quiet</cmdline></os><features><acpi/></features>"
        f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>"
        "<target dev='vda' bus='virtio'/></disk><serial type='pty'/><memballoon model='virtio'/>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"
    )
    domains.start(domains.define(hypervisor, name, text))
    return Guest(hypervisor, name)


def count(line: Console) -> int:
    """How far it has counted, which only its memory knows."""
    found = re.findall(r"^(\d+)$", line.run("cat /run/count"), re.MULTILINE)
    assert found
    return int(found[-1])


def begin(line: Console) -> None:
    """Count in memory, and write each number to the one block of the disk, then to the other."""
    line.ready()
    block = "printf '%-512s' $n | dd of=/dev/vda bs=512 count=1 conv=notrunc,fsync seek="
    line.run(
        f"(n=0; while :; do n=$((n+1)); {block}0 2>/dev/null; {block}{FAR // SECTOR} 2>/dev/null; "
        "echo $n >/run/new; mv /run/new /run/count; done) & true"
    )
    until(lambda: line.run("cat /run/count || echo 0"), lambda said: bool(re.search(r"^[1-9]", said, re.M)), 60)


def blocks(image: Path) -> tuple[int, int]:
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    with raw.open("rb") as file:
        first = int(file.read(SECTOR))
        file.seek(FAR)
        return first, int(file.read(SECTOR))


def run(kvmctl: Kvmctl, *words: object) -> Any:
    return kvmctl("-c", URI, "--output", "json", *words).json()[0]


def test_a_disk_that_is_written_to_is_of_one_moment(
    kvmctl: Kvmctl, guest: Guest, console: Callable[[Guest], Console], tmp_path: Path
) -> None:
    line = console(guest)
    begin(line)
    before = count(line)
    row = run(kvmctl, "export", guest.name, "-o", tmp_path / "a")
    assert row["state"] == "running"
    after = count(line)
    until(lambda: count(line), lambda now: now > after, 30, "what it counts")
    subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "a"], check=True)
    first, second = blocks(tmp_path / "disks/vda.qcow2")
    assert before <= first <= after + 1
    assert first - 1 <= second <= first


def test_memory_goes_on_here_where_it_stood(
    kvmctl: Kvmctl,
    guest: Guest,
    console: Callable[[Guest], Console],
    pool: tuple[str, Path],
    tmp_path: Path,
    micro: MicroGuest,
) -> None:
    line = console(guest)
    begin(line)
    before = count(line)
    row = run(kvmctl, "export", guest.name, "-o", tmp_path / "a", "--with-memory")
    assert row["memory"] > 10 << 20
    # It has been started again from what was saved: it counts on, on another terminal.
    line = console(guest)
    until(lambda: count(line), lambda now: now > before, 60, "what it counts")
    guest.remove()
    row = run(kvmctl, "import", tmp_path / "a", "--pool", f"default={pool[0]}")
    assert row["state"] == "running"
    assert (pool[1] / f"{guest.name}-kernel").read_bytes() == micro.kernel.read_bytes()
    line = console(guest)
    again = count(line)
    assert again >= before
    until(lambda: count(line), lambda now: now > again, 60, "what it counts")


@pytest.fixture
def other() -> Iterator[PrivateHost]:
    """Another host: a libvirtd with guests, pools and files of its own."""
    with private_host() as found:
        found.make_pool()
        yield found


def test_memory_goes_on_on_another_host(
    kvmctl: Kvmctl, guest: Guest, console: Callable[[Guest], Console], other: PrivateHost, tmp_path: Path
) -> None:
    line = console(guest)
    begin(line)
    before = count(line)
    run(kvmctl, "export", guest.name, "-o", tmp_path / "a", "--with-memory")
    guest.remove()
    assert other.daemon is not None
    pool = re.findall(r"kvmctl-test-pool-[^/]+", str(kvmctl("inspect", tmp_path / "a").out))
    # Within the mounts of that host; its pool `default` is the one that there is.
    command = ["nsenter", f"--mount=/proc/{other.daemon.pid}/ns/mnt", sys.executable, "-m", "kvmctl", "-c", URI]
    words = ["--output", "json", "import", "-", *[f"--pool={name.split()[0]}=default" for name in set(pool)]]
    done = subprocess.run(
        [*command, *words],
        stdin=(tmp_path / "a").open("rb"),
        env=environment(tmp_path / "state2", tmp_path / "run2"),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["state"] == "running"
    with other.open() as hypervisor:
        there = Guest(hypervisor, guest.name)
        line = console(there)
        again = count(line)
        assert again >= before
        until(lambda: count(line), lambda now: now > again, 60, "what it counts")
        assert there.domain.isPersistent()
