"""A libvirtd of a test's own, which can be stopped, killed, frozen and started again: the machine's is left alone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from kvmctl.host.process import find_guests
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from tests.nshost import LIBVIRTD_CONF, QEMU_CONF
from tests.support import PREFIX, until

_PRIVATE = {"run": "/run", "etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt"}
"""What the daemon sees in place of the machine's; the cache is shared, since probing QEMU takes long."""
_DAEMON = """
for pair in run:/run etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt; do
    mount --bind "$0/${pair%%:*}" "${pair#*:}" || exit 1
done
exec libvirtd
"""


class PrivateHost:
    """One libvirtd with its own guests, pools and state; its processes, cgroups and network are the machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon: subprocess.Popen[bytes] | None = None
        self.uri = f"qemu:///system?socket={folder}/run/libvirt/libvirt-sock"
        for name in (*_PRIVATE, "lib/images"):
            (folder / name).mkdir(mode=0o755)
        (folder / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
        (folder / "etc/qemu.conf").write_text(QEMU_CONF)

    def start(self) -> None:
        """Start the daemon and wait until it answers; its guests may be running already."""
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _DAEMON, str(self.folder)]
        (self.folder / "run/libvirt/libvirt-sock").unlink(missing_ok=True)
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        (self.folder / "daemon").write_text(_identity(self.daemon.pid))
        until(self._answers, bool, 60, f"the daemon in {self.folder}")

    def _answers(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, (self.folder / "daemon.log").read_text()
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    def stop(self) -> None:
        """Stop the daemon in good order; its guests go on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
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
        """The folder of the pool `default`, as this machine sees it; the daemon has it elsewhere as well."""
        return self.folder / "lib/images"

    def make_pool(self) -> None:
        """Define and start the pool `default`, which outlives the daemon."""
        text = f"<pool type='dir'><name>default</name><target><path>{self.images}</path></target></pool>"
        with self.open() as hypervisor:
            pool = hypervisor.connection.storagePoolDefineXML(text)
            pool.setAutostart(1)
            pool.create()

    def close(self) -> None:
        """End the daemon, however it is, then its guests."""
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGCONT)
        self.kill()
        _remove(self.folder)


@contextmanager
def private_host() -> Iterator[PrivateHost]:
    """A started private host, gone after the block. What killed runs of tests have left goes first."""
    _sweep()
    # QEMU's and libvirt's sockets lie in it, and the path of one has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}host-"))
    folder.chmod(0o755)
    (folder / "owner").write_text(_identity(os.getpid()))
    host = PrivateHost(folder)
    try:
        host.start()
        yield host
    finally:
        host.close()


def _identity(pid: int) -> str:
    """The process number and when it was started, in clock ticks since boot: the number alone may be another's."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{pid} {stat.rpartition(')')[2].split()[19]}"


def _lives(record: Path) -> int | None:
    """The process number in the record, where that process is still the same."""
    try:
        text = record.read_text()
        return int(text.split()[0]) if _identity(int(text.split()[0])) == text else None
    except (OSError, ValueError, IndexError):
        return None


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}host-*"):
        if (folder / "owner").exists() and _lives(folder / "owner") is None:
            _remove(folder)


def _remove(folder: Path) -> None:
    if daemon := _lives(folder / "daemon"):
        os.kill(daemon, signal.SIGKILL)
        until(lambda: _lives(folder / "daemon"), lambda pid: pid is None, 20, f"the daemon of {folder}")
    pids = find_guests(_guests(folder)).values()
    groups = [group for pid in pids for group in _groups(pid)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: find_guests(_guests(folder)), lambda found: not found, 20, f"the guests of {folder}")
    # A killed process leaves its group only when its memory has been given back.
    until(lambda: [group for group in groups if not _removed(group)], lambda left: not left, 20, "the control groups")
    shutil.rmtree(folder)


def _removed(group: Path) -> bool:
    try:
        for folder in (*group.glob("*/"), group):
            folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _groups(pid: int) -> Iterator[Path]:
    """The guest's own directory in each hierarchy of control groups that libvirt made one in."""
    mount = Path("/sys/fs/cgroup")
    names = set(re.findall(r"/(machine/[^/\n]+\.libvirt-qemu)", Path(f"/proc/{pid}/cgroup").read_text()))
    for root in (mount, *mount.iterdir()):
        yield from (root / name for name in names if (root / name).is_dir())


def _guests(folder: Path) -> list[str]:
    """The UUIDs of the guests that the daemon had running, from its own record of them."""
    found = []
    for status in (folder / "run/libvirt/qemu").glob("*.xml"):
        with contextlib.suppress(ElementTree.ParseError):
            found += [uuid.text or "" for uuid in ElementTree.parse(status).iterfind("domain/uuid")]
    return found
