"""libvirtd and virtlogd: started where no init system does, and only those we started are stopped."""

import os
import signal
import socket
import time
from pathlib import Path

from kvmctl.bootstrap import state
from kvmctl.bootstrap.progress import run, say, step
from kvmctl.bootstrap.state import Daemon
from kvmctl.bootstrap.virsh import virsh
from kvmctl.model.errors import KvmctlError, TimedOutError

_LOG_SOCKET = Path("/run/libvirt/virtlogd-sock")
_SYSTEMD = Path("/run/systemd/system")
_PROBE_SECONDS = 60.0
"""A fresh libvirtd asks QEMU what it can do before its first answer, which takes up to 15 s."""
_STOP_SECONDS = 20.0


def ensure() -> None:
    """Have libvirt answer, starting its daemons where it does not. Raises KvmctlError."""
    systemd = _SYSTEMD.is_dir()
    if not systemd and not _listens(_LOG_SOCKET):
        _start("virtlogd")
    if not _answers():
        if systemd:
            _start_units()
        else:
            _start("libvirtd")
        with step("Waiting for libvirt's first answer"):
            virsh("version", timeout=_PROBE_SECONDS)


def _answers() -> bool:
    """Also where modular daemons do. Raises TimedOutError if something is there and stays silent."""
    with step("Asking libvirt for its version"):
        try:
            virsh("version", timeout=_PROBE_SECONDS)
        except TimedOutError as error:
            raise TimedOutError(
                f"libvirt accepts connections but did not answer within {_PROBE_SECONDS:.0f} s",
                "look at its log (journalctl -u libvirtd, or /var/log/libvirt) and restart it",
            ) from error
        except KvmctlError:
            return False
    return True


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _start_units() -> None:
    with step("Starting libvirt"):
        # Where libvirt is split into a daemon per driver, libvirtd is not to be started beside them.
        split = _is_enabled("virtqemud.socket")
        units = ("virtqemud.socket", "virtnetworkd.socket", "virtstoraged.socket") if split else ("libvirtd.service",)
        run(["systemctl", "start", "virtlogd.socket", *units])


def _is_enabled(unit: str) -> bool:
    try:
        run(["systemctl", "is-enabled", unit])
    except KvmctlError:
        return False
    return True


def _start(name: str) -> None:
    run([name, "--daemon"])
    pid = int(Path(f"/run/{name}.pid").read_text())
    say(f"started {name} (process {pid})")
    others = tuple(known for known in state.load().daemons if known.name != name)
    state.record(daemons=(*others, Daemon(name, pid, started(pid))))


def started(pid: int) -> str:
    """When a process was started, unique over reboots; empty if it runs no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] == "Z":
        return ""
    # Field 22 of all, the 20th after the program's name.
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"


def running() -> list[Daemon]:
    """The daemons we started that still run."""
    return [daemon for daemon in state.load().daemons if started(daemon.pid) == daemon.started != ""]


def stop() -> None:
    """Stop the daemons we started, libvirtd first. Raises TimedOutError if one does not end."""
    for daemon in sorted(running(), key=lambda daemon: daemon.name):
        os.kill(daemon.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while started(daemon.pid) == daemon.started:
            if time.monotonic() > deadline:
                raise TimedOutError(f"{daemon.name} (process {daemon.pid}) did not stop in {_STOP_SECONDS:.0f} s")
            time.sleep(0.1)
        say(f"stopped {daemon.name} (process {daemon.pid})")
    state.record(daemons=())
