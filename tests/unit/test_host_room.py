"""Room that starts ask for."""

import json
from pathlib import Path

import pytest

from kvmctl.host import room

pytestmark = pytest.mark.unit

URI = "qemu:///system"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path))
    return tmp_path / "room"


def test_what_is_asked_for_adds_up_less_what_is_held() -> None:
    room.ask(URI, "a", 300 * MIB)
    room.ask(URI, "b", 200 * MIB)
    assert room.asked(URI, {}) == 500 * MIB
    assert room.asked(URI, {"a": 100 * MIB, "b": None, "c": 900 * MIB}) == 400 * MIB
    assert room.asked(URI, {"a": 900 * MIB}) == 200 * MIB


def test_asking_again_asks_for_no_more() -> None:
    room.ask(URI, "a", 300 * MIB)
    room.ask(URI, "a", 300 * MIB)
    assert room.asked(URI, {}) == 300 * MIB


def test_a_guest_of_another_hypervisor_holds_nothing_of_it() -> None:
    room.ask("qemu:///session", "a", 300 * MIB)
    assert room.asked(URI, {"a": 300 * MIB}) == 300 * MIB


def test_what_is_dropped_is_not_asked_for(folder: Path) -> None:
    room.ask(URI, "../a", MIB)
    room.drop(URI, "../a")
    room.drop(URI, "never")
    assert room.asked(URI, {}) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"until": 0.0},
        {"until": 1e12},
        {"until": "soon"},
        {"boot": "another"},
        {"bytes": "many"},
        {"guest": None},
    ],
)
def test_a_wish_that_is_over_or_torn_counts_nothing_and_goes(folder: Path, change: dict[str, object]) -> None:
    room.ask(URI, "a", MIB)
    (file,) = folder.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert room.asked(URI, {}) == 0
    assert not file.exists()


def test_a_file_that_is_no_wish_goes(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.json").write_text("{")
    assert room.asked(URI, {}) == 0
    assert list(folder.iterdir()) == []


def test_where_nothing_was_asked_there_is_no_folder() -> None:
    assert room.asked(URI, {}) == 0
