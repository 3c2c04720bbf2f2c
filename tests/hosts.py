"""A libvirtd of a test's own beside the machine's: it sees folders of its own, and no more."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from kvmctl.host.process import find_guests
from tests.libvirtd import PRIVATE, Libvirtd, empty_groups, lives, new_folder
from tests.support import PREFIX, until

_DAEMON = """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done
shift
exec libvirtd "$@"
"""


class PrivateHost(Libvirtd):
    """One libvirtd with its own guests, pools and state; its processes, cgroups and network are the machine's."""

    def launched(self) -> list[str]:
        """In a mount namespace."""
        mounts = [word for name, point in PRIVATE.items() for word in (str(self.folder / name), point)]
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _DAEMON, "daemon"]
        return [*unshare, *mounts, "--", *self.arguments]

    def close(self) -> None:
        """End the daemon, however it is, then its guests."""
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGCONT)
        self.kill_daemon()
        _remove(self.folder)


@contextmanager
def private_host() -> Iterator[PrivateHost]:
    """A started private host, gone after the block. What killed runs of tests have left goes first."""
    host = PrivateHost(new_folder(f"{PREFIX}host-", _remove))
    try:
        host.start_daemon()
        yield host
    finally:
        host.close()


def _remove(folder: Path) -> None:
    if daemon := lives(folder / "daemon"):
        os.kill(daemon, signal.SIGKILL)
        until(lambda: lives(folder / "daemon"), lambda pid: pid is None, 20, f"the daemon of {folder}")
    pids = find_guests(_guests(folder)).values()
    groups = [group for pid in pids for group in _groups(pid)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: find_guests(_guests(folder)), lambda found: not found, 20, f"the guests of {folder}")
    empty_groups(groups)
    shutil.rmtree(folder)


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
