"""Controllers, guests and limits that fail in the middle of taking memory: nothing is lost, no guest is below what is
reserved for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.control.weights import BALLOON, REPORTS, run_key
from kvmctl.host import cgroup, memory
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, live
from kvmctl.model.units import MIB
from kvmctl.policy.memory import REPORT_SECONDS
from kvmctl.xml import tree
from kvmctl.xml.reclaimable import stats_period
from tests.conftest import Kvmctl, environment
from tests.hosts import PrivateHost
from tests.shorthost import Lab, booted, guest_file
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

SIZE, RESERVED = 384 * MIB, 160 * MIB


@pytest.fixture
def silent(
    host: PrivateHost, kvmctl: Kvmctl, micro: MicroGuest, console: Callable[[Guest], Console], tmp_path: Path
) -> Iterator[Lab]:
    """A guest whose definition does not say how often its balloon reports."""

    def edit(definition: str) -> str:
        without = definition.replace(f"<stats period='{REPORT_SECONDS}'/>", "")
        assert without != definition
        return without

    with booted(host, kvmctl, micro, console, tmp_path / "host.yaml", edit) as found:
        yield found


def size_of(lab: Lab) -> int:
    """What its balloon leaves the guest."""
    return live.balloon(lab.guest.domain)


def period(lab: Lab) -> int:
    """How often the running guest's driver reports, in seconds."""
    return stats_period(tree.read(domains.live_definition(lab.guest.domain)))


def test_a_driver_that_nobody_told_to_report_is_told_and_then_its_guest_gives(silent: Lab, state: Path) -> None:
    assert period(silent) == 0
    done = silent.tick()["memory.reports"]
    assert (done["old"], done["new"], done["result"]) == (0, REPORT_SECONDS, "changed")
    assert period(silent) == REPORT_SECONDS
    assert len(Journal(state / "journal.json").entries(REPORTS)) == 1
    assert stats_period(tree.read(domains.definition(silent.guest.domain))) == 0, "the definition is its owner's"
    silent.fresh()
    silent.short()
    done = silent.tick()
    assert "memory.reports" not in done
    assert RESERVED <= done["memory.balloon"]["new"] < SIZE
    silent.run("host", "restore")
    assert period(silent) == 0
    until(lambda: size_of(silent), lambda size: size == SIZE, 60, "the balloon let go")


def test_a_period_that_somebody_set_on_the_running_guest_is_kept(silent: Lab) -> None:
    live.set_stats_period(silent.guest.domain, 7)
    assert "memory.reports" not in silent.tick()
    assert period(silent) == 7
    silent.run("set", "squeezed", "rebalance=false")
    live.set_stats_period(silent.guest.domain, 0)
    assert "memory.reports" not in silent.tick()
    assert period(silent) == 0, "it opted out"


def test_a_controller_that_is_killed_has_left_all_that_undoes_its_work(lab: Lab, state: Path, tmp_path: Path) -> None:
    lab.fresh()
    lab.short()
    words = [sys.executable, "-m", "kvmctl", "-c", lab.host.uri, "rebalance", "--for", "55s", "--every", "1s"]
    env = environment(state, tmp_path / "run") | lab.env
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as controller:
        try:
            until(lambda: size_of(lab), lambda size: size < SIZE, 60, "the balloon")
        finally:
            controller.send_signal(signal.SIGKILL)
    (entry,) = Journal(state / "journal.json").entries(BALLOON).values()
    assert entry.old == SIZE
    # What the controller remembered is lost too; what it changed is not.
    (state / "controller.json").unlink(missing_ok=True)
    lab.policy_is("sharing: leave")
    back = until(lab.tick, lambda done: "memory.balloon" in done, 60, "what the next controller does")
    assert back["memory.balloon"]["new"] == SIZE
    until(lambda: size_of(lab), lambda size: size == SIZE, 60, "the balloon let go")


