import os
from pathlib import Path

import pytest

from kvmctl.control import parent as control
from kvmctl.host import cgroup, parent
from kvmctl.host.journal import Journal
from kvmctl.model.errors import KvmctlError
from kvmctl.policy.parent import MOST_MEASURED
from tests.trees import V1_GUEST, V2_GUEST, Tree, fill, plain_host, systemd_host, v1

pytestmark = pytest.mark.unit


@pytest.fixture
def hybrid(tmp_path: Path) -> Tree:
    return plain_host(tmp_path)


@pytest.fixture
def unified(tmp_path: Path) -> Tree:
    return systemd_host(tmp_path)


def find(tree: Tree, *guests: str) -> parent.Parent | None:
    visible = cgroup.mounts(tree.proc)
    mount = cgroup.cpu_mount(visible)
    assert mount
    return parent.parent([mount.point / guest for guest in guests], visible, tree.top)


@pytest.mark.parametrize("guests", [(), (V1_GUEST,), (V1_GUEST, "machine/qemu-2-b.libvirt-qemu")])
def test_v1(hybrid: Tree, guests: tuple[str, ...]) -> None:
    path = hybrid.top / "cgroup/cpu/machine"
    assert find(hybrid, *guests) == parent.Parent(path, 1, 1024)


@pytest.mark.parametrize("guests", [(), (V2_GUEST,)])
def test_v2_belongs_to_systemd(unified: Tree, guests: tuple[str, ...]) -> None:
    path = unified.top / "cgroup/machine.slice"
    assert find(unified, *guests) == parent.Parent(path, 2, 100, "machine.slice")


def test_guests_in_partitions_have_libvirts_own_directory_in_common(hybrid: Tree) -> None:
    found = find(hybrid, V1_GUEST, "machine/prod.partition/qemu-2-b.libvirt-qemu")
    assert found
    assert found.path.name == "machine"


def test_guests_elsewhere_have_the_directory_that_they_are_in(hybrid: Tree) -> None:
    (hybrid.top / "cgroup/cpu/prod.partition").mkdir()
    found = find(hybrid, "prod.partition/qemu-2-b.libvirt-qemu", "prod.partition/qemu-3-c.libvirt-qemu")
    assert found
    assert found.path.name == "prod.partition"


def test_guests_on_a_host_in_a_namespace_are_in_that_hosts_directory(hybrid: Tree) -> None:
    (hybrid.top / "cgroup/cpu/hosts/one/machine").mkdir(parents=True)
    found = find(hybrid, "hosts/one/machine/qemu-1-a.libvirt-qemu")
    assert found
    assert found.path.parts[-3:] == ("hosts", "one", "machine")


def test_guests_with_nothing_in_common_have_no_parent(hybrid: Tree) -> None:
    assert find(hybrid, V1_GUEST, "prod.partition/qemu-2-b.libvirt-qemu") is None


