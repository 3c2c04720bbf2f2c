"""Programs of this host that virtualization needs or that meddle with it: their processes, sockets and users."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvmctl.host.files import read_permitted

_CONNECT_SECONDS = 2.0
_SYSTEMCTL_SECONDS = 5.0
_COMM_LENGTH = 15
"""The kernel keeps no more of a program's name."""


@dataclass(frozen=True, slots=True)
class Socket:
    """A Unix socket. `state`: `listening`, `dead` where nobody listens, `forbidden` where this user may not
    connect, `absent`."""

    path: Path
    state: Literal["listening", "dead", "forbidden", "absent"]
    access: str
    """Mode, owner and group, such as `0770 root:libvirt`; empty where it is absent."""


def probe_socket(path: Path) -> Socket:
    """Find out by connecting; nothing is sent."""
    try:
        status = path.stat()
    except PermissionError:
        return Socket(path, "forbidden", "")
    except OSError:
        return Socket(path, "absent", "")
    access = f"{stat.S_IMODE(status.st_mode):04o} {_user(status.st_uid)}:{_group(status.st_gid)}"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect(str(path))
        except PermissionError:
            return Socket(path, "forbidden", access)
        except OSError:
            return Socket(path, "dead", access)
    return Socket(path, "listening", access)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def user() -> str:
    """The name of the user who runs this."""
    return _user(os.geteuid())


def running(names: Iterable[str], proc: Path = Path("/proc")) -> dict[str, int]:
    """Of these programs, those that run, with one process ID each."""
    wanted = {name[:_COMM_LENGTH]: name for name in names}
    found = {}
    for directory in proc.iterdir():
        if directory.name.isdigit() and (name := wanted.get((read_permitted(directory / "comm") or "").strip())):
            found[name] = int(directory.name)
    return found


def installed(program: str) -> bool:
    """Whether a daemon's program is there; not every user has its folder in PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None


def has_systemd(root: Path = Path("/")) -> bool:
    """Whether systemd runs this host."""
    return (root / "run/systemd/system").is_dir()


def unit_is_active(unit: str) -> bool | None:
    """Whether a systemd unit is active; None without systemd, or where it does not answer."""
    if not has_systemd():
        return None
    try:
        done = subprocess.run(
            ["systemctl", "is-active", "--quiet", unit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SYSTEMCTL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode == 0


def start_command(daemon: str) -> str:
    """What starts a daemon on this host."""
    return f"systemctl start {daemon}" if has_systemd() else f"{daemon} -d"


def may_open(path: Path, uid: int, gid: int) -> bool | None:
    """Whether that user may read and write `path`, tried as that user; None where this user cannot try."""
    if os.geteuid() != 0:
        return None
    try:
        known = pwd.getpwuid(uid)
        groups = os.getgrouplist(known.pw_name, known.pw_gid)
    except KeyError:
        groups = []
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", '[ -r "$1" ] && [ -w "$1" ]', "sh", str(path)],
            user=uid,
            group=gid,
            extra_groups=groups,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd="/",
        )
    except OSError:
        return None
    return done.returncode == 0
