"""The policy of this machine, for the hypervisors that run on it. Those of other machines have their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host.files import read_written
from kvmctl.model.errors import UsageError
from kvmctl.model.hostpolicy import HostPolicy

FILE = Path("/etc/kvmctl/host.yaml")


@dataclass(frozen=True, slots=True)
class Found:
    """The policy, and the file that says it; where there is no such file, the policy is the default."""

    policy: HostPolicy
    path: Path
    exists: bool


def host_policy() -> HostPolicy:
    """This machine's policy. Raises UsageError where its file cannot be read, or holds what it should not."""
    return find().policy


def find() -> Found:
    """This machine's policy, and where it is from: KVMCTL_HOST_FILE, else /etc/kvmctl/host.yaml. Raises as
    `host_policy`."""
    return _find(Path(os.environ.get("KVMCTL_HOST_FILE") or FILE))


def read(path: Path) -> HostPolicy:
    """The policy that a file says. Raises UsageError where there is no such file, and as `host_policy`."""
    found = _find(path)
    if not found.exists:
        raise UsageError(f"there is no policy file {path}", "copy the host's /etc/kvmctl/host.yaml there")
    return found.policy


def _find(path: Path) -> Found:
    data = read_written(path, "the host's policy")
    if data is None:
        return Found(HostPolicy(), path, exists=False)
    # These load YAML, which a host without the file does not pay for.
    from kvmctl.host.cpu import base_mhz
    from kvmctl.model.fields import Context
    from kvmctl.model.hostfile import load

    return Found(load(str(path), data, Context(base_mhz())), path, exists=True)
