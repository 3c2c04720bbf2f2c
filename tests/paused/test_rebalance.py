"""The tick on real guests: what it changes in the kernel, what it leaves, what it says, and what it survives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control.tick import Controller
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl, environment
from tests.hosts import PrivateHost, private_host
from tests.support import Guest, until

pytestmark = pytest.mark.paused

URI = "qemu:///system"
KVMCTL = (sys.executable, "-m", "kvmctl")
WITHOUT_LIBVIRT = """
import sys
from kvmctl.cli.main import run
try:
    run(sys.argv[1:])
finally:
    assert "libvirt" not in sys.modules
"""


@pytest.fixture
def guests(hypervisor: Hypervisor, make_name: Callable[..., str], kvmctl: Kvmctl) -> Iterator[list[Guest]]:
    """Three paused guests of shares 2000, 1000 and 1000, the last with half a core reserved; what was changed of the
    host is put back."""
    names = [make_name("tick") for _ in range(3)]
    promises = ["shares: 2000", "shares: 1000", "shares: 1000, reservation: 0.5"]
    lines = [f"  - {{name: {name}, cpu: {{{text}}}}}" for name, text in zip(names, promises, strict=True)]
    text = "defaults: {accelerator: tcg, memory: {size: 64MiB}, state: paused}\nguests:\n" + "\n".join(lines)
    kvmctl("-c", URI, "apply", "-f", "-", stdin=text)
    try:
        yield [Guest(hypervisor, name) for name in names]
    finally:
        kvmctl("-c", URI, "host", "restore")


def kernel(guest: Guest) -> int:
    return int((guest.cgroup / "cpu.shares").read_text())


def test_a_tick_sets_the_parent_and_the_threads_and_a_second_changes_nothing(
    guests: list[Guest], kvmctl: Kvmctl
) -> None:
    parent = guests[0].cgroup.parent / "cpu.shares"
    before = int(parent.read_text())
    planned = kvmctl("-c", URI, "-o", "json", "rebalance", "--dry-run", code=10).json()
    assert int(parent.read_text()) == before
    made = kvmctl("-c", URI, "-o", "json", "rebalance").json()
    assert [(row["name"], row["field"], row["new"]) for row in made] == [
        (row["name"], row["field"], row["new"]) for row in planned
    ]
    assert {row["result"] for row in made} == {"changed"}
    assert int(parent.read_text()) > before
    assert {int((guest.cgroup / "emulator/cpu.shares").read_text()) for guest in guests} == {102}
    again = kvmctl("-c", URI, "rebalance")
    assert again.out == ""
    assert "nothing to do: " in again.err
    assert kvmctl("-c", URI, "-q", "rebalance").err == ""
    kvmctl("-c", URI, "host", "restore")
    assert int(parent.read_text()) == before


def test_what_virsh_did_is_said_corrected_and_in_the_history(guests: list[Guest], kvmctl: Kvmctl) -> None:
    kvmctl("-c", URI, "rebalance")
    due = kernel(guests[0])
    scheduler.set_weight(guests[0].domain, 77)
    row = next(r for r in kvmctl("-c", URI, "-o", "json", "rebalance").json() if r["name"] == guests[0].name)
    assert (row["old"], row["new"]) == (77, due)
    assert f"it was last given {due}, and somebody else set 77" in row["reason"]
    assert kernel(guests[0]) == due
    record = kvmctl("-o", "json", "rebalance", "history", guests[0].name, "--last", 1).json()[0]
    assert (record["old"], record["new"], record["result"]) == (77, due, "changed")
    assert guests[0].name in kvmctl("rebalance", "history").out


def test_what_virsh_did_is_respected_where_the_policy_says_so(
    guests: list[Guest], kvmctl: Kvmctl, tmp_path: Path
) -> None:
    kvmctl("-c", URI, "rebalance")
    scheduler.set_weight(guests[0].domain, 77)
    policy = tmp_path / "respect.yaml"
    policy.write_text("cpu: {foreign: respect}\n")
    ran = kvmctl("-c", URI, "rebalance", env={"KVMCTL_HOST_FILE": str(policy)})
    assert "not applied" in ran.out
    assert kernel(guests[0]) == 77


def test_a_guest_may_opt_out(guests: list[Guest], kvmctl: Kvmctl) -> None:
    kvmctl("-c", URI, "rebalance")
    kvmctl("-c", URI, "set", guests[0].name, "rebalance=false")
    scheduler.set_weight(guests[0].domain, 77)
    assert guests[0].name not in kvmctl("-c", URI, "rebalance").out
    assert kernel(guests[0]) == 77


def test_a_guest_that_virsh_started_has_its_weight_after_the_next_tick(guests: list[Guest], kvmctl: Kvmctl) -> None:
    domain = guests[2].domain
    kvmctl("-c", URI, "rebalance")
    due = kernel(guests[2])
    domains.power_off(domain)
    domains.start(domain, paused=True)
    assert kernel(guests[2]) == 1000
    kvmctl("-c", URI, "rebalance")
    assert kernel(guests[2]) == due != 1000


def test_two_at_once_and_one_of_them_ends_with_9(guests: list[Guest], kvmctl: Kvmctl, tmp_path: Path) -> None:
    first = subprocess.Popen(
        [*KVMCTL, "-c", URI, "-v", "rebalance", "--for", "60s"],
        env=environment(tmp_path / "state", tmp_path / "run"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert first.stderr is not None
        while not (line := first.stderr.readline()).startswith("tick:"):
            assert line, "the first rebalance ended"
        refused = kvmctl("-c", URI, "rebalance", code=9)
        assert "is changing rebalance of qemu:///system" in refused.err
        # A person's command gets its turn between two ticks.
        kvmctl("-c", URI, "set", guests[1].name, "cpu.shares=1500")
    finally:
        first.terminate()
        first.wait(timeout=30)
        first.stderr.close() if first.stderr else None


def test_a_guest_that_is_gone_between_two_looks_does_not_disturb(guests: list[Guest], kvmctl: Kvmctl) -> None:
    kvmctl("-c", URI, "rebalance")
    domains.power_off(guests[1].domain)
    ran = kvmctl("-c", URI, "-o", "json", "rebalance")
    assert guests[1].name not in {row["name"] for row in ran.json()}


def test_a_full_disk_under_the_state_is_said_and_ends_with_8_or_changes_nothing(
    guests: list[Guest], kvmctl: Kvmctl, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", full], check=True)
    try:
        (full / "ballast").write_bytes(b"x" * 4096)
        ran = kvmctl("-c", URI, "rebalance", code=1, env={"KVMCTL_STATE_DIR": str(full)})
        assert "No space left on device" in ran.err
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_plan_from_a_saved_snapshot_is_the_same_and_needs_no_libvirt(
    guests: list[Guest], kvmctl: Kvmctl, tmp_path: Path
) -> None:
    file = tmp_path / "snapshot.json"
    # What the guests' parent is to weigh, and what drifted, depends on what is busy at the moment.
    (tmp_path / "state/host.yaml").parent.mkdir(exist_ok=True)
    (tmp_path / "state/host.yaml").write_text("cpu: {parent: leave, correct: off}\n")
    kvmctl("-c", URI, "rebalance")
    scheduler.set_weight(guests[0].domain, 77)
    kvmctl("-c", URI, "host", "snapshot", file)
    here = kvmctl("-c", URI, "-o", "json", "rebalance", "--dry-run", code=10).json()
    there = kvmctl("-o", "json", "rebalance", "--from", file, code=10, env={"LIBVIRT_DEFAULT_URI": "qemu://nowhere/"})
    # Both looked for themselves, and saw a little more or less used.
    plans = [
        [{key: row[key] for key in ("name", "field", "old", "new")} for row in rows] for rows in (there.json(), here)
    ]
    assert plans[0] == plans[1]
    assert guests[0].name in {row["name"] for row in here}
    assert file.stat().st_mode & 0o077 == 0
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBVIRT, "rebalance", "--from", str(file)], capture_output=True, check=False,
        env=environment(tmp_path / "state", tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 10, done.stderr.decode()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--every", "5s"], 2),
        (["--for", "5s", "--dry-run"], 2),
        (["--for", "5s", "--every", "100ms"], 2),
        (["--for", "a"], 2),
        (["--from", "/nonexistent"], 3),
        (["--from", "/etc"], 2),
        (["--from", "/etc/passwd"], 2),
        (["nonsense"], 2),
    ],
)
def test_wrong_words(kvmctl: Kvmctl, args: list[str], code: int) -> None:
    assert kvmctl("-c", URI, "rebalance", *args, code=code).err.startswith("error: ")


def test_a_broken_policy_changes_nothing(guests: list[Guest], kvmctl: Kvmctl, tmp_path: Path) -> None:
    policy = tmp_path / "broken.yaml"
    policy.write_text("cpu: {reserv: 1}\n")
    scheduler.set_weight(guests[0].domain, 77)
    ran = kvmctl("-c", URI, "rebalance", code=2, env={"KVMCTL_HOST_FILE": str(policy)})
    assert "did you mean reserve?" in ran.err
    assert kernel(guests[0]) == 77


@pytest.fixture
def private() -> Iterator[PrivateHost]:
    with private_host() as host:
        yield host


def test_a_daemon_that_is_started_again_costs_a_tick_and_is_said(
    private: PrivateHost, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    kvmctl("-c", private.uri, "apply", "-f", "-", stdin=(
        "guests: [{name: lone, accelerator: tcg, memory: {size: 64MiB}, state: paused}]"
    ))  # fmt: skip
    run = subprocess.Popen(
        [*KVMCTL, "-c", private.uri, "-v", "-o", "json", "rebalance", "--for", "12s", "--every", "1s"],
        env=environment(tmp_path / "state", tmp_path / "run"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    seen = []
    assert run.stderr is not None
    for line in run.stderr:
        seen.append(line)
        if line.startswith("tick:"):
            break
    private.kill_daemon()
    private.start_daemon()
    rest = run.communicate(timeout=120)
    err = "".join(seen) + rest[1]
    kvmctl("-c", private.uri, "host", "restore")
    assert run.returncode == 8, err
    assert "this tick was left out: " in err
    assert isinstance(json.loads(rest[0]), list)
    after = err.partition("this tick was left out")[2]
    assert "tick: 1 guests" in after
    until(lambda: after.count("tick: "), bool, 1)


@pytest.fixture
def controller(
    guests: list[Guest], hypervisor: Hypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Controller:
    """One that has ticked once, in this process, and believes that its guests are owed something."""
    for name, value in environment(tmp_path / "state", tmp_path / "run").items():
        monkeypatch.setenv(name, value)
    found = Controller(hypervisor, trimming=True)
    found.tick()
    assert found.memory is not None
    owed = {uuid: replace(one, owed=0.5, factor=1.5) for uuid, one in found.memory.guests.items()}
    found.memory = replace(found.memory, guests=owed)
    return found


def trimmed(found: Controller) -> None:
    """Trim once, when the kernel's counters are old enough to be compared."""
    assert found.memory is not None
    taken = found.memory.taken

    def older() -> bool:
        found.trim()
        assert found.memory is not None
        return bool(found.memory.guests) and all(one.factor == 1.0 for one in found.memory.guests.values())

    until(older, bool, 10, f"a trim after {taken}")


