"""Whether a process of another user gets at a file."""

from __future__ import annotations

import grp
import pwd
import stat
from pathlib import Path


def exists(path: str) -> bool:
    """Whether there is anything at `path`."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def closed_folder(path: str, uid: int, gid: int) -> Path | None:
    """The first folder on the way to `path` that this user may not pass; None where the way is open.

    Mode bits only: where an access list grants more, libvirt's own error says the rest.
    """
    if uid == 0:
        return None
    groups = _groups(uid, gid)
    for folder in reversed(Path(path).resolve().parents):
        try:
            status = folder.stat()
        except OSError:
            return None
        if _has_access_list(folder):
            return None
        if status.st_uid == uid:
            passable = status.st_mode & stat.S_IXUSR
        elif status.st_gid in groups:
            passable = status.st_mode & stat.S_IXGRP
        else:
            passable = status.st_mode & stat.S_IXOTH
        if not passable:
            return folder
    return None


def _has_access_list(folder: Path) -> bool:
    import os

    try:
        return "system.posix_acl_access" in os.listxattr(folder)
    except OSError:
        return False


def _groups(uid: int, gid: int) -> set[int]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return {gid}
    return {gid} | {group.gr_gid for group in grp.getgrall() if name in group.gr_mem}


def user_name(uid: int) -> str:
    """The name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
