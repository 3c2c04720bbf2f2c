"""A host in a namespace whose memory really runs out: behind a memory limit that the kernel enforces, OOM killer and
all, and a /proc/meminfo that says so.

Beside what every such host needs, this one needs the Debian package lxcfs, whose service need not run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvmctl.bootstrap.daemons import started
from kvmctl.host import cgroup
from tests.bench import machine
from tests.libvirtd import new_folder
from tests.nshost import NamespaceHost, missing
from tests.support import PREFIX, until

NAME = f"{PREFIX}small-"


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Of everything in the host. Bytes."""

    limit: int
    usage: int
    anonymous: int
    cache: int
    swapped: int

    @property
    def free(self) -> int:
        """What could be had at once."""
        return self.limit - self.usage


class SmallHost(NamespaceHost):
    """One libvirtd and its guests. `budget` is the memory in bytes that they and what is run inside share."""

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, "kvmctl-test-small")
        self.budget = budget
        self._lxcfs: subprocess.Popen[bytes] | None = None
        self._memory = _memory_mount() / folder.name
        (folder / "lxcfs").mkdir(mode=0o755)

    def mounted(self) -> dict[str, str]:
        """What says that the host has little memory."""
        return {f"{self.folder}/lxcfs/proc/meminfo": "/proc/meminfo"}

    def prepare(self) -> None:
        """The limit, and lxcfs, which reads it."""
        self.set_limit(self.budget)
        mount = self.folder / "lxcfs"
        self._lxcfs = self.popen(["lxcfs", "-f", "-p", str(self.folder / "lxcfs.pid"), str(mount)], "lxcfs.log")
        (self.folder / "lxcfs.started").write_text(f"{self._lxcfs.pid} {started(self._lxcfs.pid)}")
        until((mount / "proc/meminfo").exists, bool, 20, f"lxcfs on {mount}")

    def memory(self) -> MemoryState:
        """As the kernel counts it."""
        stat = dict(line.split() for line in (self._memory / "memory.stat").read_text().splitlines())
        return MemoryState(
            limit=_number(self._memory / "memory.limit_in_bytes"),
            usage=_number(self._memory / "memory.usage_in_bytes"),
            anonymous=int(stat["total_rss"]),
            cache=int(stat["total_cache"]),
            swapped=int(stat.get("total_swap", 0)),
        )

    def set_limit(self, limit: int) -> bool:
        """Allow so many bytes; False where the kernel cannot free what is used beyond them."""
        try:
            (self._memory / "memory.limit_in_bytes").write_text(str(limit))
        except OSError:
            return False
        return True

    def oom_kills(self) -> int:
        """Processes that the kernel has killed here; those of a guest that is gone went with its group."""
        found = 0
        for control in (self._memory, *(path for path in self._memory.rglob("*") if path.is_dir())):
            with contextlib.suppress(FileNotFoundError):
                text = (control / "memory.oom_control").read_text()
                found += int((re.search(r"^oom_kill (\d+)$", text, re.MULTILINE) or [0, 0])[1])
        return found

    def close(self) -> None:
        """As every host, and lxcfs."""
        super().close()
        if self._lxcfs is not None:
            self._lxcfs.wait(timeout=60)

    @classmethod
    def put_back(cls, folder: Path) -> None:
        """Memory's settings, and lxcfs."""
        machine.remove_zram(folder)
        machine.restore_ksm(folder)
        _end_lxcfs(folder)


def _number(path: Path) -> int:
    return int(path.read_text())


def _memory_mount() -> Path:
    for mount in cgroup.mounts():
        if mount.version == 1 and "memory" in mount.controllers:
            return mount.point
    raise SystemExit("a small host needs the memory controller in control groups of version 1")


@contextmanager
def small_host(budget: int) -> Iterator[SmallHost]:
    """A started small host, gone after the block. What killed runs have left goes first."""
    if absent := missing("lxcfs"):
        raise SystemExit(f"a small host needs {', '.join(absent)}: apt-get install --no-install-recommends lxcfs")
    host = SmallHost(new_folder(NAME, SmallHost.remove), budget)
    try:
        host.start()
        yield host
    finally:
        host.close()


def _end_lxcfs(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder / "lxcfs")], capture_output=True, check=False)
    record = folder / "lxcfs.started"
    if record.exists():
        pid, _space, begun = record.read_text().partition(" ")
        if started(int(pid)) == begun != "":
            os.kill(int(pid), signal.SIGKILL)
