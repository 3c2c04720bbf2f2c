"""What ticks remember may be lost, half written or from the future; what they changed is kept within bounds."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.control import history, remember
from kvmctl.control.snapshot import Saved, dump, load
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError, UsageError
from kvmctl.model.host_sample import HostSample, ProcessSample, Snapshot
from kvmctl.model.hostpolicy import HostPolicy
from kvmctl.model.plan import GuestMemory, Memory
from kvmctl.model.promise import Promise
from kvmctl.model.sample import BalloonSample, GuestSample

pytestmark = pytest.mark.unit

URI = "qemu:///system"
MEMORY = Memory(5, "boot", 7, 0.25, {"u": GuestMemory(3, 9, (4, 5), None, -0.5, 0.95, None)})


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_what_was_remembered_is_recalled_by_its_hypervisor_alone() -> None:
    remember.remember(URI, MEMORY)
    assert remember.recall(URI) == (MEMORY, "")
    assert remember.recall("lxc:///system") == (None, "")
    assert stat.S_IMODE(remember.file().stat().st_mode) == 0o600


def test_another_hypervisor_keeps_what_it_remembers_and_an_older_boot_does_not() -> None:
    remember.remember(URI, MEMORY)
    remember.remember("lxc:///system", MEMORY)
    assert remember.recall(URI)[0] == MEMORY
    remember.remember("xen:///system", Memory(1, "next boot"))
    assert remember.recall(URI)[0] is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", '"x"', '{"version": 2, "hypervisors": {}}', '{"version": 1}',
        '{"version": 1, "hypervisors": {"qemu:///system": {"taken": "x"}}}',
        '{"version": 1, "hypervisors": {"qemu:///system": []}}', "[" * 100_000, "\0",
        '{"version": 1, "hypervisors": {"qemu:///system": {"taken": 1, "boot": "b", "busy": null, "others": null, '
        '"guests": {}, "reclaim": {"taken": 1, "boot": "b", "state": null, "stalled": null, "unprofitable_until": 0, '
        '"short": -1, "guests": {}}}}}',
    ],
)  # fmt: skip
def test_a_file_that_is_of_no_use_is_said_and_replaced(text: str, state: Path) -> None:
    state.mkdir()
    remember.file().write_text(text)
    memory, note = remember.recall(URI)
    assert memory is None
    assert bool(note) == bool(text)
    remember.remember(URI, MEMORY)
    assert remember.recall(URI) == (MEMORY, "")


def test_a_file_from_the_future_is_named(state: Path) -> None:
    state.mkdir()
    remember.file().write_text('{"version": 9, "hypervisors": {}}')
    assert "its version is 9, and this kvmctl reads version 1" in remember.recall(URI)[1]


@given(st.binary(max_size=200))
def test_no_file_makes_a_tick_fail(data: bytes) -> None:
    file = remember.file()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    assert remember.recall(URI)[0] is None


def outcome(number: int) -> Outcome:
    return Outcome(Change(f"g{number}", "cpu.weight", 1, number, reason="why"), "changed")


def test_history_tells_when_what_and_why() -> None:
    history.record(URI, 12.3456, [outcome(1), outcome(2)])
    found = list(history.records())
    assert [(one.guest, one.old, one.new, one.result, one.reason) for one in found] == [
        ("g1", 1, 1, "changed", "why"),
        ("g2", 1, 2, "changed", "why"),
    ]
    assert found[0].time == 12.346


def test_history_leaves_out_a_line_that_was_cut_off(state: Path) -> None:
    history.record(URI, 1.0, [outcome(1)])
    with history.file().open("a") as file:
        file.write('{"time": 2.0, "uri": "qe')
    assert [one.guest for one in history.records()] == ["g1"]


def test_history_has_two_files_at_most(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    monkeypatch.setattr(history, "MOST_BYTES", 1000)
    for number in range(100):
        history.record(URI, float(number), [outcome(number)])
    assert sorted(path.name for path in state.iterdir()) == ["history.jsonl", "history.old"]
    assert sum(path.stat().st_size for path in state.iterdir()) < 2500
    assert [one.guest for one in history.records()][-1] == "g99"


SAMPLE = GuestSample(
    "web1", "u", "running", 2, 4, BalloonSample(rss=5), 7, (1, 2), None, run=3, cpus=frozenset({3, 1}), weight_set=9,
    promise=Promise(1000, math.inf, 0.5, 10, 0, sharing=True, swap=False, labels=(("tier", "front"),)),
    process=ProcessSample(12, 1000, quota=0.5),
)  # fmt: skip
HOST = HostSample(2, 2400.5, 1, 2, 3, 4, 1, online=frozenset({0, 1}), busy=77)


REMEMBERED = {"taken": 5, "boot": "boot"}


def test_a_snapshot_is_read_back_as_it_was() -> None:
    saved = Saved(Snapshot(URI, 5, 1.5, "boot", (SAMPLE,), HOST), MEMORY, HostPolicy())
    assert load("x", dump(saved)) == saved
    assert load("x", dump(Saved(Snapshot(URI, 5, 1.5, "boot", ()), None, HostPolicy()))).snapshot.host is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("kvmctl"), "it is something else"),
        (lambda d: d.update(version=2), "its version is 2"),
        (lambda d: d["snapshot"].update(taken="5"), "expected int @ $.snapshot.taken"),
        (lambda d: d["snapshot"].update(taken=True), "expected int @ $.snapshot.taken"),
        (lambda d: d["snapshot"].pop("uri"), "required field missing @ $.snapshot.uri"),
        (lambda d: d["snapshot"].update(more=1), "extra fields found (more)"),
        (lambda d: d.update(policy=None), "$.policy"),
        (lambda d: d["snapshot"]["guests"][0].update(run=None), "guest web1 is running, and has no run"),
        (lambda d: d["snapshot"]["guests"][0]["promise"].update(cpu_reservation="unlimited"), "has no bound"),
        (lambda d: d["snapshot"]["guests"][0]["promise"].update(cpu_reservation=1e308), "$.snapshot.guests[0].promise"),
        (lambda d: d["policy"]["cpu"].update(reserve=math.nan), "JSON has no NaN"),
        (lambda d: d["memory"].update(reclaim=REMEMBERED | {"short": -1}), "-1 looks in a row"),
    ],
)
def test_what_is_no_snapshot_is_refused_with_the_place(change: object, said: str) -> None:
    document = json.loads(dump(Saved(Snapshot(URI, 5, 1.5, "boot", (SAMPLE,), HOST), MEMORY, HostPolicy())))
    change(document)  # type: ignore[operator]
    with pytest.raises(UsageError) as raised:
        load("bug.json", json.dumps(document))
    assert said in raised.value.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["kvmctl", "version", "snapshot", "memory", "policy", "guests", "host", "uri"]), inner
            )
        ),
    )
)
def test_no_document_makes_loading_fail_otherwise(document: object) -> None:
    if isinstance(document, dict):
        document |= {"kvmctl": "snapshot", "version": 1}
    with pytest.raises(KvmctlError):
        load("x", json.dumps(document))
