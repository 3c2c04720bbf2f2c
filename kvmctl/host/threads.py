"""The weights of a guest's groups of threads: libvirt makes one for the emulator, each I/O thread and each vCPU,
and gives all of them the same weight."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kvmctl.host import cgroup
from kvmctl.host.files import read_int

_HELPER = re.compile(r"emulator|iothread\d+")
_VCPU = re.compile(r"vcpu\d+")


@dataclass(frozen=True, slots=True)
class Threads:
    """One guest's groups of threads. Weights are by the group's name; None is unknown."""

    directory: Path
    """That holds them."""
    version: int
    helpers: Mapping[str, int | None]
    """Emulator and I/O threads."""
    vcpus: tuple[str, ...]


def read(own: Path, version: int) -> Threads | None:
    """The groups of the guest whose own directory this is; None where it has none, or is gone."""
    directory = cgroup.threads_directory(own)
    try:
        helpers, vcpus = _groups(tuple(os.listdir(directory)))  # noqa: PTH208  it would make a path of each
    except OSError:
        return None
    if not helpers or not vcpus:
        return None
    return Threads(directory, version, {name: weight(f"{directory}/{name}", version) for name in helpers}, vcpus)


@lru_cache(maxsize=64)
def _groups(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of the names are helpers' groups, and which vCPUs': most guests' folders hold the same."""
    ordered = sorted(names)
    helpers, vcpus = (tuple(filter(kind.fullmatch, ordered)) for kind in (_HELPER, _VCPU))
    return helpers, vcpus


def weight(directory: str | Path, version: int) -> int | None:
    """What one group weighs; None where it is gone, or the CPU controller is not enabled for it."""
    return read_int(f"{directory}/{cgroup.WEIGHT_FILES[version]}")
