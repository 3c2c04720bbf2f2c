import math
from pathlib import Path

import pytest

from kvmctl.host import cgroup
from tests.trees import PID, V1_GUEST, V2_GUEST, Tree, v1, v2

pytestmark = pytest.mark.unit

SESSION = "user.slice/user-1000.slice/session-2.scope"


@pytest.fixture
def hybrid(tmp_path: Path) -> Tree:
    """A v1 hybrid host without systemd: controllers on their own, the unified hierarchy without any."""
    tree = Tree(tmp_path)
    cpu = tree.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    tree.mount("memory", "cgroup", "rw,memory")
    tree.mount("systemd", "cgroup", "rw,name=systemd")
    unified = tree.mount("unified", "cgroup2", "rw")
    (unified / "cgroup.controllers").write_text("hugetlb\n")
    v1(cpu / "machine", 2048)
    v1(cpu / V1_GUEST, 1500, quota=150_000)
    v1(cpu / V1_GUEST / "emulator", 1024)
    v1(cpu / V1_GUEST / "vcpu0", 1024)
    v1(cpu / V1_GUEST / "vcpu1", 1024, quota=25_000, period=50_000)
    tree.process("9:name=systemd:/", "4:memory:/machine", f"1:cpu,cpuacct:/{V1_GUEST}/emulator", "0::/")
    return tree


