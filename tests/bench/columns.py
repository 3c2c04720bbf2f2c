"""How the guests of the CPU bench are treated: weights as virsh sets them, kvmctl's, and kvmctl's with its tick."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.host import cgroup
from tests.bench.cli import URI
from tests.bench.measure import Target, known_weight
from tests.bench.scenarios import BenchGuest
from tests.bench.timing import quiet_env

COLUMNS = ("raw", "static", "tick")
DEFAULT_WEIGHT = {1: 1024, 2: 100}
"""The kernel's, by cgroup version."""
EVERY = 5
"""Seconds between two ticks."""
_PERIOD = 100_000
_UNLIMITED = {f"{kind}_quota": -1 for kind in ("vcpu", "emulator", "iothread")}


@dataclass(frozen=True, slots=True)
class Kvmctl:
    """The command line, with a state directory of its own."""

    state: Path

    def command(self, *arguments: str) -> list[str]:
        """The words of a command line."""
        return [str(Path(sys.executable).with_name("kvmctl")), "--yes", "-c", URI, *arguments]

    @property
    def env(self) -> dict[str, str]:
        """The environment of its processes, in which the host's policy is the default one."""
        return quiet_env() | {"KVMCTL_STATE_DIR": str(self.state), "KVMCTL_HOST_FILE": str(self.state / "no-policy")}

    def run(self, *arguments: str) -> None:
        """Run it to its end, which has to be a good one."""
        command = self.command(*arguments)
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        _check(command, done.returncode, done.stderr)

    def has(self, *words: str) -> bool:
        """Whether there is such a command."""
        command = self.command(*words, "--help")
        return subprocess.run(command, env=self.env, capture_output=True, check=False).returncode == 0


def _check(command: Sequence[str], code: int, said: str) -> None:
    if code:
        raise SystemExit(f"{' '.join(command)}: exit {code}\n{said}")


class Tick:
    """`kvmctl rebalance` in a process of its own, as cron runs it. `cores` is the CPU it took, known at its end."""

    def __init__(self, kvmctl: Kvmctl, seconds: float) -> None:
        self.cores: float | None = None
        self._command = kvmctl.command("rebalance", "--for", f"{seconds:.0f}s", "--every", f"{EVERY}s")
        self._begun = time.monotonic()
        self._process = subprocess.Popen(
            self._command, env=kvmctl.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def running(self) -> None:
        """Fails where it has ended already."""
        if self._process.poll() is not None:
            said, _none = self._process.communicate(timeout=120)
            raise SystemExit(f"{' '.join(self._command)} ended before the window did: {said}")

    def finish(self) -> None:
        """End it, and see that it had nothing to complain about."""
        before = _children()
        self._process.terminate()
        said, _none = self._process.communicate(timeout=120)
        self.cores = (_children() - before) / (time.monotonic() - self._begun)
        if complaints := [line for line in said.splitlines() if line.startswith(("error:", "warning:"))]:
            print("\n".join(complaints), file=sys.stderr, flush=True)

    def abandon(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.communicate(timeout=120)


def _children() -> float:
    """Seconds of CPU that the processes took which were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def ticking(kvmctl: Kvmctl, seconds: float) -> Iterator[Tick]:
    """The tick for so many seconds, or until the block fails."""
    tick = Tick(kvmctl, seconds)
    try:
        yield tick
        tick.running()
        tick.finish()
    finally:
        tick.abandon()


def set_raw(connection: Any, guests: Sequence[BenchGuest], targets: Sequence[Target]) -> None:
    """What `virsh schedinfo` can say, shares and limits, and everything else as the kernel has it by default."""
    for guest, one in zip(guests, targets, strict=True):
        domain = connection.lookupByName(guest.name)
        quota = round(guest.limit * _PERIOD) if math.isfinite(guest.limit) else -1
        values = {"cpu_shares": guest.shares, "global_period": _PERIOD, "global_quota": quota, **_UNLIMITED}
        domain.setSchedulerParametersFlags(values, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        for directory in (path for path in one.directory.rglob("*") if path.is_dir()):
            write_weight(directory, one.version, DEFAULT_WEIGHT[one.version])
        _unpin(domain)
        assert one.weight == guest.shares, f"{guest.name} has weight {one.weight} after {guest.shares} was set"
    write_weight(targets[0].directory.parent, targets[0].version, DEFAULT_WEIGHT[targets[0].version])


def _unpin(domain: Any) -> None:
    """Let every thread of a running guest run anywhere, where it may not."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    for number, allowed in enumerate(domain.vcpuPinInfo(live)):
        if not all(allowed):
            domain.pinVcpuFlags(number, (True,) * len(allowed), live)
    allowed = domain.emulatorPinInfo(live)
    if not all(allowed):
        domain.pinEmulator((True,) * len(allowed), live)


def write_weight(directory: Path, version: int, weight: int) -> None:
    """Set the weight of a cgroup directory, and see that it is set."""
    (directory / ("cpu.shares" if version == 1 else "cpu.weight")).write_text(str(weight))
    found = known_weight(directory, version)
    assert found == weight, f"{directory} has weight {found} after {weight} was set"


def top_weights() -> dict[Path, int]:
    """The weights of the cgroups right below the root: one of them is or will be the guests' parent."""
    mount = cgroup.cpu_mount(cgroup.mounts())
    assert mount is not None, "no CPU controller is mounted"
    found = {path: cgroup.weight(path, mount.version) for path in mount.point.iterdir() if path.is_dir()}
    return {path: weight for path, weight in found.items() if weight is not None}


def put_back(kvmctl: Kvmctl, before: Mapping[Path, int], version: int) -> None:
    """Undo what kvmctl did to the host; weights below the root are as `before`, else the default."""
    if kvmctl.has("host", "restore"):
        kvmctl.run("host", "restore")
    for path, weight in top_weights().items():
        due = before.get(path, DEFAULT_WEIGHT[version])
        if weight != due:
            print(f"bench: {path} had weight {weight}, which is put back to {due}", file=sys.stderr)
            write_weight(path, version, due)
