"""A host in namespaces of its own: a libvirtd with real guests, control groups, network and folders that are not the
machine's. Its namespaces outlive the daemon, which can be killed and started again.

Needs root and control groups of version 1 (hybrid). Everything that a killed run has left goes when the next is made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvmctl.host import cgroup
from tests.libvirtd import PRIVATE, Libvirtd, empty_groups
from tests.support import until

_INSIDE = """
group=$0 hostname=$1
shift
hostname "$hostname" || exit 1
while [ "$1" != -- ]; do mount --bind "$1/$group" "$1" || exit 1; shift; done
shift
while [ $# -gt 0 ]; do mount --bind "$1" "$2" || exit 1; shift 2; done
exec sleep infinity
"""
"""Keeps the namespaces. After the group and the host's name come hierarchies, then pairs of what is mounted where."""
_ENTER = """
while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done
shift
exec "$@"
"""
"""Joins control groups, then runs a command; the former before the latter makes a namespace of them its own."""


class NamespaceHost(Libvirtd):
    """One libvirtd, its guests, and what is run beside them."""

    def __init__(self, folder: Path, hostname: str, libvirtd_conf: str = "", qemu_conf: str = "") -> None:
        super().__init__(folder, libvirtd_conf, qemu_conf)
        self.hostname = hostname
        self._keeper: subprocess.Popen[bytes] | None = None
        self._points = sorted(str(mount.point) for mount in cgroup.mounts())
        (folder / "state").mkdir(mode=0o755)

    def mounted(self) -> dict[str, str]:
        """What is mounted where in it, beside its folders and control groups."""
        return {}

    def start(self) -> None:
        """Make the control groups and the namespaces, then start the daemon."""
        for point in self._points:
            _make_group(Path(point), self.folder.name)
        self.prepare()
        pairs = {str(self.folder / name): point for name, point in PRIVATE.items()} | self.mounted()
        mounts = [word for pair in pairs.items() for word in pair]
        inside = ["sh", "-c", _INSIDE, self.folder.name, self.hostname, *self._points, "--", *mounts]
        unshare = ["unshare", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--propagation", "private"]
        self._keeper = self.popen(["sh", "-c", _ENTER, "enter", *self._procs(), "--", *unshare, *inside], "keeper.log")
        pid = self._keeper.pid
        # What it executes last says that everything is mounted.
        until(lambda: self._program(pid), lambda name: name == "sleep", 30, f"the namespaces of {self.folder}")
        self.run(["ip", "link", "set", "lo", "up"])
        self.start_daemon()

    def prepare(self) -> None:
        """What is to be there before the namespaces are."""

    def _program(self, pid: int) -> str:
        assert self._keeper is not None
        assert self._keeper.poll() is None, (self.folder / "keeper.log").read_text()
        return Path(f"/proc/{pid}/comm").read_text().strip()

    def launched(self) -> list[str]:
        """In the namespaces, charged to the host."""
        return self.inside(["libvirtd", *self.arguments])

    def _procs(self) -> list[str]:
        return [f"{point}/{self.folder.name}/cgroup.procs" for point in self._points]

    @property
    def pid(self) -> int:
        """A process that is in its namespaces as long as it is there."""
        assert self._keeper is not None
        return self._keeper.pid

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in this host, charged to it."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--uts", "--ipc", "--cgroup"]
        return ["sh", "-c", _ENTER, "enter", *self._procs(), "--", *enter, *command]

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this host to its end, whatever that is."""
        return subprocess.run(
            self.inside(command),
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def spawn(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, log: str = "spawned.log"
    ) -> subprocess.Popen[bytes]:
        """Start a command in this host; what it says goes to a file in the folder. The process is the command's own."""
        return self.popen(self.inside(command), log, environment(env))

    def running(self) -> set[str]:
        """The names of the guests that run."""
        with self.open() as hypervisor:
            return {domain.name() for domain in hypervisor.connection.listAllDomains() if domain.isActive()}

    def close(self) -> None:
        """End everything that runs in it, and remove what it was made of."""
        self.remove(self.folder)
        for process in (self.daemon, self._keeper):
            if process is not None:
                process.wait(timeout=60)

    @classmethod
    def remove(cls, folder: Path) -> None:
        """Kill what runs in the host of that folder, put back what it borrowed, and remove it."""
        groups = [mount.point / folder.name for mount in cgroup.mounts()]
        until(lambda: _kill(groups), lambda left: left == 0, 60, f"the processes of {folder}")
        cls.put_back(folder)
        empty_groups(groups)
        shutil.rmtree(folder)

    @classmethod
    def put_back(cls, folder: Path) -> None:
        """What the host of that folder has borrowed from the machine."""


def missing(*programs: str) -> list[str]:
    """Those of the programs that a host needs, and of these, that are not installed."""
    return [program for program in ("libvirtd", "unshare", "nsenter", "ip", *programs) if not shutil.which(program)]


def environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """The environment of what is run in a host: of this process little, and this kvmctl."""
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[1])} | dict(more or {})


def _make_group(point: Path, name: str) -> None:
    group = point / name
    group.mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):
        # An empty set takes no process.
        if (group / file).exists() and (point / file).read_text().strip():
            (group / file).write_text((point / file).read_text())


def _kill(groups: Sequence[Path]) -> int:
    pids: set[int] = set()
    for file in (file for group in groups for file in group.rglob("cgroup.procs")):
        with contextlib.suppress(OSError):
            pids |= {int(pid) for pid in file.read_text().split()}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)
