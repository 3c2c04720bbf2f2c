"""Pinning, by what the kernel lets each thread of QEMU run on; the opt-out of rebalancing; amounts by the clock."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from kvmctl.host.cpu import base_clock
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml.metadata import promise
from tests.conftest import Kvmctl, cannot
from tests.support import Guest

pytestmark = pytest.mark.paused

EVERY = frozenset(range(os.cpu_count() or 1))


@pytest.fixture
def make(kvmctl: Kvmctl, make_name: Callable[..., str], hypervisor: Hypervisor) -> Callable[..., Guest]:
    """Applies a paused guest with these keys."""
    if len(EVERY) < 2:
        cannot("a host with one CPU has nothing to pin to")

    def apply(keys: str) -> Guest:
        name = make_name("pinned")
        kvmctl("apply", "-f", "-", stdin=file(name, keys))
        return Guest(hypervisor, name)

    return apply


def file(name: str, keys: str) -> str:
    return f"guests: [{{name: {name}, accelerator: tcg, memory: {{size: 64MiB}}, state: paused, {keys}}}]"


def allowed(guest: Guest) -> tuple[set[frozenset[int]], set[frozenset[int]]]:
    """Where the vCPUs' threads may run, and where all other threads may: one set for each that differs."""
    vcpus: set[frozenset[int]] = set()
    emulator: set[frozenset[int]] = set()
    for task in Path(f"/proc/{guest.pid}/task").iterdir():
        runs_vcpu = (task / "comm").read_text().startswith("CPU ")
        (vcpus if runs_vcpu else emulator).add(frozenset(os.sched_getaffinity(int(task.name))))
    return vcpus, emulator


def on(*cpus: int) -> set[frozenset[int]]:
    return {frozenset(cpus)}


def test_an_emulator_is_pinned_from_its_start(make: Callable[..., Guest]) -> None:
    guest = make("cpu: {count: 2, emulator-pin: 1}")
    assert allowed(guest) == ({EVERY}, on(1))


def test_an_emulator_is_moved_while_it_runs(kvmctl: Kvmctl, make: Callable[..., Guest]) -> None:
    guest = make("cpu: {count: 2}")
    assert allowed(guest) == ({EVERY}, {EVERY})
    for value, expected in (("0", on(0)), ("1", on(1)), ("0-1", on(0, 1)), ("none", {EVERY})):
        changed = kvmctl("-o", "json", "set", guest.name, f"cpu.emulator-pin={value}").json()
        assert [(one["new"], one["result"]) for one in changed] == [(value, "changed")]
        assert allowed(guest) == ({EVERY}, expected), value
        assert kvmctl("-o", "json", "set", guest.name, f"cpu.emulator-pin={value}").json() == []
    assert "emulatorpin" not in domains.definition(guest.domain)


def test_an_emulator_of_no_pinning_of_its_own_is_where_the_vcpus_are(
    kvmctl: Kvmctl, make: Callable[..., Guest]
) -> None:
    guest = make("cpu: {count: 2, pin: 0}")
    assert allowed(guest) == (on(0), on(0))
    kvmctl("set", guest.name, "cpu.pin=1")
    assert allowed(guest) == (on(1), on(1))
    kvmctl("set", guest.name, "cpu.emulator-pin=0")
    assert allowed(guest) == (on(1), on(0))
    kvmctl("set", guest.name, "cpu.pin=none")
    assert allowed(guest) == ({EVERY}, on(0))
    kvmctl("set", guest.name, "cpu.pin=1", "cpu.emulator-pin=none")
    assert allowed(guest) == (on(1), on(1))
    kvmctl("set", guest.name, "cpu.pin=none")
    assert allowed(guest) == ({EVERY}, {EVERY})
    assert kvmctl("-o", "json", "show", guest.name).json()["pending_restart"] == []


