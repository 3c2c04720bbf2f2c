"""The state of a guest's emulated TPM, which libvirt has swtpm keep in a folder by the guest's UUID."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmctl.host.files import read_permitted, write_atomic
from kvmctl.hypervisor import domains
from kvmctl.model.errors import ConflictError, KvmctlError
from kvmctl.xml.carried import carried

FOLDER = Path("/var/lib/libvirt/swtpm")
_CONFIG = Path("/etc/libvirt/qemu.conf")
_FILES = {"1.2": "tpm1.2/tpm-00.permall", "2.0": "tpm2/tpm2-00.permall"}
"""What swtpm calls its one file of lasting state, by the version of the TPM."""


def file(uuid: str, version: str) -> Path:
    """Where the state of that guest's TPM lies."""
    return FOLDER / uuid / _FILES.get(version, _FILES["2.0"])


def state(domain: Any) -> bytes | None:
    """The state of a guest's TPM, whole also while it is in use: swtpm replaces the file. None for a guest without a
    TPM, or one that has never been started. Raises KvmctlError."""
    version = carried(domains.definition(domain)).tpm
    if version is None:
        return None
    path = file(domain.UUIDString(), version)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KvmctlError(f"cannot read {path}: {error.strerror}", "run this as root") from error


def check_free(uuid: str) -> None:
    """Raise ConflictError where there is the state of a TPM of such a guest already."""
    if os.path.lexists(FOLDER / uuid):
        raise ConflictError(
            f"{FOLDER / uuid} exists already: the TPM of a guest with that UUID",
            "--new-identity gives it another UUID, or move that folder away",
        )


def install(uuid: str, version: str, content: bytes) -> None:
    """Give a guest that is not defined yet the state of its TPM, as libvirt would have made it. Raises KvmctlError."""
    path = file(uuid, version)
    owner = _owner()
    try:
        FOLDER.mkdir(mode=0o711, exist_ok=True)
        path.parents[1].mkdir(mode=0o711)
        path.parent.mkdir(mode=0o700)
        write_atomic(path, content)
        for one in (path.parent, path):
            os.chown(one, *owner)
    except OSError as error:
        raise KvmctlError(f"cannot make {path}: {error.strerror}", f"ls -ld {FOLDER}") from error


def remove(uuid: str) -> None:
    """Take away the state of a guest that does not come to be."""
    shutil.rmtree(FOLDER / uuid, ignore_errors=True)


def _owner() -> tuple[int, int]:
    """Whom libvirt runs swtpm as: (user, group)."""
    text = read_permitted(_CONFIG) or ""
    named = re.search(r'^\s*swtpm_user\s*=\s*"([^"]+)"', text, re.MULTILINE)
    name = named[1] if named else "tss"
    with suppress(KeyError, ValueError):
        found = pwd.getpwuid(int(name[1:])) if name.startswith("+") else pwd.getpwnam(name)
        return found.pw_uid, found.pw_gid
    return 0, 0
