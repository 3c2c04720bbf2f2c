"""The doctor's checks of what the guests have to share the CPUs with: the rest of the host, and their own emulators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from kvmctl.control import hostpolicy, threads
from kvmctl.control.doctor.check import Check
from kvmctl.control.parent import Standing, standing
from kvmctl.host import cgroup, cpu, parent, process
from kvmctl.host.files import read_int
from kvmctl.host.journal import Journal
from kvmctl.host.parent import Alone
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.hostpolicy import HostPolicy, capacity
from kvmctl.model.sample import ACTIVE
from kvmctl.model.units import format_cores
from kvmctl.policy.parent import WEIGHT_RANGE

NAME = "parent weight"
ENOUGH = 0.99
"""The part of their capacity that guests get at least where nothing is wrong."""
_SET = "kvmctl rebalance, or kvmctl rebalance install to have it kept so"
_REAL_TIME = Path("/proc/sys/kernel/sched_rt_runtime_us")


def checks(
    hypervisor: Hypervisor | None, visible: tuple[cgroup.Mount, ...] | None = None, root: Path = Path("/")
) -> Iterator[Check]:
    """Whether guests get their capacity while the rest of the host is busy, what competes with them, and whether
    their emulators do. `visible` and `root` are for a host's files that lie elsewhere. Raises UsageError where the
    host's policy cannot be read."""
    policy, cpus = hostpolicy.host_policy(), len(cpu.online())
    visible = cgroup.mounts() if visible is None else visible
    directories = _directories(hypervisor, visible)
    found = standing(directories.values(), capacity(policy, cpus), cpus, visible, root=root)
    if found is None:
        yield _nowhere(directories)
    else:
        yield _weight(found, policy, runs=bool(directories) or _has_guests(found.parent.path))
        if found.competitors.alone:
            yield from _alone(parent.alone(found.parent), cpus)
        yield from _threads(directories, found.parent.version, policy)
    if read_int(_REAL_TIME) == -1:
        cause = f"{_REAL_TIME} is -1, so nothing ends what a real-time task takes"
        hint = "sysctl kernel.sched_rt_runtime_us=950000"
        yield Check("real-time", "warn", "real-time tasks of the host may take whole CPUs from guests", cause, hint)


def _directories(hypervisor: Hypervisor | None, visible: tuple[cgroup.Mount, ...]) -> Mapping[str, Path]:
    """Where the active guests have their CPU settings, by name."""
    if hypervisor is None:
        return {}
    names = {sample.uuid: sample.name for sample in domains.samples(hypervisor) if sample.state in ACTIVE}
    found = {
        names[uuid]: cgroup.guest_directory(pid, visible=visible) for uuid, pid in process.find_guests(names).items()
    }
    return {name: path for name, path in found.items() if path}


def _has_guests(above: Path) -> bool:
    return any(path.is_dir() for path in above.iterdir())


def _nowhere(directories: Mapping[str, Path]) -> Check:
    if not directories:
        return Check(NAME, "ok", "no guest runs that competes with the rest of the host")
    above = ", ".join(sorted({path.parent.name for path in directories.values()}))
    return Check(
        NAME,
        "warn",
        f"guests are in several control groups: {above}",
        "each of them competes with the rest of the host on its own, and no one weight keeps what all may use",
        "let them have one partition: <resource><partition>/machine</partition></resource>",
    )


def _weight(found: Standing, policy: HostPolicy, runs: bool) -> Check:
    above = found.parent
    if found.kept is None:
        name = above.unit or f"{above.path}"
        hint = (
            f"systemctl set-property --runtime {above.unit} CPUWeight=100"
            if above.unit
            else f"echo +cpu > {above.path.parent}/cgroup.subtree_control"
        )
        return Check(
            NAME,
            "fail",
            f"the CPU controller is not enabled for {name}: shares and reservations have no effect",
            f"{above.file} does not exist",
            hint,
        )
    theirs = f"{format_cores(found.capacity)} of {found.cpus} cores"
    said = f"{above.path.name} weighs {above.weight} against {found.competing} ({_rivals(found)})"
    if found.kept >= ENOUGH * found.capacity:
        return Check(NAME, "ok", f"guests get their {theirs} whatever else is busy: {said}")
    if not runs:
        return Check(NAME, "ok", f"no guest runs; {said}")
    short = f"guests get {found.kept:.3g} instead of {theirs} while the rest of the host is busy"
    if policy.cpu.parent == "leave":
        return Check(
            NAME, "warn", short, f"{said}, which the policy leaves", f"cpu.parent: manage in {hostpolicy.FILE}"
        )
    if found.attainable < ENOUGH * found.capacity and above.weight == found.wanted:
        most = WEIGHT_RANGE[above.version][1]
        hint = f"write cpu: {{reserve: {found.cpus - found.attainable:.3g}}} in {hostpolicy.FILE}: no less is left"
        return Check(NAME, "warn", short, f"{said}, and the kernel takes no more than {most}", hint)
    return Check(NAME, "warn", short, said, _SET)


def _rivals(found: Standing) -> str:
    names = [f"{name} {weight}" for name, weight in found.competitors.groups]
    if found.competitors.alone:
        names.append("one task in no group")
    return ", ".join(names) or "nothing has processes beside it"


def _alone(found: Alone, cpus: int) -> Iterator[Check]:
    """What is in no control group of its own: without systemd that is all of the host."""
    if not found.tasks:
        return
    name, many = "root tasks", f"{found.tasks} tasks of the host are in no control group"
    if found.sessions:
        cause = (
            f"each session weighs as much as one task against all guests together; "
            f"while more than {cpus} are busy, guests get less until a tick has measured it"
        )
        yield Check(name, "ok", f"{many}, {found.busy} of them busy", cause)
        return
    cause = (
        f"each of them competes with all guests together, and no weight can be chosen for all: {cpus} are allowed for"
    )
    grouped = read_int(Path("/proc/sys/kernel/sched_autogroup_enabled"))
    hint = (
        "let each session count as one: sysctl kernel.sched_autogroup_enabled=1"
        if grouped is not None
        else "put what is often busy in a group of its own, as systemd does: mkdir, then write its PID to cgroup.procs"
    )
    yield Check(name, "warn", f"{many}, {found.busy} of them busy", cause, hint)


def _threads(directories: Mapping[str, Path], version: int, policy: HostPolicy) -> Iterator[Check]:
    due = {one.change.guest for one in threads.plan(directories.items(), version, Journal())}
    if not due or policy.cpu.threads == "leave":
        return
    some = ", ".join(sorted(due)[:3]) + (f" and {len(due) - 3} more" if len(due) > 3 else "")
    cause = "libvirt gives each group of a guest's threads the weight of a vCPU"
    yield Check("thread weights", "warn", f"the emulator may take a vCPU's part of {some}", cause, _SET)
