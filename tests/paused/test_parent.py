"""The guests' parent and their threads in this machine's own hierarchy, of either cgroup version, and the kernel's law
that their weights rely on, with busy processes in place of guests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from kvmctl.control import threads as control
from kvmctl.host import cgroup, parent, threads
from kvmctl.host.journal import Journal
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.policy.parent import DEFAULT_WEIGHT, parent_weight
from tests.conftest import Kvmctl
from tests.support import PREFIX, Guest, until

pytestmark = pytest.mark.paused

BUSY = "while True: pass"
TOGETHER = 2_000_000_000
"""Nanoseconds of CPU after which busy processes have been measured: nothing depends on how long that takes."""


@pytest.fixture
def mount() -> cgroup.Mount:
    found = cgroup.cpu_mount(cgroup.mounts())
    assert found
    return found


@pytest.fixture
def guest(hypervisor: Hypervisor, make_name: Callable[..., str], mount: cgroup.Mount) -> Iterator[Guest]:
    """A paused guest with one vCPU and one I/O thread; its parent weighs afterwards what it did before."""
    name = make_name("parent")
    hypervisor.connection.createXML(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><iothreads>1</iothreads>"
        "<os><type arch='x86_64'>hvm</type></os></domain>",
        libvirt.VIR_DOMAIN_START_PAUSED,
    )
    found = Guest(hypervisor, name)
    above = parent.parent([found.cgroup], cgroup.mounts())
    assert above
    assert above.weight
    try:
        yield found
    finally:
        if cgroup.weight(above.path, above.version) != above.weight:
            parent.set_weight(above, above.weight)


class Busy:
    """Busy processes on one CPU, or on as many as there are, in groups of the CPU hierarchy."""

    def __init__(self, mount: cgroup.Mount) -> None:
        self.mount = mount
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, directory: Path, cpu: int | None = None) -> int:
        """Start one in this group, on this CPU alone where one is given."""
        process = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
        self.started.append(process)
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        self._move(process.pid, directory)
        return process.pid

    def _move(self, pid: int, directory: Path) -> None:
        if self.mount.version == 1:
            (directory / "cgroup.procs").write_text(str(pid))
            return
        if (directory / "cgroup.type").read_text().strip() == "threaded":
            # Only from within the threads' own domain may a thread enter one of its groups.
            (directory.parent / "cgroup.procs").write_text(str(pid))
            (directory / "cgroup.threads").write_text(str(pid))
        else:
            (directory / "cgroup.procs").write_text(str(pid))

    def parts(self, *pids: int) -> list[float]:
        """What each of the CPU that they get together."""
        before = [used(pid) for pid in pids]
        after = until(
            lambda: [used(pid) for pid in pids],
            lambda now: sum(now) - sum(before) > TOGETHER,
            240,
            "the CPU time of busy processes",
        )
        spent = [late - early for early, late in zip(before, after, strict=True)]
        return [one / sum(spent) for one in spent]

    def stop(self) -> None:
        """End them all, so that their groups are empty."""
        for process in self.started:
            process.kill()
            process.wait()


def used(pid: int) -> int:
    """Nanoseconds of CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@pytest.fixture
def busy(mount: cgroup.Mount) -> Iterator[Busy]:
    found = Busy(mount)
    yield found
    found.stop()


@pytest.fixture
def level(mount: cgroup.Mount, busy: Busy) -> Iterator[Path]:
    """A group of a test's own that stands for the whole host; what is busy in it has ended before it goes."""
    path = mount.point / f"{PREFIX}level-{os.getpid()}"
    path.mkdir()
    if mount.version == 2:
        (path / "cgroup.subtree_control").write_text("+cpu")
    yield path
    busy.stop()
    inner = [folder for folder in path.iterdir() if folder.is_dir()]
    for folder in (*inner, path):
        folder.rmdir()


