"""The guests of the memory bench: the micro guest with a workload whose parts have known sizes, and what it says of
itself each second. Building the workload needs gcc and libc6-dev."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kvmctl.bootstrap import cpio, microguest
from kvmctl.host import accelerator
from tests.support import PREFIX

NAME = f"{PREFIX}mem-"
SIZE = 512
"""MiB of a guest."""
RATE = 20_000
"""Touches a second that a guest asks for: a dozen emulated guests are not bound by two cores."""
_SOURCE = Path(__file__).with_name("memload.c")
_INIT = b"#!/bin/busybox sh\n/bin/memload &\nexec /init\n"
_LINE = re.compile(r"mem t=([\d.]+) ops=(\d+) worst=([\d.]+) hot=(\d+) ready=([01])")
_COMPRESSIBLE = 2048
"""Bytes of each page of the disk that are random, as in the guest's memory; the others are the same."""
_MIB = 1 << 20
_NET = " autodeflate='on' freePageReporting='on'"


@dataclass(frozen=True, slots=True)
class Mix:
    """What a guest's memory holds, in MiB. The rest is the kernel's, or free."""

    hot: int
    cold: int
    same: int
    zero: int
    cache: int


MIXES = {
    "standard": Mix(hot=96, cold=64, same=64, zero=32, cache=96),
    "homogeneous": Mix(hot=64, cold=32, same=160, zero=32, cache=64),
    "diverse": Mix(hot=128, cold=96, same=16, zero=16, cache=96),
    "light": Mix(hot=48, cold=32, same=16, zero=16, cache=288),
}
"""`light` has a third and more of its memory to give away."""


@dataclass(frozen=True, slots=True)
class Report:
    """One line of a guest. `ops` counts since it began to work."""

    seconds: float
    """Of the guest's clock."""
    ops: int
    worst_ms: float
    """The longest that touches were late since the line before."""
    hot: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest to be made: its number tells it from others, and is its seed."""

    number: int
    mix: Mix
    phases: tuple[tuple[int, int], ...] = ()
    """(seconds of work, MiB of the hot part from then on)"""
    rate: int = RATE

    @property
    def name(self) -> str:
        return f"{NAME}{self.number}"


def parse(text: str) -> Report | None:
    """What a line says; None where it is torn, or another's."""
    found = _LINE.fullmatch(text.strip())
    if not found:
        return None
    return Report(float(found[1]), int(found[2]), float(found[3]), int(found[4]), found[5] == "1")


@dataclass(slots=True)
class Reports:
    """A guest's lines as they come: each with the second of this machine's monotonic clock at which it was read."""

    file: Path
    lines: list[tuple[float, Report]] = field(default_factory=list)
    _read: int = 0

    def poll(self) -> None:
        """Take in what has been written since."""
        try:
            with self.file.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return
        whole, newline, _torn = data.rpartition(b"\n")
        self._read += len(whole) + len(newline)
        at = time.monotonic()
        found = [parse(text) for text in whole.decode(errors="replace").splitlines()]
        self.lines += [(at, report) for report in found if report]

    @property
    def ready(self) -> bool:
        """Whether the guest has begun to work."""
        return bool(self.lines) and self.lines[-1][1].ready


class Workshop:
    """Makes guests in a folder that QEMU can enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        micro = microguest.ensure()
        self.kernel = micro.kernel
        self.accelerator: str = accelerator.resolve(micro.kernel).name
        self.initrd = folder / "memguest.gz"
        extra = (
            cpio.folder("bin"),
            cpio.folder("dev"),
            # What a shell starts in the background reads from it, and it is not there yet.
            cpio.character_device("dev/null", 1, 3),
            cpio.program("bin/memload", self._compile()),
            cpio.program("memguest", _INIT),
        )
        # The kernel unpacks one archive after the other.
        self.initrd.write_bytes(micro.initrd.read_bytes() + cpio.archive(extra))

    def _compile(self) -> bytes:
        program = self.folder / "memload"
        command = ["gcc", "-O2", "-static", "-s", "-Wall", "-Werror", "-o", str(program), str(_SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise SystemExit("the workload needs a C compiler: apt-get install gcc libc6-dev") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"the workload does not compile: {error.stderr}") from None
        return program.read_bytes()

    def report_file(self, guest: Guest) -> Path:
        """Where the guest's lines go."""
        return self.folder / f"{guest.name}.report"

    def prepare(self, guest: Guest) -> Reports:
        """Its disk, whose content is its own, and an empty report."""
        disk = self.folder / f"{guest.name}.img"
        if not disk.exists():
            disk.write_bytes(_pages(guest.number, max(1, guest.mix.cache) * _MIB))
            # The guest's own reads are past the host's cache: what is still to be written would be in their way.
            with disk.open("rb+") as file:
                os.fsync(file.fileno())
        self.report_file(guest).write_bytes(b"")
        return Reports(self.report_file(guest))

    def xml(self, guest: Guest, low: int | None = None, net: bool = False) -> str:
        """Its definition; `low` is the MiB that its balloon leaves it at its start, `net` whether it reports free
        pages and gets memory back before it kills a process."""
        kind = "kvm" if self.accelerator == "kvm" else "qemu"
        # What an emulated CPU's code is translated to is no memory of a guest's, and under KVM there is none.
        tcg = "" if kind == "kvm" else "<tcg><tb-cache unit='MiB'>16</tb-cache></tcg>"
        return (
            f"<domain type='{kind}'><name>{guest.name}</name><memory unit='MiB'>{SIZE}</memory>"
            f"<currentMemory unit='MiB'>{low or SIZE}</currentMemory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{self.kernel}</kernel>"
            f"<initrd>{self.initrd}</initrd><cmdline>{command_line(guest)}</cmdline></os>"
            f"<features><acpi/>{tcg}</features>"
            "<on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash><devices>"
            f"<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>"
            f"<source file='{self.folder}/{guest.name}.img'/><target dev='vda' bus='virtio'/><readonly/></disk>"
            "<serial type='pty'><target port='0'/></serial>"
            f"<serial type='file'><source path='{self.report_file(guest)}' append='on'/><target port='1'/></serial>"
            f"<memballoon model='virtio'{_NET if net else ''}><stats period='2'/></memballoon>"
            "</devices></domain>"
        )


def command_line(guest: Guest) -> str:
    """The kernel's, with the workload's parameters."""
    mix = guest.mix
    parts = [f"mem.{name}={getattr(mix, name)}" for name in ("hot", "cold", "same", "zero", "cache")]
    parts += [f"mem.seed={guest.number}", f"mem.rate={guest.rate}"]
    if guest.phases:
        parts.append("mem.phases=" + ",".join(f"{seconds}:{size}" for seconds, size in guest.phases))
    return " ".join(("console=ttyS0 quiet rdinit=/memguest", *parts))


def _pages(seed: int, size: int) -> bytes:
    """Content that no other guest has, and that compresses as its memory does."""
    random, same = Random(seed), bytes(4096 - _COMPRESSIBLE)
    return b"".join(random.randbytes(_COMPRESSIBLE) + same for _ in range(size // 4096))


def random_phases(seed: int, seconds: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """A hot part that changes its size every 20 to 60 s; the same for the same seed."""
    random, phases, at = Random(seed), [], 0
    while (at := at + random.randint(20, 60)) < seconds:
        phases.append((at, random.choice(sizes)))
    return tuple(phases)