def test_what_its_owner_says_while_it_is_squeezed_is_what_it_has_in_the_end(lab: Lab) -> None:
    lab.fresh()
    lab.short()
    assert lab.tick()["memory.balloon"]["new"] < SIZE
    lab.policy_is("reserve: 512MiB, overcommit: 10000%, cover: 0%, sharing: leave, swap: leave")
    lab.run("set", "squeezed", "memory.size=352MiB")
    until(lambda: size_of(lab), lambda size: size == 352 * MIB, 60, "what its owner says")
    lab.fresh()
    lab.short()
    until(
        lambda: lab.tick().get("memory.balloon", {}).get("new", SIZE), lambda new: new < 352 * MIB, 60, "what is taken"
    )
    lab.run("host", "restore")
    until(lambda: size_of(lab), lambda size: size == 352 * MIB, 60, "the balloon let go")


def test_a_guest_that_has_not_begun_to_follow_its_balloon_is_told_to_stay(lab: Lab, state: Path) -> None:
    lab.guest.domain.suspend()
    with lab.host.open() as hypervisor:
        key = run_key(hypervisor, lab.guest.name, lab.guest.domain.ID())
    Journal(state / "journal.json").record(BALLOON, key, SIZE, None)
    live.set_balloon(lab.guest.domain, 200 * MIB)
    assert size_of(lab) == SIZE
    (restored,) = lab.run("host", "restore")
    assert (restored["kind"], restored["result"]) == (BALLOON, "unchanged")
    lab.guest.domain.resume()
    # Its kernel has seen by then whatever balloon it was told to have.
    lab.line.run("sleep 3")
    assert lab.line.ballooned() == 0
    assert size_of(lab) == SIZE


def test_a_squeezed_guest_that_was_saved_and_resumed_is_owed_as_much_still(lab: Lab) -> None:
    lab.fresh()
    lab.short()
    assert lab.tick()["memory.balloon"]["new"] < SIZE
    until(lambda: size_of(lab), lambda size: size < SIZE, 60, "what its balloon leaves it")
    lab.guest.domain.managedSave(0)
    lab.policy_is("sharing: leave, overcommit: 10000%, cover: 0%")
    lab.run("start", "squeezed")
    assert size_of(lab) < SIZE, "it went on as it was"
    back = until(lab.tick, lambda done: "memory.balloon" in done, 60, "what the tick gives back")
    assert back["memory.balloon"]["new"] == SIZE
    until(lambda: size_of(lab), lambda size: size == SIZE, 60, "the balloon let go")


def test_a_guest_that_dies_while_squeezed_begins_anew_with_all(lab: Lab, state: Path) -> None:
    lab.fresh()
    lab.short()
    assert lab.tick()["memory.balloon"]["new"] < SIZE
    os.kill(lab.guest.pid, signal.SIGKILL)
    until(lambda: domains.state(lab.guest.domain), lambda found: found in ("stopped", "crashed"), 30, "the state")
    assert lab.tick() == {}
    assert Journal(state / "journal.json").entries(BALLOON) == {}, "nothing of that run is left to undo"
    lab.policy_is("sharing: leave, overcommit: 10000%, cover: 0%")
    lab.run("start", "squeezed")
    assert size_of(lab) == SIZE


