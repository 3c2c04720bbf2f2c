import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvmctl.host import cgroup, process
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl
from tests.support import Guest, until

pytestmark = pytest.mark.paused

MIB = 1 << 20


def definition(name: str, backing: str = "") -> str:
    return (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>{backing}"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><memballoon model='virtio'/></devices></domain>"
    )


@pytest.fixture
def paused(hypervisor: Hypervisor, make_name: Callable[..., str]) -> Callable[..., Guest]:
    """A paused 64 MiB guest with two vCPUs and no disk."""

    def make(backing: str = "") -> Guest:
        name = make_name("ho-paused")
        hypervisor.connection.createXML(definition(name, backing), libvirt.VIR_DOMAIN_START_PAUSED)
        return Guest(hypervisor, name)

    return make


def set_live(guest: Guest, **parameters: int) -> None:
    guest.domain.setSchedulerParametersFlags(parameters, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def test_the_guests_cgroup_is_the_one_that_libvirt_changes(paused: Callable[..., Guest]) -> None:
    guest = paused()
    before = cgroup.read(guest.pid)
    assert before is not None
    assert before.version == cgroup.version()
    assert before.weight == guest.domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE)["cpu_shares"]
    assert (before.quota_cores, before.vcpu_quota_cores) == (math.inf, (math.inf, math.inf))

    set_live(guest, cpu_shares=777, global_period=100_000, global_quota=150_000, vcpu_period=50_000, vcpu_quota=25_000)
    after = cgroup.read(guest.pid)
    assert after is not None
    assert after.path == before.path
    assert (after.weight, after.quota_cores, after.vcpu_quota_cores) == (777, 1.5, (0.5, 0.5))


@pytest.mark.parametrize("weight", cgroup.WEIGHT_RANGE)
def test_the_ends_of_the_weight_range_are_taken_by_this_kernel(paused: Callable[..., Guest], weight: int) -> None:
    guest = paused()
    set_live(guest, cpu_shares=weight)
    found = cgroup.read(guest.pid)
    assert found is not None
    assert found.weight == weight


def test_the_parents_weight_is_read_from_the_kernel(paused: Callable[..., Guest]) -> None:
    found = cgroup.read(paused().pid)
    assert found is not None
    file = found.path.parent / ("cpu.shares" if found.version == 1 else "cpu.weight")
    assert found.parent_weight == int(file.read_text())


def test_the_process_is_the_one_in_libvirts_pid_file(paused: Callable[..., Guest]) -> None:
    first, second = paused(), paused()
    uuids = [guest.domain.UUIDString() for guest in (first, second)]
    found = process.find_guests(uuids)
    for guest, uuid in zip((first, second), uuids, strict=True):
        assert found[uuid] == int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text())


def test_a_guest_that_is_gone_has_no_process(paused: Callable[..., Guest]) -> None:
    guest = paused()
    uuid, pid = guest.domain.UUIDString(), guest.pid
    sample = process.sample(pid)
    assert sample is not None
    assert sample.rss is not None
    assert sample.rss > MIB
    guest.domain.destroy()
    until(lambda: process.sample(pid), lambda found: found is None, 10, "the process of a destroyed guest")
    assert process.find_guests([uuid]) == {}


def test_show_counts_the_guest(kvmctl: Kvmctl, paused: Callable[..., Guest]) -> None:
    paused()
    found = kvmctl("-c", "qemu:///system", "-o", "json", "host", "show").json()
    assert found["guests"]["running"] >= 1
    assert found["guests"]["vcpus"] >= 2
    assert found["guests"]["balloon"] >= 64 * MIB
    assert found["versions"]["hypervisor"].startswith("QEMU ")
    assert found["cgroup"]["version"] == cgroup.version()


def test_metrics_have_the_guest_and_the_host(kvmctl: Kvmctl, paused: Callable[..., Guest]) -> None:
    guest = paused()
    found = kvmctl("-c", "qemu:///system", "-o", "json", "host", "metrics", "--interval", "300ms").json()
    row = row_of(found["guests"], guest)
    assert (row["state"], row["balloon"], row["vcpus"]) == ("paused", 64 * MIB, 2)
    assert row["resident"] > MIB
    assert row["cores"] is not None
    assert row["cores"] < 0.5
    assert found["host"]["memory_total"] > found["host"]["memory_available"] > 0
    assert 0 <= found["host"]["cpu_busy_percent"] <= 100


def row_of(rows: list[dict[str, Any]], guest: Guest) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == guest.name)


def test_prometheus_has_the_weight_that_the_kernel_has(kvmctl: Kvmctl, paused: Callable[..., Guest]) -> None:
    guest = paused()
    set_live(guest, cpu_shares=4321)
    text = kvmctl("-c", "qemu:///system", "host", "metrics", "--prometheus", "-").out
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("guest") == guest.name
    }
    assert values["kvmctl_guest_cpu_weight"] == 4321
    assert values["kvmctl_guest_balloon_bytes"] == 64 * MIB


def test_ksm_tells_who_shares(kvmctl: Kvmctl, paused: Callable[..., Guest]) -> None:
    shares, alone = paused(), paused("<memoryBacking><nosharepages/></memoryBacking>")
    found = kvmctl("-c", "qemu:///system", "-o", "json", "ksm", "show").json()
    assert row_of(found["guests"], shares)["sharing"] is True
    assert row_of(found["guests"], alone)["sharing"] is False
    assert row_of(found["guests"], alone)["merging_pages"] == 0
    assert any(alone.name in sentence for sentence in found["explanation"])


def test_the_doctor_finds_a_pool_that_qemu_cannot_enter(
    kvmctl: Kvmctl, hypervisor: Hypervisor, pool: tuple[str, Path]
) -> None:
    name, folder = pool
    checks = kvmctl("-c", "qemu:///system", "-o", "json", "host", "doctor").json()
    assert check_of(checks, f"pool {name}")["result"] == "ok"
    folder.chmod(0o700)
    try:
        checks = kvmctl("-c", "qemu:///system", "-o", "json", "host", "doctor", code=1).json()
    finally:
        folder.chmod(0o711)
    found = check_of(checks, f"pool {name}")
    assert found["result"] == "fail"
    assert found["cause"].endswith(f"who may not enter {folder}")
    assert found["next"] == f"chmod o+x {folder}"


def check_of(checks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(check for check in checks if check["name"] == name)


def test_the_doctor_knows_the_daemon(kvmctl: Kvmctl) -> None:
    checks = kvmctl("-c", "qemu:///system", "-o", "json", "host", "doctor", code=None).json()
    assert check_of(checks, "connection")["result"] == "ok"
    assert check_of(checks, "socket")["result"] == "ok"
    assert check_of(checks, "cgroup")["found"].startswith(f"cgroup v{cgroup.version()}; ")
    assert check_of(checks, "versions")["found"].startswith("libvirt ")
