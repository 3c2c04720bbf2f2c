"""The ledgers say what the definition promises, what libvirt answers and what the kernel's files hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.observe import Observer
from kvmctl.control.weights import KIND, run_key
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, live
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.hostpolicy import capacity
from kvmctl.xml.metadata import NAMESPACE
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

MIB = 1 << 20


@pytest.fixture
def guest(hypervisor: Hypervisor, make_name: Callable[..., str]) -> Guest:
    """A paused guest with a promise of every kind."""
    name = make_name("po-ledger")
    text = f"""
        <domain type='qemu'>
          <name>{name}</name>
          <memory unit='MiB'>96</memory><currentMemory unit='MiB'>64</currentMemory><vcpu>2</vcpu>
          <os><type arch='x86_64'>hvm</type></os>
          <cputune>
            <shares>700</shares><global_period>100000</global_period><global_quota>50000</global_quota>
          </cputune>
          <metadata>
            <k:guest xmlns:k='{NAMESPACE}'>
              <k:cpu reservation='0.25'/><k:memory reservation='32MiB' shares='high'/>
            </k:guest>
          </metadata>
          <devices><memballoon model='virtio'><stats period='5'/></memballoon></devices>
        </domain>"""
    domains.start(domains.define(hypervisor, name, text), paused=True)
    return Guest(hypervisor, name)


def room(hypervisor: Hypervisor) -> float:
    """The cores that guests may use."""
    return capacity(host_policy(), hypervisor.connection.getInfo()[2])


def line(document: Any, guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = next(line for line in document["guests"] if line["name"] == guest.name)
    return found


def weight_file(guest: Guest) -> Path:
    files = [guest.cgroup / "cpu.shares", guest.cgroup / "cpu.weight"]
    return next(path for path in files if path.exists())


def test_cpu(kvmctl: Kvmctl, guest: Guest) -> None:
    document = kvmctl("-o", "json", "cpu", "--sample", "300ms").json()
    assert document["uri"] == "qemu:///system"
    assert document["host"]["cores"] == guest.hypervisor.connection.getInfo()[2]
    assert document["host"]["capacity"] == pytest.approx(room(guest.hypervisor))
    assert document["host"]["reserved"] == sum(line["reservation"] for line in document["guests"])
    found = line(document, guest)
    assert {key: found[key] for key in ("uuid", "state", "vcpus", "shares", "limit", "reservation")} == {
        "uuid": guest.domain.UUIDString(), "state": "paused", "vcpus": 2, "shares": 700, "limit": 0.5,
        "reservation": 0.25,
    }  # fmt: skip
    assert found["demand"] == pytest.approx(found["used"] + found["steal"] / 50, abs=1e-5), "it is paused"
    assert (found["entitlement"], found["bound"]) == (found["demand"], "demand")
    assert 0.25 <= found["hungry"] <= 0.5
    assert found["weight"] == int(weight_file(guest).read_text())
    assert 0 <= found["used"] < 1
    assert 0 <= found["steal"] < 100


def test_cpu_names_a_weight_that_is_not_due(kvmctl: Kvmctl, guest: Guest) -> None:
    weight_file(guest).write_text("77")
    ran = kvmctl("-o", "json", "cpu", "--sample", "0")
    found = line(ran.json(), guest)
    assert (found["weight"], found["used"], found["steal"]) == (77, None, None)
    assert f"{guest.name}: its weight is 77; the next change through kvmctl sets {found['weight_due']}" in ran.err


def test_cpu_says_nothing_of_a_weight_that_kvmctl_set(kvmctl: Kvmctl, guest: Guest, state: Path) -> None:
    """As a tick does, which knows more than the next change through kvmctl."""
    weight_file(guest).write_text("77")
    key = run_key(guest.hypervisor, guest.name, guest.domain.ID())
    Journal(state / "journal.json").record(KIND, key, 700, 77)
    ran = kvmctl("-o", "json", "cpu", "--sample", "0")
    assert line(ran.json(), guest)["weight"] == 77
    assert guest.name not in ran.err


def test_cpu_as_a_table(kvmctl: Kvmctl, guest: Guest) -> None:
    out = kvmctl("cpu", "--sample", "0").out.splitlines()
    assert out[0].startswith("qemu:///system: ")
    assert out[1].split() == [
        "NAME", "SHARES", "LIMIT", "RESERVED", "ENTITLED", "WEIGHT", "USED", "STEAL%", "BOUND",
    ]  # fmt: skip
    row = next(text.split() for text in out if text.startswith(guest.name))
    assert row[1:4] == ["700", "0.5", "0.25"]
    assert row[6:8] == ["-", "-"]
    assert guest.name in kvmctl("-o", "name", "cpu", "--sample", "0").out.splitlines()


def test_memory(kvmctl: Kvmctl, guest: Guest) -> None:
    document = kvmctl("-o", "json", "memory").json()
    found = line(document, guest)
    expected = {"max": 96 * MIB, "size": 64 * MIB, "reservation": 32 * MIB, "shares": 64 * 20, "swapped": 0}
    assert {key: found[key] for key in expected} == expected
    assert found["balloon"] == guest.domain.info()[2] * 1024
    assert found["resident"] == pytest.approx(int(guest.status("VmRSS").split()[0]) * 1024, abs=4 * MIB)
    assert found["shared"] == int((Path("/proc") / str(guest.pid) / "ksm_merging_pages").read_text()) * 4096
    # Before its first instruction a guest has next to nothing of its own.
    assert found["overhead"] == pytest.approx(found["resident"], abs=4 * MIB)
    assert document["total"]["overhead"] == sum(line["overhead"] for line in document["guests"])
    assert (found["usable"], found["used"]) == (None, None), "no driver in the guest has reported anything"
    assert document["total"]["usable"] is None
    assert document["total"]["max"] == sum(line["max"] for line in document["guests"])
    host = document["host"]
    assert 0 < host["available"] < host["total"]
    assert host["overcommit"] == pytest.approx(document["total"]["max"] / host["reservable"], abs=1e-6)


def test_memory_as_a_table(kvmctl: Kvmctl, guest: Guest) -> None:
    out = kvmctl("memory").out.splitlines()
    assert "overcommit" in out[0]
    row = next(text.split() for text in out if text.startswith(guest.name))
    assert row[1:3] == ["96MiB", "64MiB"]
    assert row[4:6] == ["-", "-"]
    assert row[-2:] == ["32MiB", "1280"]
    assert out[-1].startswith("total")


def test_cpu_names_promises_that_are_too_many(
    kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str]
) -> None:
    cores, guests = hypervisor.connection.getInfo()[2], room(hypervisor)
    for number in range(2):
        name = make_name(f"po-greedy{number}")
        text = f"""
            <domain type='qemu'>
              <name>{name}</name><memory unit='MiB'>64</memory><vcpu>{cores}</vcpu>
              <os><type arch='x86_64'>hvm</type></os>
              <metadata><k:guest xmlns:k='{NAMESPACE}'><k:cpu reservation='{cores}'/></k:guest></metadata>
            </domain>"""
        domains.start(domains.define(hypervisor, name, text), paused=True)
    ran = kvmctl("-o", "json", "cpu", "--sample", "0")
    assert ran.json()["host"]["free"] == 0
    assert f"cores are reserved of {guests:g}: each guest gets the same part of what it was promised" in ran.err
    part = cores * guests / ran.json()["host"]["reserved"]
    greedy = [line["entitlement"] for line in ran.json()["guests"] if "greedy" in line["name"]]
    assert greedy == pytest.approx([part, part], abs=1e-5)


def pinned(name: str, cpuset: str, reservation: float) -> str:
    return f"""
        <domain type='qemu'>
          <name>{name}</name><memory unit='MiB'>64</memory><vcpu cpuset='{cpuset}'>2</vcpu>
          <os><type arch='x86_64'>hvm</type></os>
          <metadata><k:guest xmlns:k='{NAMESPACE}'><k:cpu reservation='{reservation}'/></k:guest></metadata>
        </domain>"""


def test_a_pinned_guest_has_its_cpus_part(
    kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str]
) -> None:
    """What counts is where it runs, not where its definition says."""
    name = make_name("po-pinned")
    domains.start(domains.define(hypervisor, name, pinned(name, "0", 0.99)), paused=True)
    guest, cores = Guest(hypervisor, name), hypervisor.connection.getInfo()[2]
    ran = kvmctl("-o", "json", "cpu", "--sample", "0")
    part = room(hypervisor) / cores
    assert line(ran.json(), guest)["hungry"] == pytest.approx(part)
    assert f"{name}: 0.99 cores are reserved for it, and the CPUs it is pinned to have {part:g} for it" in ran.err
    live.set_pin(guest.domain, ())
    ran = kvmctl("-o", "json", "cpu", "--sample", "0")
    assert line(ran.json(), guest)["hungry"] > part
    assert name not in ran.err.replace(f"{name}: its weight", "")


def test_an_account_of_a_guest(kvmctl: Kvmctl, guest: Guest) -> None:
    document = kvmctl("-o", "json", "cpu", "--sample", "0", "--explain", guest.name).json()
    ledger = line(kvmctl("-o", "json", "cpu", "--sample", "0").json(), guest)
    found = document["guest"]
    for mine, theirs in {"cores": "entitlement", "hungry": "hungry", "bound": "bound", "weight": "weight_due"}.items():
        assert found[mine] == ledger[theirs]
    assert found["by_shares"] + sum(move["cores"] for move in found["transfers"]) == pytest.approx(found["cores"])
    out = kvmctl("cpu", "--explain", guest.name).out.splitlines()
    assert out[0].startswith("qemu:///system: ")
    assert out[1].startswith(f"{guest.name} is entitled to ")
    assert "bound by demand: it wants " in out[1]
    assert out[-1].startswith("while every guest wants all it can use: ")


def test_no_account_of_a_guest_that_does_not_run(kvmctl: Kvmctl, guest: Guest) -> None:
    domains.power_off(guest.domain)
    ran = kvmctl("cpu", "--explain", guest.name, code=4)
    assert f"guest {guest.name} does not run" in ran.err
    assert f"kvmctl start {guest.name}" in ran.err
    assert "there is no guest" in kvmctl("cpu", "--explain", f"{guest.name}x", code=3).err


def test_what_qemu_takes_is_looked_up_only_where_it_is_asked_for(hypervisor: Hypervisor, guest: Guest) -> None:
    def overhead(closely: bool) -> int | None:
        guests = Observer(hypervisor).observe(closely=closely).snapshot.guests
        process = next(one.process for one in guests if one.name == guest.name)
        assert process is not None
        return process.overhead

    assert overhead(closely=False) is None
    assert overhead(closely=True) == pytest.approx(int(guest.status("VmRSS").split()[0]) * 1024, abs=4 * MIB)