def test_a_new_guest_on_a_short_host_begins_with_half_and_is_as_declared(lab: Lab, host: PrivateHost) -> None:
    lab.fresh()
    reserve = memory.read().available // MIB - 200
    lab.policy_is(f"reserve: {reserve}MiB, overcommit: 10000%, cover: 0%, sharing: leave, swap: leave")
    lab.tick()
    text = guest_file(host.folder, "late")
    late = Guest(lab.guest.hypervisor, "late")
    try:
        rows = lab.run("apply", "-f", "-", stdin=text)
        assert {row["result"] for row in rows} == {"changed"}
        until(lambda: live.balloon(late.domain), lambda size: size <= SIZE // 2, 90, "the balloon of the new guest")
        assert live.balloon(late.domain) >= RESERVED
        assert lab.run("apply", "-f", "-", stdin=text) == [], "what it is to have is what the file says"
    finally:
        late.remove()


def test_a_squeezed_guest_is_not_given_more_where_memory_is_low(lab: Lab, state: Path) -> None:
    live.set_balloon(lab.guest.domain, 200 * MIB)
    until(lambda: size_of(lab), lambda size: size == 200 * MIB, 60, "the balloon")
    lab.short(0.2)
    more = ("-c", lab.host.uri, "set", "squeezed", "memory.size=380MiB")
    assert "available memory: " in lab.kvmctl(*more, code=5, env=lab.env).err
    assert size_of(lab) == 200 * MIB
    lab.run("set", "squeezed", "memory.shares=high")
    assert "forced, so promises will not be kept" in lab.kvmctl(*more, "--force", env=lab.env).err
    assert size_of(lab) == 380 * MIB
    assert '"field": "admission"' in (state / "history.jsonl").read_text()


@contextmanager
def limited(free: int) -> Iterator[None]:
    """The guests' common control group may have only so much more than it uses."""
    for mount in cgroup.mounts():
        if mount.version != 2 and "memory" not in mount.controllers:
            continue
        names = ("memory.max", "memory.current") if mount.version == 2 else (
            "memory.limit_in_bytes", "memory.usage_in_bytes",
        )  # fmt: skip
        for path in (mount.point / parent for parent in cgroup.PARENTS):
            if (path / names[0]).exists():
                before = (path / names[0]).read_text().strip()
                (path / names[0]).write_text(str(int((path / names[1]).read_text()) + free))
                try:
                    yield
                finally:
                    none = mount.version == 1 and int(before) >= 1 << 60
                    (path / names[0]).write_text("-1" if none else before)
                return
    raise AssertionError("guests have no control group for memory")


def test_a_limit_that_is_lowered_on_the_guests_is_a_shortage(lab: Lab) -> None:
    lab.fresh()
    lab.policy_is("reserve: 512MiB, overcommit: 10000%, cover: 0%, sharing: leave, swap: leave")
    assert "memory.balloon" not in lab.tick(), "the host has plenty"
    with limited(64 * MIB):
        ledger = lab.run("memory")["host"]
        assert ledger["state"] in ("hard", "low")
        assert ledger["left"] < ledger["available"]
        assert RESERVED <= lab.tick()["memory.balloon"]["new"] < SIZE
    back = until(lab.tick, lambda done: "memory.balloon" in done, 60, "what is given back")
    assert back["memory.balloon"]["new"] == SIZE


def test_a_kernel_that_has_crashed_in_the_guest_is_left_alone_and_named(lab: Lab, tmp_path: Path) -> None:
    lab.fresh()
    live.set_stats_period(lab.guest.domain, 1)
    os.write(lab.line.file, b"! echo c > /proc/sysrq-trigger\n")
    lab.short()

    def said() -> str:
        return lab.kvmctl("-c", lab.host.uri, "rebalance", env=lab.env).err

    until(said, lambda text: "squeezed: its memory counts whole, what its balloon driver last said is" in text, 60)
    left = size_of(lab)
    saved = tmp_path / "snapshot.json"
    lab.kvmctl("-c", lab.host.uri, "host", "snapshot", saved)
    assert json.loads(saved.read_text())["snapshot"]["guests"][0]["balloon"]["current"] == left >= RESERVED


@pytest.mark.parametrize(
    "at",
    [
        "kvmctl.hypervisor.live.set_balloon",
        "kvmctl.hypervisor.live.set_stats_period",
        "kvmctl.control.history.record",
        "kvmctl.control.remember.remember",
    ],
)
def test_a_controller_may_be_killed_at_any_point(lab: Lab, state: Path, tmp_path: Path, at: str) -> None:
    lab.fresh()
    lab.short()
    # The real command, which ends itself as SIGKILL would when it comes to this point.
    module, _, name = at.rpartition(".")
    code = (
        f"import os, signal\nimport {module} as module\n"
        f"module.{name} = lambda *words, **more: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"from kvmctl.cli.main import run\nrun(['-c', {lab.host.uri!r}, 'rebalance'])\n"
    )
    env = environment(state, tmp_path / "run") | lab.env
    killed = subprocess.run([sys.executable, "-c", code], env=env, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (entry,) = Journal(state / "journal.json").entries(BALLOON).values()
    assert entry.old == SIZE
    assert size_of(lab) >= RESERVED
    lab.fresh()
    lab.tick()
    until(lambda: size_of(lab), lambda size: RESERVED <= size < SIZE, 60, "what the next one takes")
    lab.run("host", "restore")
    until(lambda: size_of(lab), lambda size: size == SIZE, 60, "the balloon let go")
    assert period(lab) == REPORT_SECONDS
