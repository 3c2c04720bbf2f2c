"""vCPUs that come and go while a guest runs, by what the guest, libvirt and the kernel say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor import domains, live
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl, cannot
from tests.firmware import RUNS, boot_sector
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

Names = Callable[..., str]


@pytest.fixture
def linux(
    kvmctl: Kvmctl,
    make_name: Names,
    hypervisor: Hypervisor,
    micro: MicroGuest,
    console: Callable[[Guest], Console],
) -> Callable[[str], tuple[Guest, Console]]:
    """Starts an emulated Linux with these keys of `cpu` and waits until it answers."""

    def start(cpu: str) -> tuple[Guest, Console]:
        name = make_name("vcpus")
        boot = f"kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet"
        guest = f"name: {name}, accelerator: tcg, memory: {{size: 256MiB}}, cpu: {{{cpu}}}, boot: {{{boot}}}"
        kvmctl("apply", "-f", "-", stdin=f"guests: [{{{guest}}}]")
        line = console(Guest(hypervisor, name))
        line.ready()
        return Guest(hypervisor, name), line

    return start


@pytest.fixture
def firmware(kvmctl: Kvmctl, make_name: Names, hypervisor: Hypervisor, pool: tuple[str, Path]) -> Callable[..., Guest]:
    """Starts a boot sector under KVM that lets go of vCPUs, or does not, and waits until it runs."""
    if not Path("/dev/kvm").exists():
        cannot("this machine has no /dev/kvm")

    def start(cpu: str, lets_go: bool = True) -> Guest:
        name = make_name("vcpus-kvm")
        image = pool[1] / f"{name}.img"
        image.write_bytes(boot_sector(lets_go).ljust(1 << 20, b"\0"))
        log = pool[1] / f"{name}.log"
        # Not the host's own processor: that is more than some KVM can show.
        keys = f"accelerator: kvm, memory: {{size: 64MiB}}, cpu: {{model: kvm64, {cpu}}}, console: {{log: {log}}}"
        kvmctl("apply", "-f", "-", stdin=f"guests: [{{name: {name}, {keys}, disks: [{{path: {image}}}]}}]")
        until(lambda: log.exists() and log.read_bytes(), lambda said: RUNS in (said or b""), 30, "the boot sector")
        return Guest(hypervisor, name)

    return start


def outcome(kvmctl: Kvmctl, guest: Guest, assignment: str, code: int = 0) -> Any:
    """What became of the one change that it is."""
    (changed,) = kvmctl("-o", "json", "set", guest.name, assignment, code=code).json()
    return changed


def weight(guest: Guest) -> int:
    return int((guest.cgroup / "cpu.shares").read_text())


def cpus_seen(line: Console) -> int:
    return int(line.run("grep -c ^processor /proc/cpuinfo"))


def threads(guest: Guest) -> list[str]:
    """The names of the vCPUs' threads."""
    names = ((task / "comm").read_text().strip() for task in Path(f"/proc/{guest.pid}/task").iterdir())
    return sorted(name for name in names if name.startswith("CPU "))


def test_linux_takes_vcpus_that_are_plugged_in(kvmctl: Kvmctl, linux: Callable[[str], tuple[Guest, Console]]) -> None:
    guest, line = linux("count: 1, max: 3, shares: normal")
    assert cpus_seen(line) == 1
    alone = weight(guest)
    assert outcome(kvmctl, guest, "cpu.count=3")["result"] == "changed"
    until(lambda: cpus_seen(line), lambda count: count == 3, 60, "the guest's CPUs")
    assert live.vcpus(guest.domain) == 3
    assert len(threads(guest)) == 3
    # A level of shares is each vCPU's. One vCPU was all that the guest could use, so the weight was its shares.
    assert weight(guest) == 3 * alone
    assert line.run("nproc").strip() == "3"


def test_a_vcpu_that_is_plugged_in_is_pinned_as_the_others(
    kvmctl: Kvmctl, linux: Callable[[str], tuple[Guest, Console]]
) -> None:
    guest, line = linux("count: 1, max: 2")
    kvmctl("set", guest.name, "cpu.pin=1")
    kvmctl("set", guest.name, "cpu.count=2")
    until(lambda: cpus_seen(line), lambda count: count == 2, 60, "the guest's CPUs")
    tasks = [
        task for task in Path(f"/proc/{guest.pid}/task").iterdir() if (task / "comm").read_text().startswith("CPU ")
    ]
    assert len(tasks) == 2
    for task in tasks:
        assert "Cpus_allowed_list:\t1\n" in (task / "status").read_text()


