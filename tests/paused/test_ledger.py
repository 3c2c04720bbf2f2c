"""The ledgers say what the definition promises, what libvirt answers and what the kernel's files hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
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


def line(document: Any, guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = next(line for line in document["guests"] if line["name"] == guest.name)
    return found


def weight_file(guest: Guest) -> Path:
    files = [guest.cgroup / "cpu.shares", guest.cgroup / "cpu.weight"]
    return next(path for path in files if path.exists())


def test_cpu(kvmctl: Kvmctl, guest: Guest) -> None:
    document = kvmctl("-o", "json", "cpu", "--sample", "300ms").json()
    assert document["uri"] == "qemu:///system"
    assert document["host"]["capacity"] == guest.hypervisor.connection.getInfo()[2]
    assert document["host"]["reserved"] == sum(line["reservation"] for line in document["guests"])
    found = line(document, guest)
    assert {key: found[key] for key in ("uuid", "state", "vcpus", "shares", "limit", "reservation")} == {
        "uuid": guest.domain.UUIDString(), "state": "paused", "vcpus": 2, "shares": 700, "limit": 0.5,
        "reservation": 0.25,
    }  # fmt: skip
    assert 0.25 <= found["entitlement"] <= 0.5
    assert found["weight"] == int(weight_file(guest).read_text())
    assert 0 <= found["used"] < 1
    assert 0 <= found["steal"] < 100


def test_cpu_names_a_weight_that_is_not_due(kvmctl: Kvmctl, guest: Guest) -> None:
    weight_file(guest).write_text("77")
    ran = kvmctl("-o", "json", "cpu", "--sample", "0")
    found = line(ran.json(), guest)
    assert (found["weight"], found["used"], found["steal"]) == (77, None, None)
    assert f"{guest.name}: its weight is 77; the next change through kvmctl sets {found['weight_due']}" in ran.err


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
    assert (found["usable"], found["used"]) == (None, None), "no driver in the guest has reported anything"
    assert document["total"]["usable"] is None
    assert document["total"]["max"] == sum(line["max"] for line in document["guests"])
    host = document["host"]
    assert 0 < host["available"] < host["total"]
    assert host["overcommit"] == pytest.approx(document["total"]["max"] / host["total"], abs=1e-6)


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
    cores = hypervisor.connection.getInfo()[2]
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
    assert f"cores are reserved of {cores}: each guest gets the same part of what it was promised" in ran.err
    part = cores * cores / ran.json()["host"]["reserved"]
    greedy = [line["entitlement"] for line in ran.json()["guests"] if "greedy" in line["name"]]
    assert greedy == pytest.approx([part, part], abs=1e-5)
