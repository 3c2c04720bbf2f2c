"""What kvmctl changed on this machine is put back: the parent's weight, threads' and guests' weights, and KSM."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmctl.host import cgroup, ksm
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

URI = "qemu:///system"
Kernel = Callable[[], dict[Path, str]]


def weight_file(directory: Path) -> Path:
    return directory / cgroup.WEIGHT_FILES[cgroup.version()]


def emulator(guest: Guest) -> Path:
    return weight_file(cgroup.threads_directory(guest.cgroup) / "emulator")


@pytest.fixture
def guests(hypervisor: Hypervisor, make_name: Callable[..., str]) -> Iterator[list[Guest]]:
    """Two paused guests, one with an I/O thread; the machine's own parent weight is there again afterwards."""
    names = [make_name("restore") for _ in range(2)]
    for name, more in zip(names, ("", "<iothreads>1</iothreads>"), strict=True):
        text = (
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>{more}"
            "<os><type arch='x86_64'>hvm</type></os><cputune><shares>1000</shares></cputune></domain>"
        )
        domains.start(domains.define(hypervisor, name, text), paused=True)
    found = [Guest(hypervisor, name) for name in names]
    parent = weight_file(found[0].cgroup.parent)
    before = parent.read_text()
    try:
        yield found
    finally:
        if parent.read_text() != before:
            parent.write_text(before)


@pytest.fixture
def kernel(guests: list[Guest]) -> Kernel:
    """Every weight that the kernel has of these guests, of their threads and of their parent."""
    own = [guest.cgroup for guest in guests]
    found = [cgroup.threads_directory(path) for path in own]
    groups = [group for path in found for group in sorted(path.iterdir()) if group.is_dir()]
    files = [weight_file(path) for path in (own[0].parent, *own, *groups)]
    return lambda: {file: file.read_text().strip() for file in files}


@pytest.fixture
def changed(kvmctl: Kvmctl, guests: list[Guest], kernel: Kernel) -> dict[Path, str]:
    """All of them as they were; kvmctl has changed them since."""
    before = kernel()
    kvmctl("-c", URI, "set", guests[1].name, "cpu.reservation=1.2")
    kvmctl("-c", URI, "rebalance")
    after = kernel()
    assert after[weight_file(guests[0].cgroup.parent)] != before[weight_file(guests[0].cgroup.parent)]
    assert after[emulator(guests[0])] != before[emulator(guests[0])]
    assert after[weight_file(guests[1].cgroup)] != before[weight_file(guests[1].cgroup)]
    return before


def rows(kvmctl: Kvmctl, *words: object, code: int = 0) -> dict[str, dict[str, Any]]:
    found = kvmctl("-c", URI, "-o", "json", "host", "restore", *words, code=code).json()
    return {f"{row['kind']} {row['name']}": row for row in found}


def test_all_is_put_back_and_then_nothing_is(
    kvmctl: Kvmctl, guests: list[Guest], kernel: Kernel, changed: dict[Path, str], state: Path
) -> None:
    now = kernel()
    pending = rows(kvmctl, "--dry-run", code=10)
    assert {row["result"] for row in pending.values()} == {"pending"}
    assert kernel() == now
    done = rows(kvmctl)
    assert {row["result"] for row in done.values()} == {"changed"}
    assert set(done) == set(pending)
    assert {row["kind"] for row in done.values()} == {"weight", "thread-weight", "parent-weight"}
    assert f"weight {guests[1].name}" in done
    assert f"thread-weight {guests[1].cgroup.name}/iothread1" in done
    assert kernel() == changed
    assert json.loads((state / "journal.json").read_text())["changes"] == {}
    again = kvmctl("-c", URI, "host", "restore")
    assert (again.out, again.err) == ("", "nothing to put back\n")
    assert kvmctl("-c", URI, "-o", "json", "host", "restore").json() == []


def test_somebody_elses_change_is_left_unless_forced(
    kvmctl: Kvmctl, guests: list[Guest], kernel: Kernel, changed: dict[Path, str]
) -> None:
    scheduler.set_weight(guests[1].domain, 77)
    emulator(guests[0]).write_text("555")
    weight_file(guests[0].cgroup.parent).write_text("3000")
    done = rows(kvmctl)
    left = {name for name, row in done.items() if row["result"] == "not applied"}
    assert left == {
        f"weight {guests[1].name}",
        f"thread-weight {guests[0].cgroup.name}/emulator",
        f"parent-weight {guests[0].cgroup.parent.name}",
    }
    reason = done[f"weight {guests[1].name}"]["reason"]
    assert reason.startswith("kvmctl had set ")
    assert reason.endswith(", and somebody else 77: --force overrides")
    assert scheduler.weight(guests[1].domain) == 77
    forced = rows(kvmctl, "--force")
    assert set(forced) == left
    assert {row["result"] for row in forced.values()} == {"changed"}
    assert kernel() == changed


