"""The systemd unit that switches a swap area of kvmctl on when the host is booted."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from zlib import crc32

from kvmctl.host import daemons
from kvmctl.host.files import read_permitted, write_atomic
from kvmctl.host.schedule import Job
from kvmctl.model.errors import ConflictError, KvmctlError

_FOLDER = "etc/systemd/system"
_MARK = "# written by kvmctl swap enable; kvmctl swap disable removes it\n"
_MODE = 0o644
_SYSTEMCTL_SECONDS = 30.0
_PLAIN = re.compile(r"[A-Za-z0-9@:,./+=_-]+", re.ASCII)

# Not named after the area as .swap units have to be: the command journals what it does, and makes zram anew.
_TEXT = """\
[Unit]
Description=Swap of kvmctl: {name}
Before=libvirtd.service virtqemud.service libvirt-guests.service
RequiresMountsFor={folder}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
{settings}UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit(name: str) -> str:
    """The unit's name for `zram` or the path of a file."""
    if name == "zram":
        return "kvmctl-swap-zram.service"
    # The sum keeps /a-b and /a/b apart.
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
    return f"kvmctl-swap-{plain}-{crc32(name.encode(errors='surrogateescape')):08x}.service"


def possible(root: Path = Path("/")) -> bool:
    """Whether there is a systemd that would run a unit."""
    return daemons.has_systemd(root)


def install(name: str, job: Job, root: Path = Path("/")) -> str:
    """Have systemd run `job` at boot, which enables the area `name` again; a sentence where that is not so.

    Raises ConflictError where a file of that name is not ours, KvmctlError where systemd does not take it.
    """
    settings = [f"{key}={value}" for key, value in job.environment.items()]
    if unfit := [word for word in (*job.words, *settings) if not _PLAIN.fullmatch(word)]:
        return f"no unit can be written for {unfit[0]!r}, so the area is not enabled again after a reboot"
    text = _MARK + _TEXT.format(
        name=name,
        folder=Path(name).parent if name.startswith("/") else "/var/lib",
        command=" ".join(job.words),
        settings="".join(f"Environment={word}\n" for word in settings),
    )
    path = root / _FOLDER / unit(name)
    found = read_permitted(path)
    if found is not None and not found.startswith(_MARK):
        raise ConflictError(f"{path} is not kvmctl's, so it is not overwritten", "delete it if nothing needs it")
    if found != text:
        write_atomic(path, text, _MODE)
        _systemctl(root, "daemon-reload")
    if not _wanted(name, root).is_symlink():
        _systemctl(root, "enable", path.name)
    return ""


def remove(name: str, root: Path = Path("/")) -> None:
    """Have systemd no longer enable the area `name`. Raises KvmctlError."""
    path = root / _FOLDER / unit(name)
    if not (read_permitted(path) or "").startswith(_MARK):
        return
    _systemctl(root, "disable", path.name)
    for one in (_wanted(name, root), path):
        try:
            one.unlink(missing_ok=True)
        except OSError as error:
            raise KvmctlError(f"cannot delete {one}: {error.strerror}", f"look at it: ls -la {one.parent}") from error
    _systemctl(root, "daemon-reload")


def installed(name: str, root: Path = Path("/")) -> bool:
    """Whether there is a unit of ours for the area `name`."""
    return (read_permitted(root / _FOLDER / unit(name)) or "").startswith(_MARK)


def _wanted(name: str, root: Path) -> Path:
    return root / _FOLDER / "multi-user.target.wants" / unit(name)


def _systemctl(root: Path, *words: str) -> None:
    if root != Path("/"):
        return
    command = ["systemctl", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SYSTEMCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KvmctlError(f"{shlex.join(command)} failed: {error}", "see whether systemctl status answers") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
        raise KvmctlError(f"{shlex.join(command)} failed: {said}", "look at it with systemctl status")
