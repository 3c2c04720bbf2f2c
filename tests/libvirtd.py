"""A libvirtd of a test's own, which can be stopped, killed, frozen and started again: the machine's is left alone.

Which processes, control groups and network it has is for `tests.hosts` and `tests.nshost` to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import libvirt

from kvmctl.bootstrap.daemons import started
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from tests.support import until

PRIVATE = {"run": "/run", "etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt"}
"""What it sees in place of the machine's; the cache is shared, since probing QEMU takes long."""
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
dynamic_ownership = 0
"""
"""Guests run as root, who reads everything: files that the machine's own daemon keeps account of stay as they are."""


class Libvirtd:
    """One daemon with guests, pools and state of its own in a folder."""

    arguments: tuple[str, ...] = ()
    """The daemon's."""

    def __init__(self, folder: Path, libvirtd_conf: str = "", qemu_conf: str = "") -> None:
        self.folder = folder
        self.uri = f"qemu:///system?socket={folder}/run/libvirt/libvirt-sock"
        """From outside; inside it is qemu:///system."""
        self.daemon: subprocess.Popen[bytes] | None = None
        for name in (*PRIVATE, "lib/images"):
            (folder / name).mkdir(mode=0o755)
        (folder / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF + libvirtd_conf)
        (folder / "etc/qemu.conf").write_text(_QEMU_CONF + qemu_conf)

    def launched(self) -> list[str]:
        """The command line that becomes the daemon, where its folders are in place of the machine's."""
        raise NotImplementedError

    def start_daemon(self) -> None:
        """Start the daemon and wait until it answers; its guests may be running already."""
        (self.folder / "run/libvirt/libvirt-sock").unlink(missing_ok=True)
        self.daemon = self.popen(self.launched(), "daemon.log")
        (self.folder / "daemon").write_text(identity(self.daemon.pid))
        until(self._answers, bool, 90, f"the daemon in {self.folder}")

    def popen(self, command: Sequence[str], log: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command; what it says goes to a file in the folder."""
        with (self.folder / log).open("ab") as file:
            # What interrupts or times out this program has to leave these running: the guests are ended through them.
            return subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def _answers(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, (self.folder / "daemon.log").read_text()
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    def stop_daemon(self) -> None:
        """Stop the daemon in good order; its guests go on."""
        self._end(signal.SIGTERM)

    def kill_daemon(self) -> None:
        """Kill the daemon; its guests go on."""
        self._end(signal.SIGKILL)

    def _end(self, how: int) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(how)
            self.daemon.wait(timeout=60)
            self.daemon = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The daemon does nothing at all in the block, while its socket still takes connections."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.daemon.send_signal(signal.SIGCONT)

    def open(self) -> Hypervisor:
        """A connection of the test's own."""
        return open_hypervisor(self.uri)

    @property
    def images(self) -> Path:
        """The folder of /var/lib/libvirt/images, as this machine sees it."""
        return self.folder / "lib/images"

    def make_pool(self, name: str = "default", path: str | None = None) -> None:
        """Define and start a pool, of the images unless another folder is given; it outlives the daemon."""
        text = f"<pool type='dir'><name>{name}</name><target><path>{path or self.images}</path></target></pool>"
        with self.open() as hypervisor:
            pool = hypervisor.connection.storagePoolDefineXML(text)
            pool.setAutostart(1)
            pool.create()


def new_folder(prefix: str, remove: Callable[[Path], None]) -> Path:
    """A folder for a host, which belongs to this process; those of processes that were killed go first.

    QEMU's and libvirt's sockets lie in it, and the path of one has at most 107 bytes.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, begun = json.loads((left / "owner").read_text())
            if started(pid) != begun:
                remove(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    (folder / "owner").write_text(identity(os.getpid()))
    return folder


def identity(pid: int) -> str:
    """A process number and when that process was started: the number alone may be another's."""
    return json.dumps([pid, started(pid)])


def lives(record: Path) -> int | None:
    """The number of the process in a record, where that process is still the same."""
    with contextlib.suppress(OSError, ValueError):
        pid, begun = json.loads(record.read_text())
        return int(pid) if begun and started(pid) == begun else None
    return None


def empty_groups(groups: Sequence[Path]) -> None:
    """Remove control groups whose processes have been killed: one leaves its group when its memory is given back."""
    until(lambda: [one for one in groups if not _removed(one)], lambda left: not left, 20, "the control groups")


def _removed(group: Path) -> bool:
    try:
        for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        group.rmdir()
    except FileNotFoundError:
        return not group.exists()
    except OSError:
        return False
    return True
