"""The host's CPU, memory and virtualization, from trees of the kernel's files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.host import cpu, memory, virtualization
from kvmctl.model.metrics import Pressure

pytestmark = pytest.mark.unit

CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz
cpu MHz\t\t: {mhz}
flags\t\t: fpu vmx ept {flags}

processor\t: 1
model name\t: another
"""
MEMINFO = (
    "MemTotal:       24684092 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\nSwapTotal: 1024 kB\nSwapFree: 512 kB\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CPUS = "sys/devices/system/cpu"


@pytest.fixture
def xeon(tmp_path: Path) -> Path:
    """Two sockets of two cores of two threads, the last thread off line."""
    files = {"proc/cpuinfo": CPUINFO.format(mhz="2095.076", flags=""), f"{CPUS}/online": "0-6\n"}
    for thread in range(8):
        files[f"{CPUS}/cpu{thread}/topology/physical_package_id"] = f"{thread // 4}\n"
        files[f"{CPUS}/cpu{thread}/topology/core_id"] = f"{thread // 2 % 2}\n"
    return write(tmp_path, files)


def test_topology_counts_what_is_online(xeon: Path) -> None:
    found = cpu.read(xeon)
    assert (found.online, found.sockets, found.cores) == (7, 2, 4)
    assert found.model == "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz"
    assert "vmx" in found.flags


def test_a_machine_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    found = cpu.read(tmp_path)
    assert (found.model, found.sockets, found.cores) == (None, None, None)
    assert cpu.base_clock(root=tmp_path) is None
    assert cpu.numa_nodes(tmp_path) == ()
    assert cpu.mitigations(tmp_path) == {}


def test_the_base_clock_is_from_the_best_source_there_is(xeon: Path) -> None:
    assert cpu.base_clock(root=xeon) == cpu.Clock(2095.076, "/proc/cpuinfo")
    assert cpu.base_clock(2_100_000_000, xeon) == cpu.Clock(2100.0, "time stamp counter")
    write(xeon, {f"{CPUS}/cpu0/cpufreq/cpuinfo_max_freq": "3700000\n"})
    assert cpu.base_clock(2_100_000_000, xeon) == cpu.Clock(3700.0, "cpufreq/cpuinfo_max_freq")
    write(xeon, {f"{CPUS}/cpu0/acpi_cppc/nominal_freq": "2245\n"})
    assert cpu.base_clock(root=xeon) == cpu.Clock(2245.0, "acpi_cppc/nominal_freq")
    write(xeon, {f"{CPUS}/cpu0/cpufreq/base_frequency": "2100000\n"})
    assert cpu.base_clock(root=xeon) == cpu.Clock(2100.0, "cpufreq/base_frequency")
    assert cpu.base_mhz(xeon) == 2100.0


def test_a_present_speed_is_not_taken_for_the_base_clock(xeon: Path) -> None:
    write(xeon, {"proc/cpuinfo": CPUINFO.format(mhz="3412.7", flags="aperfmperf")})
    assert cpu.base_clock(root=xeon) is None
    assert cpu.base_mhz(xeon) is None


def test_memory_is_bytes(tmp_path: Path) -> None:
    found = memory.read(write(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (found.total, found.available) == (24684092 * 1024, 20000000 * 1024)
    assert (found.swap_total, found.swap_free) == (1024**2, 512 * 1024)
    assert (found.limit, found.hugepage_size) == (None, None)


def limited(tmp_path: Path, files: dict[str, str], kind: str, options: str) -> Path:
    mounted = f"32 31 0:29 / {tmp_path}/cgroup rw - {kind} {kind} {options}\n"
    written = {f"cgroup/{name}": text for name, text in files.items()}
    return write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/mountinfo": mounted} | written)


def test_the_limit_of_a_host_in_a_namespace_counts(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": f"{4 << 30}\n", "memory.usage_in_bytes": f"{1 << 30}\n"}
    found = memory.read(limited(tmp_path, files, "cgroup", "rw,memory"))
    assert (found.total, found.available, found.limit) == (4 << 30, 3 << 30, 4 << 30)


@pytest.mark.parametrize(
    ("files", "kind", "options"),
    [
        ({"memory.limit_in_bytes": "9223372036854771712\n"}, "cgroup", "rw,memory"),
        ({"memory.max": "max\n"}, "cgroup2", "rw"),
        ({}, "cgroup2", "rw"),
    ],
)
def test_no_limit_is_all_of_the_machine(tmp_path: Path, files: dict[str, str], kind: str, options: str) -> None:
    found = memory.read(limited(tmp_path, files, kind, options))
    assert (found.total, found.limit) == (24684092 * 1024, None)


STAT = (
    "cache 9000\ntotal_active_file 1048576\ntotal_inactive_file 2097152\nactive_file 1048576\ninactive_file 2097152\n"
)


@pytest.mark.parametrize(
    ("files", "kind", "options"),
    [
        ({"memory.limit_in_bytes": f"{2 << 30}\n", "memory.usage_in_bytes": f"{1 << 30}\n"}, "cgroup", "rw,memory"),
        ({"memory.max": f"{2 << 30}\n", "memory.current": f"{1 << 30}\n"}, "cgroup2", "rw"),
    ],
)
def test_a_limit_of_the_guests_group_leaves_them_what_is_not_used(
    tmp_path: Path, files: dict[str, str], kind: str, options: str
) -> None:
    parent = "machine.slice" if kind == "cgroup2" else "machine"
    in_parent = {f"{parent}/{name}": text for name, text in (files | {"memory.stat": STAT}).items()}
    root = limited(tmp_path, in_parent, kind, options)
    assert memory.guests_limit(root) == 2 << 30
    assert memory.guests_available(root) == (1 << 30) + (3 << 20), "what is cached of files goes first"
    assert memory.left_for_guests(memory.read(root), root) == (1 << 30) + (3 << 20)


def test_a_limit_below_what_is_used_leaves_nothing(tmp_path: Path) -> None:
    files = {"machine/memory.limit_in_bytes": "4096\n", "machine/memory.usage_in_bytes": f"{1 << 30}\n"}
    root = limited(tmp_path, files, "cgroup", "rw,memory")
    assert memory.guests_available(root) == 0


def test_without_a_limit_guests_have_what_the_host_has(tmp_path: Path) -> None:
    root = limited(tmp_path, {"machine.slice/memory.max": "max\n"}, "cgroup2", "rw")
    assert memory.guests_available(root) is None
    assert memory.left_for_guests(memory.read(root), root) == 20000000 * 1024


def test_swap_areas_tell_zram_from_disks(tmp_path: Path) -> None:
    swaps = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t1048572\t\t2048\t\t100\n"
        "/swapfile                               file\t\t4194300\t\t0\t\t-2\n"
    )
    found = memory.swap_areas(write(tmp_path, {"proc/swaps": swaps}))
    assert [(area.name, area.kind, area.used) for area in found] == [
        ("/dev/zram0", "zram", 2048 * 1024),
        ("/swapfile", "file", 0),
    ]


@pytest.mark.parametrize(("text", "on"), [("Y\n", True), ("N\n", False), (None, None)])
def test_zswap(tmp_path: Path, text: str | None, on: bool | None) -> None:
    write(tmp_path, {"sys/module/zswap/parameters/enabled": text} if text else {})
    assert memory.zswap(tmp_path) is on


def test_pressure_with_and_without_a_full_line() -> None:
    some = "some avg10=0.27 avg60=12.71 avg300=0.34 total=8212115\n"
    assert memory.parse_pressure(some) == Pressure(0.27, 12.71, 8.212115)
    both = some + "full avg10=1.00 avg60=2.00 avg300=3.00 total=1000000\n"
    assert memory.parse_pressure(both) == Pressure(0.27, 12.71, 8.212115, 1.0, 2.0, 1.0)


@given(text=st.text())
def test_no_text_makes_the_pressure_reader_crash(text: str) -> None:
    assert memory.parse_pressure(text) is None or text.startswith(("some", "full"))


def amd(root: Path, **parameters: str) -> Path:
    files = {f"sys/module/kvm_amd/parameters/{name}": f"{value}\n" for name, value in parameters.items()}
    return write(root, files | {"sys/module/kvm/refcnt": "1", "sys/class/dmi/id/sys_vendor": "QEMU\n"})


def test_a_hardware_assisted_host(tmp_path: Path) -> None:
    root = amd(tmp_path, npt="Y", nested="1")
    write(root, {"dev/kvm": "", "sys/kernel/iommu_groups/0/type": "", "sys/kernel/iommu_groups/1/type": ""})
    write(root, {"sys/class/iommu/ivhd0/x": ""})
    found = virtualization.read(frozenset({"svm", "npt"}), root)
    assert (found.extension, found.module, found.second_level_paging) == ("svm", "kvm_amd", "npt")
    assert (found.nested, found.guest_of, found.kvm) == (True, None, "usable")
    assert (found.iommu_groups, found.iommus) == (2, ("ivhd0",))
    assert virtualization.kind(found, True)[0] == "hardware-assisted"
    assert virtualization.kind(found, None) == ("hardware-assisted", "KVM with svm, not tried by booting yet")


def test_second_level_paging_that_is_switched_off_is_not_there(tmp_path: Path) -> None:
    found = virtualization.read(frozenset({"svm", "npt", "hypervisor"}), amd(tmp_path, npt="N"))
    assert (found.second_level_paging, found.nested, found.guest_of) == (None, None, "QEMU")


@pytest.mark.parametrize(
    ("kvm_boots", "device", "kind"),
    [(False, True, "emulated"), (None, False, "emulated"), (True, True, "paravirtual")],
)
def test_kvm_without_the_processors_help(tmp_path: Path, kvm_boots: bool | None, device: bool, kind: str) -> None:
    write(tmp_path, {"sys/module/kvm_pvm/x": ""} | ({"dev/kvm": ""} if device else {}))
    found = virtualization.read(frozenset(), tmp_path)
    assert found.extension is None
    assert virtualization.kind(found, kvm_boots)[0] == kind


def test_a_device_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    assert virtualization.probe_device(tmp_path / "kvm") == ("absent", "")
    assert virtualization.probe_device(tmp_path) == ("broken", "Is a directory")