def test_the_parent_is_the_guests_directory_above_and_the_one_that_libvirt_would_use(guest: Guest) -> None:
    found, without = parent.parent([guest.cgroup], cgroup.mounts()), parent.parent([], cgroup.mounts())
    assert found == without
    assert found
    assert found.path == guest.cgroup.parent
    assert found.weight == int(found.file.read_text())


def test_its_weight_is_set_and_read_back(guest: Guest) -> None:
    found = parent.parent([guest.cgroup], cgroup.mounts())
    assert found
    assert found.weight
    other = found.weight + 1
    assert parent.set_weight(found, other) == other
    assert cgroup.weight(found.path, found.version) == other


def test_what_competes_with_it_is_seen(guest: Guest, level: Path, busy: Busy, mount: cgroup.Mount) -> None:
    found = parent.parent([guest.cgroup], cgroup.mounts())
    assert found
    assert level.name not in dict(parent.competitors(found).groups)
    inner = level / "inner"
    inner.mkdir()
    busy.start(inner)
    assert dict(parent.competitors(found).groups)[level.name] == DEFAULT_WEIGHT[mount.version]


@pytest.mark.parametrize("reserve", [0.05, 0.25])
def test_guests_get_their_capacity_beside_a_busy_group(
    level: Path, busy: Busy, mount: cgroup.Mount, reserve: float
) -> None:
    """On one CPU, so that it does not matter what else this machine does."""
    guests, others = level / "guests", level / "others"
    for path in (guests, others):
        path.mkdir()
    above = parent.at(guests, mount)
    competing = cgroup.weight(others, mount.version)
    assert competing
    wanted = parent_weight(mount.version, 1 - reserve, reserve, competing)
    assert parent.set_weight(above, wanted) == wanted
    parts = busy.parts(busy.start(guests, cpu=0), busy.start(others, cpu=0))
    assert parts[0] == pytest.approx(1 - reserve, abs=0.02)


def test_a_task_without_a_group_weighs_as_a_group_does(level: Path, busy: Busy, mount: cgroup.Mount) -> None:
    if mount.version == 2:
        pytest.skip("cgroup v2 has no tasks beside groups but at its root")
    guests = level / "guests"
    guests.mkdir()
    assert parent.set_weight(parent.at(guests, mount), parent_weight(1, 0.9, 0.1, 1024)) == 9216
    parts = busy.parts(busy.start(guests, cpu=0), busy.start(level, cpu=0))
    assert parts[0] == pytest.approx(0.9, abs=0.02)


@pytest.fixture
def groups(guest: Guest, mount: cgroup.Mount) -> Callable[[], dict[str, int | None]]:
    """The weights of the guest's groups of threads, as the kernel has them."""

    def read() -> dict[str, int | None]:
        found = threads.read(guest.cgroup, mount.version)
        assert found
        return {name: threads.weight(found.directory / name, mount.version) for name in (*found.helpers, *found.vcpus)}

    return read


