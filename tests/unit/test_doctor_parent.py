import shutil
from pathlib import Path

import pytest

from kvmctl.control.doctor import parent
from kvmctl.control.doctor.check import Check
from kvmctl.host import cgroup, cpu
from kvmctl.model.hostpolicy import HostPolicy, capacity
from kvmctl.policy.parent import parent_weight
from tests.trees import V1_GUEST, Tree, fill, plain_host, systemd_host, v1

pytestmark = pytest.mark.unit

CPUS = len(cpu.online())
CORES = capacity(HostPolicy(), CPUS)


@pytest.fixture(autouse=True)
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The policy file of the host, which is not there at first."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KVMCTL_HOST_FILE", str(tmp_path / "host.yaml"))
    return tmp_path / "host.yaml"


def examine(tree: Tree) -> dict[str, Check]:
    found = list(parent.checks(None, cgroup.mounts(tree.proc), tree.top))
    assert all(check.next for check in found if check.result in ("warn", "fail"))
    return {check.name: check for check in found}


def wanted(version: int, competing: int) -> int:
    return parent_weight(version, CORES, CPUS - CORES, competing)


def test_a_weight_that_is_too_little_is_said_with_what_it_competes_with(tmp_path: Path) -> None:
    found = examine(systemd_host(tmp_path))["parent weight"]
    assert found.result == "warn"
    assert found.found.startswith(f"guests get {CPUS / 3:.3g} instead of ")
    assert found.cause == "machine.slice weighs 100 against 200 (init.scope 100, system.slice 100)"
    assert "kvmctl rebalance" in found.next


def test_a_weight_that_is_enough_is_ok(tmp_path: Path) -> None:
    tree = systemd_host(tmp_path)
    (tmp_path / "cgroup/machine.slice/cpu.weight").write_text(str(wanted(2, 200)))
    found = examine(tree)["parent weight"]
    assert found.result == "ok"
    assert "whatever else is busy" in found.found


def test_a_policy_that_leaves_it_is_named(tmp_path: Path, policy: Path) -> None:
    policy.write_text("cpu: {parent: leave}\n")
    found = examine(systemd_host(tmp_path))["parent weight"]
    assert found.result == "warn"
    assert "which the policy leaves" in found.cause


def test_a_controller_that_is_not_enabled_is_a_failure(tmp_path: Path) -> None:
    tree = systemd_host(tmp_path)
    (tmp_path / "cgroup/machine.slice/cpu.weight").unlink()
    found = examine(tree)["parent weight"]
    assert (found.result, found.next) == ("fail", "systemctl set-property --runtime machine.slice CPUWeight=100")
    (tmp_path / "run/systemd/system").rmdir()
    assert examine(tree)["parent weight"].next == f"echo +cpu > {tmp_path}/cgroup/cgroup.subtree_control"


def test_a_range_that_ends_too_early_is_named(tmp_path: Path) -> None:
    tree = systemd_host(tmp_path)
    (tmp_path / "cgroup/system.slice/cpu.weight").write_text("9900")
    (tmp_path / "cgroup/machine.slice/cpu.weight").write_text("10000")
    found = examine(tree)["parent weight"]
    assert found.result == "warn"
    assert "the kernel takes no more than 10000" in found.cause
    assert "reserve" in found.next


def test_where_no_guest_runs_nothing_is_wrong(tmp_path: Path) -> None:
    tree = plain_host(tmp_path)
    shutil.rmtree(tmp_path / "cgroup/cpu" / V1_GUEST)
    assert examine(tree)["parent weight"].found.startswith("no guest runs; machine weighs 1024")
    shutil.rmtree(tmp_path / "cgroup/cpu/machine")
    assert examine(tree)["parent weight"].found == "no guest runs that competes with the rest of the host"


def test_v1_without_systemd_reckons_with_a_task_of_its_own(tmp_path: Path) -> None:
    tree = plain_host(tmp_path)
    found = examine(tree)["parent weight"]
    assert found.cause == "machine weighs 1024 against 1024 (one task in no group)"
    fill(v1(tmp_path / "cgroup/cpu/docker", 512), cgroup__procs="12")
    assert "docker 512, one task" in examine(tree)["parent weight"].cause
