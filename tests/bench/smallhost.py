"""A host in a namespace whose memory really runs out: a libvirtd of its own behind a memory limit that the kernel
enforces, OOM killer and all, and a /proc/meminfo that says so.

Needs root, control groups of version 1 (hybrid), and the Debian package lxcfs, whose service need not run. Everything
that a killed run has left goes when the next is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt

from kvmctl.bootstrap.daemons import started
from kvmctl.host import cgroup
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from tests.bench import machine
from tests.support import PREFIX, until

NAME = f"{PREFIX}small-"
_PRIVATE = ("run", "etc", "lib", "log")
_INSIDE = """
folder=$0 name=$1
shift
hostname kvmctl-test-small || exit 1
for point; do mount --bind "$point/$name" "$point" || exit 1; done
for pair in run:/run etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt; do
    mount --bind "$folder/${pair%%:*}" "${pair#*:}" || exit 1
done
mount --bind "$folder/lxcfs/proc/meminfo" /proc/meminfo || exit 1
exec libvirtd
"""
_ENTER = """
while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done
shift
exec "$@"
"""
"""Joins control groups, then runs a command; the former before the latter makes a namespace of them its own."""
_LIBVIRTD_CONF = """
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
_QEMU_CONF = """
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
"""


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


class SmallHost:
    """One libvirtd and its guests. `budget` is the memory in bytes that they and what is run inside share."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        self.uri = f"qemu:///system?socket={folder}/run/libvirt/libvirt-sock"
        """From outside; inside it is qemu:///system."""
        self.daemon: subprocess.Popen[bytes] | None = None
        self._lxcfs: subprocess.Popen[bytes] | None = None
        self._points = sorted(str(mount.point) for mount in cgroup.mounts())
        self._memory = _memory_mount() / folder.name
        for name in (*_PRIVATE, "lib/images", "lxcfs", "state"):
            (folder / name).mkdir(mode=0o755)
        (folder / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF)
        (folder / "etc/qemu.conf").write_text(_QEMU_CONF)

    def start(self) -> None:
        """Make the control groups, then lxcfs, then the daemon; wait until it answers."""
        for point in self._points:
            _make_group(Path(point), self.folder.name)
        self.set_limit(self.budget)
        self._start_lxcfs()
        inside = ["sh", "-c", _INSIDE, str(self.folder), self.folder.name, *self._points]
        unshare = ["unshare", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--propagation", "private"]
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                ["sh", "-c", _ENTER, "enter", *self._procs(), "--", *unshare, *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, bool, 90, f"the daemon in {self.folder}")

    def _start_lxcfs(self) -> None:
        mount = self.folder / "lxcfs"
        command = ["lxcfs", "-f", "-p", str(self.folder / "lxcfs.pid"), str(mount)]
        with (self.folder / "lxcfs.log").open("ab") as log:
            # What interrupts or times out this program has to leave these running: the guests are ended through them.
            self._lxcfs = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.folder / "lxcfs.started").write_text(f"{self._lxcfs.pid} {started(self._lxcfs.pid)}")
        until((mount / "proc/meminfo").exists, bool, 20, f"lxcfs on {mount}")

    def _procs(self) -> list[str]:
        return [f"{point}/{self.folder.name}/cgroup.procs" for point in self._points]

    def _answers(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, (self.folder / "daemon.log").read_text()
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    def open(self) -> Hypervisor:
        """A connection from outside."""
        return open_hypervisor(self.uri)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in this host, charged to it."""
        assert self.daemon is not None
        pid = str(self.daemon.pid)
        enter = ["nsenter", "--target", pid, "--mount", "--net", "--uts", "--ipc", "--cgroup"]
        return ["sh", "-c", _ENTER, "enter", *self._procs(), "--", *enter, *command]

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this host to its end, whatever that is."""
        return subprocess.run(
            self.inside(command),
            env=_environment(env),
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
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                self.inside(command),
                env=_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

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

    def running(self) -> set[str]:
        """The names of the guests that run."""
        with self.open() as hypervisor:
            return {domain.name() for domain in hypervisor.connection.listAllDomains() if domain.isActive()}

    def close(self) -> None:
        """End everything that runs in it, and remove what it was made of."""
        remove(self.folder)
        for process in (self.daemon, self._lxcfs):
            if process is not None:
                process.wait(timeout=60)


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2])} | dict(more or {})


def _number(path: Path) -> int:
    return int(path.read_text())


def _memory_mount() -> Path:
    for mount in cgroup.mounts():
        if mount.version == 1 and "memory" in mount.controllers:
            return mount.point
    raise SystemExit("a small host needs the memory controller in control groups of version 1")


def _make_group(point: Path, name: str) -> None:
    group = point / name
    group.mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):
        # An empty set takes no process.
        if (group / file).exists() and (point / file).read_text().strip():
            (group / file).write_text((point / file).read_text())


@contextmanager
def small_host(budget: int) -> Iterator[SmallHost]:
    """A started small host, gone after the block. What killed runs have left goes first."""
    missing = [program for program in ("lxcfs", "libvirtd", "unshare", "nsenter") if not shutil.which(program)]
    if missing:
        raise SystemExit(f"a small host needs {', '.join(missing)}: apt-get install --no-install-recommends lxcfs")
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=NAME))
    folder.chmod(0o755)
    (folder / "owner").write_text(json.dumps([os.getpid(), started(os.getpid())]))
    host = SmallHost(folder, budget)
    try:
        host.start()
        yield host
    finally:
        host.close()


def sweep() -> None:
    """Remove the hosts whose makers have been killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{NAME}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, begun = json.loads((folder / "owner").read_text())
            if started(pid) != begun:
                remove(folder)


def remove(folder: Path) -> None:
    """Kill what runs in the host of that folder, put back what it borrowed, and remove it."""
    groups = [mount.point / folder.name for mount in cgroup.mounts()]
    until(lambda: _kill(groups), lambda left: left == 0, 60, f"the processes of {folder}")
    machine.remove_zram(folder)
    machine.restore_ksm(folder)
    _end_lxcfs(folder)
    # A killed process leaves its group only when its memory has been given back.
    until(lambda: [group for group in groups if not _removed(group)], lambda left: not left, 20, "the control groups")
    shutil.rmtree(folder)


def _kill(groups: Sequence[Path]) -> int:
    pids: set[int] = set()
    for file in (file for group in groups for file in group.rglob("cgroup.procs")):
        with contextlib.suppress(OSError):
            pids |= {int(pid) for pid in file.read_text().split()}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def _end_lxcfs(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder / "lxcfs")], capture_output=True, check=False)
    record = folder / "lxcfs.started"
    if record.exists():
        pid, _space, begun = record.read_text().partition(" ")
        if started(int(pid)) == begun != "":
            os.kill(int(pid), signal.SIGKILL)


def _removed(group: Path) -> bool:
    try:
        for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