def test_helpers_are_made_light_once(
    guest: Guest, mount: cgroup.Mount, groups: Callable[[], dict[str, int | None]], tmp_path: Path
) -> None:
    journal, default = Journal(tmp_path / "journal.json"), DEFAULT_WEIGHT[mount.version]
    assert groups() == {"emulator": default, "iothread1": default, "vcpu0": default}
    due = control.plan([(guest.name, guest.cgroup)], mount.version, journal)
    assert {outcome.result for outcome in control.make(due, journal)} == {"changed"}
    assert groups() == {"emulator": default // 20, "iothread1": default // 20, "vcpu0": default}
    assert control.plan([(guest.name, guest.cgroup)], mount.version, journal) == []
    guest.domain.destroy()
    until(lambda: guest_gone(journal), bool, 20, "the guest's groups removed")
    control.forget_ended(journal)
    assert journal.entries(control.KIND) == {}


def guest_gone(journal: Journal) -> bool:
    return not any(Path(key).exists() for key in journal.entries(control.KIND))


def test_a_busy_emulator_leaves_a_vcpu_nine_tenths(
    guest: Guest, mount: cgroup.Mount, busy: Busy, tmp_path: Path
) -> None:
    """All on one CPU. Two busy processes in the emulator's group are no more than one."""
    directory = cgroup.threads_directory(guest.cgroup)
    vcpu = busy.start(directory / "vcpu0", cpu=0)
    helpers = [busy.start(directory / name, cpu=0) for name in ("emulator", "emulator", "iothread1")]
    assert busy.parts(vcpu, *helpers)[0] == pytest.approx(1 / 3, abs=0.05)
    journal = Journal(tmp_path / "journal.json")
    control.make(control.plan([(guest.name, guest.cgroup)], mount.version, journal), journal)
    assert busy.parts(vcpu, *helpers)[0] >= 0.9


def test_a_limit_counts_emulator_and_io_threads(guest: Guest, mount: cgroup.Mount, busy: Busy) -> None:
    """Half a core for a guest, all of whose threads want as much as there is."""
    guest.domain.setSchedulerParametersFlags(
        {"global_period": 100_000, "global_quota": 50_000}, libvirt.VIR_DOMAIN_AFFECT_LIVE
    )
    found = cgroup.read(guest.pid)
    assert found
    assert found.quota_cores == 0.5
    directory = cgroup.threads_directory(guest.cgroup)
    pids = [busy.start(directory / name) for name in ("vcpu0", "emulator", "iothread1")]
    limited = next(path for path in (directory, guest.cgroup) if cgroup.quota(path, mount.version) == 0.5)
    before, spent = statistics(limited)["nr_periods"], [used(pid) for pid in pids]
    until(lambda: statistics(limited)["nr_periods"] - before, lambda periods: periods >= 40, 60, "periods of the limit")
    now = [used(pid) for pid in pids]
    periods = statistics(limited)["nr_periods"] - before + 1
    each = [late - early for early, late in zip(spent, now, strict=True)]
    assert sum(each) <= 1.05 * periods * 50_000_000
    assert min(each) > 0
    assert statistics(limited)["nr_throttled"] > 0


def statistics(directory: Path) -> dict[str, int]:
    return {
        name: int(value) for name, value in (line.split() for line in (directory / "cpu.stat").read_text().splitlines())
    }


def test_many_io_threads(hypervisor: Hypervisor, make_name: Callable[..., str], kvmctl: Kvmctl) -> None:
    """As a tick finds them: one journal write, every group, and nothing the second time."""
    name = make_name("many")
    hypervisor.connection.createXML(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>"
        "<iothreads>14</iothreads><os><type arch='x86_64'>hvm</type></os></domain>",
        libvirt.VIR_DOMAIN_START_PAUSED,
    )
    try:
        made = kvmctl("-c", "qemu:///system", "-o", "json", "rebalance").json()
        mine = [row for row in made if row["name"] == name]
        assert len([row for row in mine if row["field"].startswith("cpu.weight.")]) >= 15
        assert {row["result"] for row in mine} == {"changed"}
    finally:
        kvmctl("-c", "qemu:///system", "host", "restore")


def test_the_doctor_says_what_is_wrong_until_a_tick_has_put_it_right(
    guest: Guest, mount: cgroup.Mount, kvmctl: Kvmctl
) -> None:
    found = parent.parent([guest.cgroup], cgroup.mounts())
    assert found
    parent.set_weight(found, DEFAULT_WEIGHT[mount.version])
    checks = doctor(kvmctl)
    assert [checks[name]["result"] for name in ("parent weight", "thread weights")] == ["warn", "warn"]
    assert guest.name in checks["thread weights"]["found"]
    kvmctl("-c", "qemu:///system", "rebalance")
    assert doctor(kvmctl)["parent weight"]["result"] == "ok"
    assert "thread weights" not in doctor(kvmctl)


def doctor(kvmctl: Kvmctl) -> dict[str, dict[str, str]]:
    checks = kvmctl("-c", "qemu:///system", "-o", "json", "host", "doctor", code=None).json()
    return {check["name"]: check for check in checks}
