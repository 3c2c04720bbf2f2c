"""The CPU that guests, processes and the host take over a window, from the kernel's own counters."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvmctl.host import cgroup, process

Counter = Callable[[], int]
"""Reads nanoseconds of CPU since some moment in the past."""

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6):
        pass
"""
"""It ends with this process, however that ends."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running guest: its QEMU process, and its own directory in the CPU hierarchy."""

    name: str
    pid: int
    directory: Path
    version: int

    @property
    def weight(self) -> int:
        """As in the kernel's file."""
        return known_weight(self.directory, self.version)


@dataclass(frozen=True, slots=True)
class Window:
    """Cores that were used between two readings; guests by name."""

    seconds: float
    used: Mapping[str, float]
    threads: Mapping[str, tuple[float, float]]
    """What the vCPU threads ran, and what they waited for a CPU."""
    process: float
    """The busy processes of the host."""
    host: float
    """Everything on it."""
    steal: float
    weights: Mapping[str, tuple[int, int]]
    """Each guest's at the two ends."""
    parent_weights: tuple[int, int]


def target(name: str, uuid: str) -> Target:
    """A running guest, found by its UUID."""
    pid = process.find_guests([uuid])[uuid]
    directory = cgroup.guest_directory(pid)
    assert directory is not None, f"{name} has no CPU cgroup of its own"
    return Target(name, pid, directory, cgroup.version())


def known_weight(directory: Path, version: int) -> int:
    """The weight of a cgroup directory, which has to have one."""
    found = cgroup.weight(directory, version)
    assert found is not None, f"{directory} has no CPU weight"
    return found


def watch(targets: Sequence[Target], busy: Sequence[int], seconds: float) -> Window:
    """What happens in the next seconds; `busy` are the processes that keep the host busy."""
    counters = dict(_counters(targets, busy))
    parent, version = targets[0].directory.parent, targets[0].version
    weights, begun = [_weights(targets)], time.monotonic()
    parents = [known_weight(parent, version)]
    first = {key: _reading(counter) for key, counter in counters.items()}
    time.sleep(seconds)
    last = {key: _reading(counter) for key, counter in counters.items()}
    weights.append(_weights(targets))
    parents.append(known_weight(parent, version))
    rates = {key: _rate(first[key], last[key]) for key in counters}
    return Window(
        seconds=time.monotonic() - begun,
        used={one.name: rates["used", one.name] for one in targets},
        threads={one.name: (rates["ran", one.name], rates["waited", one.name]) for one in targets},
        process=rates["process", ""],
        host=rates["host", ""],
        steal=rates["steal", ""],
        weights={one.name: (weights[0][one.name], weights[1][one.name]) for one in targets},
        parent_weights=(parents[0], parents[1]),
    )


def _weights(targets: Sequence[Target]) -> dict[str, int]:
    return {one.name: one.weight for one in targets}


def _counters(targets: Sequence[Target], busy: Sequence[int]) -> Iterator[tuple[tuple[str, str], Counter]]:
    for one in targets:
        yield ("used", one.name), usage(one.directory)
        threads = vcpu_threads(one.pid)
        yield ("ran", one.name), partial(_schedstat, threads, 0)
        yield ("waited", one.name), partial(_schedstat, threads, 1)
    mount = cgroup.cpu_mount(cgroup.mounts())
    assert mount is not None
    yield ("process", ""), partial(_schedstat, [Path(f"/proc/{pid}/schedstat") for pid in busy], 0)
    yield ("host", ""), usage(mount.point)
    yield ("steal", ""), _steal


def _reading(counter: Counter) -> tuple[int, int]:
    return time.monotonic_ns(), counter()


def _rate(first: tuple[int, int], last: tuple[int, int]) -> float:
    return (last[1] - first[1]) / (last[0] - first[0])


def usage(directory: Path) -> Counter:
    """The CPU that a directory of the CPU hierarchy uses. Where version 1 sets the weights, what is used may be
    counted elsewhere: in a hierarchy for that, or in the unified one."""
    visible = cgroup.mounts()
    cpu = cgroup.cpu_mount(visible)
    assert cpu is not None, "no CPU controller is mounted"
    same = [mount.point / directory.relative_to(cpu.point) for mount in visible]
    if counted := next((path for path in same if (path / "cpuacct.usage").exists()), None):
        return partial(_nanoseconds, counted / "cpuacct.usage")
    return partial(_usage, next(path / "cpu.stat" for path in same if _counts(path / "cpu.stat")))


def _counts(file: Path) -> bool:
    return file.exists() and "usage_usec" in file.read_text()


def _nanoseconds(file: Path) -> int:
    return int(file.read_text())


def _usage(file: Path) -> int:
    return int(dict(line.split() for line in file.read_text().splitlines())["usage_usec"]) * 1000


def vcpu_threads(pid: int) -> list[Path]:
    """The `schedstat` files of a QEMU's vCPU threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [task / "schedstat" for task in tasks if (task / "comm").read_text().startswith("CPU ")]


def _schedstat(files: Sequence[Path], field: int) -> int:
    """Nanoseconds that threads ran (field 0), or were ready to run and did not (field 1)."""
    return sum(int(file.read_text().split()[field]) for file in files)


def wanted(threads: Sequence[Path]) -> int:
    """Nanoseconds that threads ran, or were ready to run."""
    return _schedstat(threads, 0) + _schedstat(threads, 1)


def _steal() -> int:
    """Nanoseconds in which this host was ready to run and what it runs on had no CPU for it."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) * _TICK_NS


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """That many processes of ordinary priority that want a core each, in this process's own cgroup."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        for one in started:
            os.setpriority(os.PRIO_PROCESS, one.pid, 0)
        yield [one.pid for one in started]
    finally:
        for one in started:
            one.kill()
            one.wait()