def test_before_the_first_guest_there_is_none(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount("cpu", "cgroup", "rw,cpu")
    assert find(tree) is None
    assert find(tree, V1_GUEST) is None


def test_without_the_cpu_controller_there_is_none() -> None:
    assert parent.parent([], ()) is None


def test_siblings_that_have_processes_compete(unified: Tree) -> None:
    found = find(unified)
    assert found
    assert parent.competitors(found) == parent.Competitors((("init.scope", 100), ("system.slice", 100)), alone=False)


def test_v1_siblings_are_looked_through(hybrid: Tree) -> None:
    cpu = hybrid.top / "cgroup/cpu"
    fill(v1(cpu / "docker", 512) / "abc", cgroup__procs="123")
    fill(v1(cpu / "empty", 4096), cgroup__procs="")
    found = find(hybrid)
    assert found
    assert parent.competitors(found) == parent.Competitors((("docker", 512),), alone=True)


def task(tree: Tree, number: int, state: str, flags: int = 0x400100) -> None:
    before = "1 1 1 0 -1"
    (tree.proc / str(number)).mkdir(parents=True, exist_ok=True)
    (tree.proc / str(number) / "stat").write_text(f"{number} (a ) R b) {state} {before} {flags} 0 0 0 0 0 0 0 0 20 0\n")


def test_tasks_at_the_root_are_counted_without_the_kernels_and_our_own(hybrid: Tree) -> None:
    task(hybrid, 1, "S")
    task(hybrid, 2, "R", 0x208040)
    task(hybrid, 30, "R")
    task(hybrid, 31, "R")
    (hybrid.proc / "self/task/31").mkdir(parents=True)
    found = find(hybrid)
    assert found
    assert parent.alone(found, hybrid.proc) == parent.Alone(tasks=2, busy=1, sessions=False)
    fill(hybrid.proc / "sys/kernel", sched_autogroup_enabled=1)
    assert parent.alone(found, hybrid.proc).sessions
    (hybrid.top / "cgroup/cpu/release_agent").unlink()
    assert not parent.alone(found, hybrid.proc).sessions


def test_the_weight_is_written_and_read_back(hybrid: Tree) -> None:
    found = find(hybrid)
    assert found
    assert parent.set_weight(found, 38_912) == 38_912
    assert (found.path / "cpu.shares").read_text() == "38912"


@pytest.fixture
def systemctl(unified: Tree, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of systemd, what takes its words and does as it would; where the file `refuse` is, it does not."""
    program = unified.top / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" > {unified.top}/words\n'
        f'[ -e {unified.top}/refuse ] && {{ echo "Access denied" >&2; exit 1; }}\n'
        f'printf "%s\\n" "${{4#*=}}" > "{unified.top}/cgroup/$3/cpu.weight"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return unified.top


def test_where_systemd_owns_it_systemd_is_asked(unified: Tree, systemctl: Path) -> None:
    found = find(unified)
    assert found
    assert parent.set_weight(found, 5_700) == 5_700
    assert (systemctl / "words").read_text() == "set-property|--runtime|machine.slice|CPUWeight=5700|"


def test_what_systemd_refuses_is_said(unified: Tree, systemctl: Path) -> None:
    (systemctl / "refuse").touch()
    found = find(unified)
    assert found
    with pytest.raises(KvmctlError, match=r"systemd did not set CPUWeight of machine\.slice: Access denied"):
        parent.set_weight(found, 5_700)


def standing(tree: Tree, used: tuple[float, float] | None = None) -> control.Standing:
    found = control.standing([], 1.9, 2, cgroup.mounts(tree.proc), used, tree.top)
    assert found
    return found


def test_a_plan_is_made_once(hybrid: Tree) -> None:
    journal = Journal(hybrid.top / "journal.json")
    found = standing(hybrid)
    due = control.plan(found, journal)
    assert due
    assert (due.guest, due.field, due.old, due.new, due.how) == ("machine", "cpu.weight", 1024, 19_456, "live")
    assert due.reason == "guests get 1.9 of 2 cores whatever else is busy"
    assert control.make(found, due, journal).result == "changed"
    assert (hybrid.top / "cgroup/cpu/machine/cpu.shares").read_text() == "19456"
    entry = journal.entries(control.KIND)[str(found.parent.path)]
    assert (entry.old, entry.new) == (1024, 19_456)
    assert control.plan(standing(hybrid), journal) is None


def test_systemds_parent_is_planned_with_its_siblings(unified: Tree, systemctl: Path) -> None:
    journal = Journal(unified.top / "journal.json")
    found = standing(unified)
    due = control.plan(found, journal)
    assert due
    assert (due.guest, due.old, due.new) == ("machine.slice", 100, 3_800)
    assert control.make(found, due, journal).found == 3_800


def test_more_than_expected_is_kept_until_a_busy_host_shows_that_less_will_do(hybrid: Tree) -> None:
    journal = Journal(hybrid.top / "journal.json")

    def settle(used: tuple[float, float] | None) -> int | None:
        found = standing(hybrid, used)
        due = control.plan(found, journal)
        return standing(hybrid).parent.weight if due and control.make(found, due, journal).result == "changed" else None

    assert settle(None) == 19_456
    raised = settle((1.7, 0.3))
    assert raised == MOST_MEASURED * 19_456
    assert settle(None) is None
    assert settle((0.5, 0.2)) is None
    assert settle((1.9, 0.1)) is None
    assert settle((1.98, 0.02)) == 19_456


def test_somebody_elses_weight_is_corrected_or_respected(hybrid: Tree) -> None:
    journal, shares = Journal(hybrid.top / "journal.json"), hybrid.top / "cgroup/cpu/machine/cpu.shares"
    due = control.plan(standing(hybrid), journal)
    assert due
    control.make(standing(hybrid), due, journal)
    for foreign in (500, 1024, 200_000):
        shares.write_text(str(foreign))
        corrected = control.plan(standing(hybrid), journal)
        assert corrected
        assert (corrected.how, corrected.new) == ("live", 19_456)
        respected = control.plan(standing(hybrid), journal, respect=True)
        assert respected
        assert (respected.how, respected.reason) == ("refused", f"kvmctl had set 19456, and somebody else {foreign}")
        assert control.make(standing(hybrid), respected, journal).result == "not applied"
        assert shares.read_text() == str(foreign)


def test_without_the_controller_nothing_can_be_set(unified: Tree) -> None:
    (unified.top / "cgroup/machine.slice/cpu.weight").unlink()
    (unified.top / "run/systemd/system").rmdir()
    found = standing(unified)
    assert found.kept is None
    due = control.plan(found, Journal(unified.top / "journal.json"))
    assert due
    assert (due.how, due.reason) == ("refused", f"the CPU controller is not enabled for {found.parent.path}")


def test_with_systemd_setting_the_weight_enables_the_controller(unified: Tree, systemctl: Path) -> None:
    (unified.top / "cgroup/machine.slice/cpu.weight").unlink()
    journal, found = Journal(unified.top / "journal.json"), standing(unified)
    due = control.plan(found, journal)
    assert due
    assert control.make(found, due, journal).result == "changed"
    assert journal.entries(control.KIND)[str(found.parent.path)].old == 100


def test_a_weight_that_the_kernel_refuses_leaves_no_trace(hybrid: Tree) -> None:
    journal, found = Journal(hybrid.top / "journal.json"), standing(hybrid)
    due = control.plan(found, journal)
    assert due
    shares = found.parent.path / "cpu.shares"
    shares.unlink()
    shares.mkdir()
    assert control.make(found, due, journal).result == "not applied"
    shares.rmdir()
    shares.write_text("1024")
    again = control.plan(standing(hybrid), journal, respect=True)
    assert again
    assert again.how == "live"