def test_a_guest_that_is_gone_is_dropped(
    kvmctl: Kvmctl, guests: list[Guest], changed: dict[Path, str], state: Path
) -> None:
    parent = weight_file(guests[0].cgroup.parent)
    domains.power_off(guests[1].domain)
    done = rows(kvmctl)
    assert not [name for name in done if guests[1].name in name]
    assert parent.read_text().strip() == changed[parent]
    assert guests[1].name not in (state / "journal.json").read_text()


def test_what_was_put_back_by_hand_is_unchanged(
    kvmctl: Kvmctl, guests: list[Guest], changed: dict[Path, str], state: Path
) -> None:
    for file, value in changed.items():
        if file.read_text().strip() != value:
            file.write_text(value)
    assert {row["result"] for row in rows(kvmctl).values()} == {"unchanged"}
    assert json.loads((state / "journal.json").read_text())["changes"] == {}


def test_a_hypervisor_that_does_not_answer_keeps_its_weights_and_not_the_others(
    kvmctl: Kvmctl, kernel: Kernel, changed: dict[Path, str], state: Path, tmp_path: Path
) -> None:
    Journal(state / "journal.json").record("weight", f"qemu:///system?socket={tmp_path}/none 3 web1", 1000, 2000)
    ran = kvmctl("-c", URI, "host", "restore", code=8)
    assert "1 of " in ran.err
    line = next(line for line in ran.out.splitlines() if "web1" in line)
    assert "not applied" in line
    assert "cannot connect" in line
    assert kernel() == changed


def test_the_weights_of_another_host_wait_until_it_is_named(kvmctl: Kvmctl, state: Path) -> None:
    Journal(state / "journal.json").record("weight", "qemu+ssh://other/system 3 web1", 1000, 2000)
    assert "nothing to put back" in kvmctl("-c", URI, "host", "restore").err
    assert "web1" in (state / "journal.json").read_text()


def test_another_kvmctl_at_work_is_waited_for(
    kvmctl: Kvmctl, changed: dict[Path, str], kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    now = kernel()
    with lock(URI):
        assert f"is changing {URI} (waited 10 s)" in kvmctl("-c", URI, "host", "restore", code=9).err
        assert rows(kvmctl, "--dry-run", code=10)
    assert kernel() == now


def test_a_kind_of_a_newer_kvmctl_is_named(kvmctl: Kvmctl, state: Path) -> None:
    Journal(state / "journal.json").record("colour", "sky", "blue", "green")
    assert "colour: a newer kvmctl changed this" in kvmctl("-c", URI, "host", "restore").err


@pytest.fixture
def merging() -> Iterator[None]:
    """KSM's settings, which are there again afterwards."""
    found = {path: ksm.value(path.name) for path in sorted(ksm.ROOT.iterdir()) if path.stat().st_mode & 0o200}
    yield
    for path in sorted(found, key=lambda path: (path.name != "run", path.name != "advisor_mode")):
        if ksm.value(path.name) != found[path]:
            path.write_text(found[path])


def test_ksm_is_put_back_too(kvmctl: Kvmctl, merging: None) -> None:
    before = {name: ksm.value(name) for name in ("run", "sleep_millisecs", "advisor_mode")}
    kvmctl("ksm", "enable", "--sleep-millisecs", 33)
    assert ksm.value("sleep_millisecs") == "33"
    done = rows(kvmctl)
    assert done["ksm sleep_millisecs"]["result"] == "changed"
    assert {name: ksm.value(name) for name in before} == before
    kvmctl("ksm", "enable", "--sleep-millisecs", 33)
    (ksm.ROOT / "sleep_millisecs").write_text("44")
    assert rows(kvmctl)["ksm sleep_millisecs"]["result"] == "not applied"
    assert ksm.value("sleep_millisecs") == "44"
    assert rows(kvmctl, "--force")["ksm sleep_millisecs"]["result"] == "changed"
    assert {name: ksm.value(name) for name in before} == before


def test_a_balloon_is_put_back_within_what_its_owner_says(kvmctl: Kvmctl, guests: list[Guest], state: Path) -> None:
    kvmctl("-c", URI, "set", guests[0].name, "memory.reservation=32MiB")
    journal = Journal(state / "journal.json")
    for guest, old in zip(guests, (8 * MIB, 1024 * MIB), strict=True):
        journal.record("balloon", f"{URI} {guest.domain.ID()} {guest.name}", old, None)
    found = rows(kvmctl, "--dry-run", code=10)
    assert found[f"balloon {guests[0].name}"]["wanted"] == 32 * MIB, "no less than is reserved, whoever took it"
    assert found[f"balloon {guests[1].name}"]["wanted"] == 64 * MIB, "no more than it is to have by now"
    # A paused guest cannot follow; that is said.
    kvmctl("-c", URI, "set", guests[0].name, "memory.size=48MiB", code=7)
    assert journal.entries("balloon")[f"{URI} {guests[0].domain.ID()} {guests[0].name}"].old == 48 * MIB
