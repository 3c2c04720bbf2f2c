"""What the kernel lets a guest's QEMU do: its user, capabilities, sandbox, namespaces, devices, label and files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host import cgroup
from kvmctl.host.files import read_permitted
from kvmctl.model.errors import KvmctlError

_PROC = Path("/proc")
_STATUS = re.compile(r"^(Uid|Gid|CapEff|NoNewPrivs|Seccomp):\s+(\S+)", re.MULTILINE)
_FILES = re.compile(r"^Max open files\s+(\d+|unlimited)", re.MULTILINE)
_NO_LABEL = ("", "unconfined", "kernel")
_FILTERED = 2
"""The mode of seccomp in which a program filters system calls."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """One process. None is what could not be read."""

    uid: int | None
    capabilities: int | None
    """The bits of those in effect."""
    sandboxed: bool | None
    """Whether seccomp filters its system calls."""
    no_new_privileges: bool | None
    own_mounts: bool | None
    """Whether it sees a /dev of its own rather than the host's."""
    label: str | None
    """Its AppArmor profile or SELinux context; empty where it is confined by none."""
    devices: tuple[str, ...] | None
    """The rules of the device control group of cgroup v1; None on cgroup v2, which keeps them as a program."""
    cgroup_version: int | None
    """Of its device control group."""
    open_files: int | None
    open_files_limit: int | None
    """None where it is not known or there is none."""

    @property
    def all_devices(self) -> bool | None:
        """Whether it may use every device of the host."""
        return None if self.devices is None else any(rule.startswith("a ") for rule in self.devices)


def read(pid: int, proc: Path = _PROC) -> Isolation | None:
    """What holds for a process; None when it is gone."""
    directory = proc / str(pid)
    status = read_permitted(directory / "status")
    if status is None:
        return None
    found = dict(_STATUS.findall(status))
    limit = _FILES.search(read_permitted(directory / "limits") or "")
    rules, version = _devices(pid, proc)
    return Isolation(
        uid=int(found["Uid"]) if "Uid" in found else None,
        capabilities=int(found["CapEff"], 16) if "CapEff" in found else None,
        sandboxed=int(found["Seccomp"]) == _FILTERED if "Seccomp" in found else None,
        no_new_privileges=found["NoNewPrivs"] == "1" if "NoNewPrivs" in found else None,
        own_mounts=_own_mounts(pid, proc),
        label=_label(directory),
        devices=rules,
        cgroup_version=version,
        open_files=_count(directory / "fd"),
        open_files_limit=int(limit[1]) if limit and limit[1] != "unlimited" else None,
    )


def _own_mounts(pid: int, proc: Path) -> bool | None:
    """Against this process, which is the host's: PID 1's namespace only root may read."""
    try:
        return (proc / str(pid) / "ns/mnt").readlink() != (proc / "self/ns/mnt").readlink()
    except OSError:
        return None


def _label(directory: Path) -> str | None:
    """Of either module; a kernel without one answers with an error."""
    try:
        text = read_permitted(directory / "attr/current") or ""
    except KvmctlError:
        return ""
    label = text.strip("\0\n ").partition(" (")[0]
    return "" if label in _NO_LABEL else label


def _devices(pid: int, proc: Path) -> tuple[tuple[str, ...] | None, int | None]:
    lines = (read_permitted(proc / str(pid) / "cgroup") or "").splitlines()
    paths = {controller: line.split(":", 2)[2] for line in lines for controller in line.split(":", 2)[1].split(",")}
    for mount in cgroup.mounts(proc):
        if "devices" in mount.controllers and "devices" in paths:
            path = mount.point / paths["devices"].removeprefix(mount.root).lstrip("/")
            text = read_permitted(path / "devices.list")
            return (None if text is None else tuple(text.splitlines())), 1
    return None, 2 if lines else None


def _count(directory: Path) -> int | None:
    try:
        return sum(1 for _ in directory.iterdir())
    except OSError:
        return None