def test_what_virsh_pinned_is_seen_and_mended(kvmctl: Kvmctl, make: Callable[..., Guest]) -> None:
    guest = make("cpu: {emulator-pin: 0}")
    spec = kvmctl("spec", guest.name).out
    assert "emulator-pin: '0'" in spec
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []
    guest.domain.pinEmulator((False, True), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    pending = kvmctl("-o", "json", "show", guest.name).json()["pending_restart"]
    assert pending == [{"field": "cpu.emulator-pin", "running": "1", "stored": "0"}]
    mended = kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json()
    assert [(one["field"], one["old"], one["result"]) for one in mended] == [("cpu.emulator-pin", "1", "changed")]
    assert allowed(guest)[1] == on(0)


@pytest.mark.parametrize("key", ["pin", "emulator-pin"])
def test_cpus_that_this_host_does_not_have_are_refused_before_anything_is_made(
    kvmctl: Kvmctl, make_name: Callable[..., str], pool: tuple[str, Path], key: str
) -> None:
    name, beyond = make_name("beyond"), f"{len(EVERY)}-{len(EVERY) + 3}"
    keys = f"cpu: {{{key}: '0,{beyond}'}}, disks: [{{volume: d.qcow2, pool: {pool[0]}, size: 1MiB}}]"
    ran = kvmctl("apply", "-f", "-", stdin=file(name, keys), code=5)
    assert f"guest {name}: cpu.{key} names CPUs {beyond}, which this host does not have: it has 0-" in ran.err
    assert not (pool[1] / "d.qcow2").exists()
    kvmctl("show", name, code=3)


def test_a_running_guest_is_left_as_it_is(kvmctl: Kvmctl, make: Callable[..., Guest]) -> None:
    guest = make("cpu: {pin: 0}")
    before = domains.definition(guest.domain)
    kvmctl("set", guest.name, f"cpu.pin={len(EVERY)}", "cpu.limit=0.5", code=5)
    assert domains.definition(guest.domain) == before
    assert allowed(guest) == (on(0), on(0))


def test_a_guest_is_not_started_on_cpus_that_are_gone(
    kvmctl: Kvmctl, make_name: Callable[..., str], hypervisor: Hypervisor
) -> None:
    """As it is after a move to a smaller host: its definition names them, and its file does not."""
    name = make_name("moved")
    kvmctl("apply", "-f", "-", stdin=file(name, "cpu: {pin: 0}").replace("state: paused", "state: stopped"))
    text = domains.definition(Guest(hypervisor, name).domain)
    hypervisor.connection.defineXML(text.replace("cpuset='0'", f"cpuset='{len(EVERY)}'"))
    assert "1 change" in kvmctl("set", name, "cpu.limit=0.5").err
    ran = kvmctl("set", name, "state=running", code=5)
    assert f"cpu.pin names CPU {len(EVERY)}, which this host does not have" in ran.err
    assert ran.err.partition(": ")[2].startswith(f"guest {name}: ")
    ran = kvmctl("start", name, "--paused", code=5)
    assert f"guest {name}: cpu.pin names CPU {len(EVERY)}, which this host does not have: it has 0-" in ran.err
    assert domains.state(Guest(hypervisor, name).domain) == "stopped"


def test_the_opt_out_of_rebalancing_is_known_at_once(kvmctl: Kvmctl, make: Callable[..., Guest]) -> None:
    guest = make("rebalance: true")
    assert "rebalance" not in kvmctl("spec", guest.name).out
    changed = kvmctl("-o", "json", "set", guest.name, "rebalance=false").json()
    assert [(one["field"], one["result"]) for one in changed] == [("rebalance", "changed")]
    for text in (domains.definition(guest.domain), domains.live_definition(guest.domain)):
        assert promise(text).rebalance is False
    spec = kvmctl("spec", guest.name).out
    assert "rebalance: false" in spec
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []
    kvmctl("set", guest.name, "rebalance=true")
    assert promise(domains.live_definition(guest.domain)).rebalance is True
    assert "rebalance" not in domains.definition(guest.domain)


def test_an_amount_by_the_clock_is_said_in_cores(kvmctl: Kvmctl, make: Callable[..., Guest]) -> None:
    clock = base_clock()
    if clock is None:
        cannot("this machine's base clock is unknown")
    guest = make("cpu: {count: 2}")
    ran = kvmctl("set", guest.name, "cpu.limit=1200MHz")
    cores = round(1200 / clock.mhz, 3)
    said = f"1200MHz is {cores:g} cores of this host's {clock.mhz:.0f} MHz base clock ({clock.source})"
    assert said in ran.err.splitlines()
    quota, period = ((guest.cgroup / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
    assert int(quota) / int(period) == pytest.approx(cores)
    assert re.search(rf"limit: {cores:g}\b", kvmctl("spec", guest.name).out)
    assert "MHz" not in kvmctl("-q", "set", guest.name, "cpu.limit=1.2GHz").err


def test_a_file_that_speaks_of_the_clock_is_told_each_amount_once(
    kvmctl: Kvmctl, make_name: Callable[..., str]
) -> None:
    clock = base_clock()
    if clock is None:
        cannot("this machine's base clock is unknown")
    limits = ", ".join(f"{{name: {make_name()}, cpu: {{limit: 500MHz, reservation: 0.1GHz}}}}" for _ in range(2))
    ran = kvmctl("diff", "-f", "-", stdin=f"guests: [{limits}]", code=10)
    one, other = (f"{text} is {round(mhz / clock.mhz, 3):g} cores" for text, mhz in (("500MHz", 500), ("0.1GHz", 100)))
    assert f"{one}, {other} of this host's {clock.mhz:.0f} MHz base clock ({clock.source})" in ran.err
