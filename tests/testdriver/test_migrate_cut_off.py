"""Moves that a run before this one has left, between two hosts of the test driver: it moves nothing, but it tells what
each host has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmctl.control import move_settle
from kvmctl.control.move_settle import Begun
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

UUID = "11111111-2222-3333-4444-555555555555"
_HOST = (
    "<node><domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>131072</memory><vcpu>1</vcpu>"
    "<os><type arch='i686'>hvm</type></os></domain>"
    "<host><model>i686</model><cpus>4</cpus><memory>8000000</memory></host></node>"
)


@pytest.fixture
def ends(tmp_path: Path) -> tuple[str, str]:
    """A host with a guest, and one without it."""
    for name, guest, uuid in (("a", "web1", UUID), ("b", "other", UUID.replace("1", "9"))):
        (tmp_path / f"{name}.xml").write_text(_HOST.format(name=guest, uuid=uuid))
    return f"test://{tmp_path}/a.xml", f"test://{tmp_path}/b.xml"


def _begin(state: Path, source: str, target: str, uuid: str = UUID) -> Journal:
    journal = Journal(state / "journal.json")
    move_settle.begin(journal, Begun("web1", uuid, source, target, autostart=True, offline=False))
    return journal


def test_a_move_that_fails_leaves_nothing(kvmctl: Kvmctl, ends: tuple[str, str], state: Path) -> None:
    here, there = ends
    kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
    ran = kvmctl("-c", here, "migrate", "web1", there, "--direct", code=1)
    assert "it is where it was" in ran.err
    assert not Journal(state / "journal.json").unfinished()


@pytest.mark.parametrize("words", [("--check",), ("--copy-storage",), ("--bandwidth", "1MiB/s")])
def test_history_takes_no_word_of_a_move(kvmctl: Kvmctl, words: tuple[str, ...]) -> None:
    assert "leave the other options out" in kvmctl("migrate", "--history", *words, code=2).err


def test_what_was_expected_and_what_happened(kvmctl: Kvmctl, state: Path) -> None:
    assert "no move is recorded" in kvmctl("migrate", "--history").err
    assert kvmctl("migrate", "--history", "-o", "json").json() == []
    line = {
        "time": 1.5, "guest": "web1", "source": "a:///", "target": "b:///", "seconds": 4.0, "expected": 5.0,
        "transfer": 3.0, "downtime": 0.05, "expected_downtime": 0.1, "sent": 3 << 20, "disks": 0, "speed": 1 << 20,
        "limited": False, "dirty_rate": 0, "rounds": 1,
    }  # fmt: skip
    state.mkdir()
    lines = [line, line | {"guest": "db1", "throttled": 40, "expected": None}]
    (state / "moves.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines) + "{cut o")
    table = kvmctl("migrate", "--history").out
    assert [row.split()[2] for row in table.splitlines()[1:]] == ["web1", "db1"]
    assert "+25%" in table
    assert "40 %" in table
    (only,) = kvmctl("migrate", "web*", "--history", "-o", "json").json()
    assert (only["name"], only["error"], only["expected"]) == ("web1", 0.25, 5.0)


def test_one_that_stayed(kvmctl: Kvmctl, ends: tuple[str, str], state: Path) -> None:
    here, there = ends
    journal = _begin(state, here, there)
    ran = kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
    assert f"was cut off: it is at {here}" in ran.err
    assert not journal.unfinished()


def test_one_that_arrived(kvmctl: Kvmctl, ends: tuple[str, str], state: Path) -> None:
    here, there = ends
    journal = _begin(state, there, here)
    ran = kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
    assert f"was cut off: it is at {here}" in ran.err
    assert not journal.unfinished()


def test_one_that_somebody_has_removed(kvmctl: Kvmctl, ends: tuple[str, str], state: Path) -> None:
    here, there = ends
    journal = _begin(state, here, there, UUID.replace("1", "7"))
    ran = kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
    assert "on neither host now" in ran.err
    assert not journal.unfinished()


def test_one_whose_target_is_dead(kvmctl: Kvmctl, ends: tuple[str, str], state: Path) -> None:
    here, there = ends
    journal = _begin(state, here, "qemu+tcp://127.0.0.1:1/system")
    kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
    assert not journal.unfinished(), "it runs here, so it has not gone"
    journal = _begin(state, there, "qemu+tcp://127.0.0.1:1/system")
    ran = kvmctl("-c", there, "migrate", "other", here, "--direct", "--check")
    assert "the target does not answer" in ran.err
    assert journal.unfinished(), "nobody knows where it is"
    doctor = kvmctl("-c", here, "host", "doctor", code=None)
    assert "guest web1 was being moved to" in doctor.out


def test_one_that_goes_on(
    kvmctl: Kvmctl, ends: tuple[str, str], state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = ends
    journal = _begin(state, here, there)
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    with lock(move_settle.lock_name(UUID)):
        ran = kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
        assert "cut off" not in ran.err
        assert journal.unfinished()
        kvmctl("-c", here, "migrate", "web1", there, "--direct", code=9)


def test_what_another_version_wrote_is_left_alone(kvmctl: Kvmctl, ends: tuple[str, str], state: Path) -> None:
    here, there = ends
    journal = Journal(state / "journal.json")
    for key, data in (("a", {"guest": "web1"}), ("b", "x"), ("c", None), ("d", [1])):
        journal.begin(move_settle.INTENT, key, data)
    kvmctl("-c", here, "migrate", "web1", there, "--direct", "--check")
    assert len(journal.unfinished()) == 4
    assert "internal" not in kvmctl("-c", here, "host", "doctor", code=None).err