@pytest.fixture
def unified(tmp_path: Path) -> Tree:
    """A systemd host with cgroup v2: the weight is on the scope, quotas are in its `libvirt`."""
    tree = Tree(tmp_path)
    root = tree.mount("", "cgroup2", "rw,nsdelegate,memory_recursiveprot")
    (root / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    v2(root / "machine.slice", 100)
    v2(root / V2_GUEST, 3000)
    v2(root / V2_GUEST / "libvirt", 100, "250000 100000")
    v2(root / V2_GUEST / "libvirt/emulator", 100)
    for vcpu in range(11):
        v2(root / V2_GUEST / f"libvirt/vcpu{vcpu}", 100, f"{10_000 + vcpu} 100000")
    tree.process(f"0::/{V2_GUEST}/libvirt/emulator")
    return tree


def test_v1_hybrid(hybrid: Tree) -> None:
    found = cgroup.read(PID, hybrid.proc)
    assert found == cgroup.CgroupCpu(
        version=1,
        path=hybrid.top / "cgroup/cpu,cpuacct" / V1_GUEST,
        weight=1500,
        quota_cores=1.5,
        vcpu_quota_cores=(math.inf, 0.5),
        parent_weight=2048,
    )
    assert cgroup.version(hybrid.proc) == 1


def test_v2_systemd(unified: Tree) -> None:
    found = cgroup.read(PID, unified.proc)
    assert found is not None
    assert (found.version, found.path.name, found.weight) == (2, Path(V2_GUEST).name, 3000)
    assert found.quota_cores == 2.5
    assert found.vcpu_quota_cores == tuple((10_000 + vcpu) / 100_000 for vcpu in range(11))
    assert found.parent_weight == 100
    assert cgroup.version(unified.proc) == 2


def test_v1_with_systemd_has_the_same_libvirt_directory(hybrid: Tree) -> None:
    cpu = hybrid.top / "cgroup/cpu,cpuacct"
    v1(cpu / "machine.slice", 1024)
    v1(cpu / V2_GUEST, 700)
    v1(cpu / V2_GUEST / "libvirt", 1024, quota=50_000)
    hybrid.process(f"1:cpu,cpuacct:/{V2_GUEST}/libvirt/emulator", "0::/")
    found = cgroup.read(PID, hybrid.proc)
    assert found is not None
    assert (found.path, found.weight, found.quota_cores, found.parent_weight) == (cpu / V2_GUEST, 700, 0.5, 1024)


@pytest.mark.parametrize("thread", ["emulator", "vcpu0", "vcpu12", "iothread3"])
def test_any_thread_leads_to_the_guests_own_directory(hybrid: Tree, thread: str) -> None:
    hybrid.process(f"1:cpu,cpuacct:/{V1_GUEST}/{thread}")
    assert cgroup.guest_directory(PID, hybrid.proc) == hybrid.top / "cgroup/cpu,cpuacct" / V1_GUEST


def test_a_guest_named_like_a_thread_directory_is_not_cut_off(hybrid: Tree) -> None:
    cpu = hybrid.top / "cgroup/cpu,cpuacct"
    v1(cpu / "machine/qemu-7-emulator.libvirt-qemu", 900)
    hybrid.process("1:cpu,cpuacct:/machine/qemu-7-emulator.libvirt-qemu/emulator")
    assert cgroup.guest_directory(PID, hybrid.proc) == cpu / "machine/qemu-7-emulator.libvirt-qemu"


@pytest.mark.parametrize(
    "path", [f"/{SESSION}", "/", "/machine", "/machine/emulator", "/system.slice/libvirt/emulator"]
)
def test_a_directory_that_is_not_a_guests_own_is_never_taken(unified: Tree, path: str) -> None:
    (unified.top / "cgroup" / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    unified.process(f"0::{path}")
    assert cgroup.read(PID, unified.proc) is None


def test_a_mount_of_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    """A container sees its own part at the mount point, and /proc shows paths from the real root."""
    tree = Tree(tmp_path)
    cpu = tree.mount("cpu", "cgroup", "rw,cpu", root="/docker/abc")
    v1(cpu / V1_GUEST, 1234)
    tree.process(f"1:cpu:/docker/abc/{V1_GUEST}/emulator")
    found = cgroup.read(PID, tree.proc)
    assert found is not None
    assert (found.path, found.weight) == (cpu / V1_GUEST, 1234)


@pytest.mark.parametrize("path", [f"/../host/{V1_GUEST}/emulator", f"/other/{V1_GUEST}/emulator"])
def test_a_guest_outside_the_visible_part_is_none(tmp_path: Path, path: str) -> None:
    tree = Tree(tmp_path)
    cpu = tree.mount("cpu", "cgroup", "rw,cpu", root="/" if ".." in path else "/docker/abc")
    v1(cpu / V1_GUEST, 1234)
    v1(cpu.parent / "host" / V1_GUEST, 1)
    tree.process(f"1:cpu:{path}")
    assert cgroup.read(PID, tree.proc) is None


def test_a_later_mount_hides_the_earlier_one(tmp_path: Path) -> None:
    """A host in a namespace binds its own part over the machine's."""
    tree = Tree(tmp_path)
    tree.mount("cpu", "cgroup", "rw,cpu", root="/..")
    cpu = tree.mount("cpu", "cgroup", "rw,cpu", root="/")
    v1(cpu / V1_GUEST, 77)
    tree.process(f"1:cpu:/{V1_GUEST}/emulator")
    found = cgroup.read(PID, tree.proc)
    assert found is not None
    assert found.weight == 77


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "my host")
    cpu = tree.mount("cpu", "cgroup", "rw,cpu")
    v1(cpu / V1_GUEST, 55)
    tree.process(f"1:cpu:/{V1_GUEST}/emulator")
    assert cgroup.guest_directory(PID, tree.proc) == cpu / V1_GUEST


def test_a_process_that_is_gone_is_none(hybrid: Tree) -> None:
    assert cgroup.read(1, hybrid.proc) is None


def test_a_cgroup_that_was_removed_meanwhile_is_none(hybrid: Tree) -> None:
    hybrid.process("1:cpu,cpuacct:/machine/qemu-9-gone.libvirt-qemu/emulator")
    assert cgroup.read(PID, hybrid.proc) is None


def test_files_that_are_missing_are_unknown_and_not_zero(hybrid: Tree) -> None:
    own = hybrid.top / "cgroup/cpu,cpuacct" / V1_GUEST
    for name in ("cpu.shares", "cpu.cfs_quota_us"):
        (own / name).unlink()
    found = cgroup.read(PID, hybrid.proc)
    assert found is not None
    assert (found.weight, found.quota_cores) == (None, None)


def test_a_host_without_the_cpu_controller_has_version_0(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.mount("unified", "cgroup2", "rw") / "cgroup.controllers").write_text("memory pids\n")
    tree.process(f"0::/{V2_GUEST}/libvirt/emulator")
    assert cgroup.version(tree.proc) == 0
    assert cgroup.read(PID, tree.proc) is None


def test_the_weights_kvmctl_uses_are_in_both_kernels_ranges() -> None:
    least, most = cgroup.WEIGHT_RANGE
    for kernel_least, kernel_most in cgroup.KERNEL_WEIGHT_RANGE.values():
        assert kernel_least <= least < most <= kernel_most