def test_an_emulated_guest_keeps_its_vcpus_until_its_next_start(
    kvmctl: Kvmctl, linux: Callable[[str], tuple[Guest, Console]]
) -> None:
    """QEMU 7.2 has it give up the vCPU and never takes it away: then neither has it."""
    guest, line = linux("count: 1, max: 2")
    kvmctl("set", guest.name, "cpu.count=2")
    until(lambda: cpus_seen(line), lambda count: count == 2, 60, "the guest's CPUs")
    dry = kvmctl("-o", "json", "set", guest.name, "cpu.count=1", "--dry-run", code=10).json()
    assert [(one["how"], one["old"], one["new"]) for one in dry] == [("restart", 2, 1)]
    changed = outcome(kvmctl, guest, "cpu.count=1")
    assert changed["result"] == "pending restart"
    assert "emulates" in changed["reason"]
    assert (cpus_seen(line), live.vcpus(guest.domain)) == (2, 2)
    assert kvmctl("-o", "json", "set", guest.name, "cpu.count=1").json() == []
    pending = kvmctl("-o", "json", "show", guest.name).json()["pending_restart"]
    assert pending == [{"field": "cpu.count", "running": 2, "stored": 1}]


def test_no_more_than_the_present_maximum(kvmctl: Kvmctl, linux: Callable[[str], tuple[Guest, Console]]) -> None:
    guest, line = linux("count: 1, max: 2")
    changed = kvmctl("-o", "json", "set", guest.name, "cpu.count=3").json()
    results = {one["field"]: one["result"] for one in changed}
    assert results == {"cpu.count": "pending restart", "cpu.max": "pending restart"}
    assert "has its present maximum, 2, until then" in changed[0]["reason"]
    until(lambda: cpus_seen(line), lambda count: count == 2, 60, "the guest's CPUs")
    assert kvmctl("-o", "json", "set", guest.name, "cpu.count=3").json() == []


def test_a_guest_lets_go_of_a_vcpu_that_was_plugged_in(kvmctl: Kvmctl, firmware: Callable[..., Guest]) -> None:
    guest = firmware("count: 1, max: 2, shares: high")
    kvmctl("set", guest.name, "cpu.count=2")
    assert (live.vcpus(guest.domain), len(threads(guest)), weight(guest)) == (2, 2, 4000)
    changed = outcome(kvmctl, guest, "cpu.count=1")
    assert (changed["result"], changed["reason"]) == ("changed", None)
    assert (live.vcpus(guest.domain), weight(guest)) == (1, 2000)
    assert kvmctl("-o", "json", "show", guest.name).json()["pending_restart"] == []


def test_a_guest_lets_go_of_a_vcpu_that_it_was_started_with(kvmctl: Kvmctl, firmware: Callable[..., Guest]) -> None:
    """Where its maximum says that vCPUs come and go."""
    guest = firmware("count: 2, max: 3")
    assert outcome(kvmctl, guest, "cpu.count=1")["result"] == "changed"
    assert live.vcpus(guest.domain) == 1
    definition = domains.definition(guest.domain)
    assert "<vcpu id='1' enabled='no' hotpluggable='yes'/>" in definition


def test_a_guest_without_a_maximum_keeps_what_it_was_started_with(
    kvmctl: Kvmctl, firmware: Callable[..., Guest]
) -> None:
    guest = firmware("count: 2")
    changed = outcome(kvmctl, guest, "cpu.count=1")
    assert changed["result"] == "pending restart"
    assert changed["reason"] == (
        "a running guest keeps the vCPUs that it was started with; takes effect when the guest is next started"
    )
    assert live.vcpus(guest.domain) == 2


def test_a_guest_that_does_not_let_go_is_told_of(kvmctl: Kvmctl, firmware: Callable[..., Guest]) -> None:
    guest = firmware("count: 1, max: 2, shares: normal", lets_go=False)
    kvmctl("set", guest.name, "cpu.count=2")
    changed = outcome(kvmctl, guest, "cpu.count=1", code=7)
    assert changed["result"] == "not applied"
    assert changed["reason"] == (
        "the guest has not let go of 1 of its vCPUs: it has 2; the number is stored for its next start"
    )
    assert live.vcpus(guest.domain) == 2
    assert weight(guest) == 2000
    assert guest.domain.vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_CONFIG) == 1


def test_a_paused_guest_lets_go_when_it_goes_on(kvmctl: Kvmctl, firmware: Callable[..., Guest]) -> None:
    guest = firmware("count: 1, max: 2")
    kvmctl("set", guest.name, "cpu.count=2")
    kvmctl("pause", guest.name)
    assert "it has 2" in outcome(kvmctl, guest, "cpu.count=1", code=7)["reason"]
    kvmctl("resume", guest.name)
    until(lambda: live.vcpus(guest.domain), lambda count: count == 1, 30, "the guest's vCPUs")
