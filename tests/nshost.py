"""A host in namespaces of its own: a libvirtd with real guests, control groups, network and folders that are not the
machine's. Its namespaces outlive the daemon, which can be killed and started again.

Needs root and control groups of version 1 (hybrid). Everything that a killed run has left goes when the next is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import libvirt

from kvmctl.bootstrap.daemons import started
from kvmctl.host import cgroup
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from tests.support import until

PRIVATE = {"run": "/run", "etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt"}
"""What is seen in place of the machine's; the cache is shared, since probing QEMU takes long."""
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
LIBVIRTD_CONF = """
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
QEMU_CONF = """
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
dynamic_ownership = 0
"""
"""Guests run as root, who reads everything: files that the machine's own daemon keeps account of stay as they are."""


class NamespaceHost:
    """One libvirtd, its guests, and what is run beside them."""

    arguments: tuple[str, ...] = ()
    """The daemon's."""

    def __init__(self, folder: Path, hostname: str, libvirtd_conf: str = "", qemu_conf: str = "") -> None:
        self.folder = folder
        self.hostname = hostname
        self.uri = f"qemu:///system?socket={folder}/run/libvirt/libvirt-sock"
        """From outside; inside it is qemu:///system."""
        self.daemon: subprocess.Popen[bytes] | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._points = sorted(str(mount.point) for mount in cgroup.mounts())
        for name in (*PRIVATE, "lib/images", "state"):
            (folder / name).mkdir(mode=0o755)
        (folder / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF + libvirtd_conf)
        (folder / "etc/qemu.conf").write_text(QEMU_CONF + qemu_conf)

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
        self._keeper = self._popen(["sh", "-c", _ENTER, "enter", *self._procs(), "--", *unshare, *inside], "keeper.log")
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

    def start_daemon(self) -> None:
        """Start the daemon and wait until it answers; its guests may be running already."""
        (self.folder / "run/libvirt/libvirt-sock").unlink(missing_ok=True)
        self.daemon = self.spawn(["libvirtd", *self.arguments], log="daemon.log")
        until(self._answers, bool, 90, f"the daemon in {self.folder}")

    def kill_daemon(self) -> None:
        """Kill the daemon; its guests go on."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(timeout=60)
            self.daemon = None

    def _popen(self, command: Sequence[str], log: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            # What interrupts or times out this program has to leave these running: the guests are ended through them.
            return subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

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

    @property
    def pid(self) -> int:
        """A process that is in its namespaces as long as it is there."""
        assert self._keeper is not None
        return self._keeper.pid

    def open(self) -> Hypervisor:
        """A connection from outside."""
        return open_hypervisor(self.uri)

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
        return self._popen(self.inside(command), log, environment(env))

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
        # A killed process leaves its group only when its memory has been given back.
        until(lambda: [one for one in groups if not _removed(one)], lambda left: not left, 20, "the control groups")
        shutil.rmtree(folder)

    @classmethod
    def put_back(cls, folder: Path) -> None:
        """What the host of that folder has borrowed from the machine."""


def new_folder(prefix: str, remove: Callable[[Path], None]) -> Path:
    """A folder for a host, which belongs to this process; those of processes that were killed go first.

    QEMU's and libvirt's sockets lie in it, and the path of one has at most 107 bytes.
    """
    sweep(prefix, remove)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    (folder / "owner").write_text(json.dumps([os.getpid(), started(os.getpid())]))
    return folder


def sweep(prefix: str, remove: Callable[[Path], None]) -> None:
    """Remove the hosts whose makers have been killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, begun = json.loads((folder / "owner").read_text())
            if started(pid) != begun:
                remove(folder)


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