def test_between_two_ticks_weights_are_set_without_libvirt_or_the_journal(
    guests: list[Guest], controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = kernel(guests[0])
    journal = (tmp_path / "state/journal.json").read_bytes()
    (guests[0].cgroup / "cpu.shares").write_text(str(due + 500))
    controller._weights[guests[0].name] = due + 500
    monkeypatch.setattr(scheduler, "set_weight", None)
    monkeypatch.setattr(domains, "samples_with_domains", None)
    trimmed(controller)
    assert kernel(guests[0]) == due
    assert (tmp_path / "state/journal.json").read_bytes() == journal


def test_what_somebody_else_sets_between_two_ticks_is_left_for_the_next_which_says_so(
    guests: list[Guest], controller: Controller
) -> None:
    due = kernel(guests[0])
    scheduler.set_weight(guests[0].domain, 77)
    trimmed(controller)
    assert kernel(guests[0]) == 77
    said = {one.change.guest: one.change.reason for one in controller.tick().outcomes}
    assert f"it was last given {due}, and somebody else set 77" in said[guests[0].name]
    assert kernel(guests[0]) == due


def test_after_the_last_tick_the_journal_says_what_the_guests_weigh(
    guests: list[Guest], controller: Controller, kvmctl: Kvmctl
) -> None:
    controller.settle()
    due = kernel(guests[0])
    scheduler.set_weight(guests[0].domain, 77)
    assert f"it was last given {due}, and somebody else set 77" in kvmctl("-c", URI, "rebalance").out


def test_a_run_that_was_killed_between_two_ticks_makes_nobody_a_stranger(
    guests: list[Guest], controller: Controller, kvmctl: Kvmctl
) -> None:
    (guests[0].cgroup / "cpu.shares").write_text("1234")  # as a trim does, after which nothing is recorded
    row = next(r for r in kvmctl("-c", URI, "-o", "json", "rebalance").json() if r["name"] == guests[0].name)
    assert row["result"] == "changed"
    assert "somebody else" not in row["reason"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the guests whose definitions libvirt is asked for."""
    found: list[str] = []

    def noted(domain: Any) -> str:
        found.append(domain.name())
        return stored_definition(domain)

    stored_definition = domains.stored_definition
    monkeypatch.setattr(domains, "stored_definition", noted)
    return found


def test_a_definition_is_asked_for_again_where_its_file_has_changed_and_only_then(
    guests: list[Guest], controller: Controller, kvmctl: Kvmctl, asked: list[str]
) -> None:
    controller.tick()
    assert not asked
    kvmctl("-c", URI, "set", guests[0].name, "cpu.shares=3000")
    seen = controller.tick().observed.snapshot.guests
    assert asked == [guests[0].name]
    assert next(one.promise and one.promise.cpu_shares for one in seen if one.name == guests[0].name) == 3000


def test_a_definition_is_asked_for_again_after_a_while_whatever_its_file_says(
    guests: list[Guest], controller: Controller, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.setattr("kvmctl.control.defined.ASK_AGAIN", -1.0)
    controller.tick()
    assert {guest.name for guest in guests} <= set(asked)
