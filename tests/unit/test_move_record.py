"""How moves went, kept for the next forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmctl.control import move_record
from kvmctl.control.move_record import MoveRecord

pytestmark = pytest.mark.unit


def _move(target: str = "b", seconds: float = 5.0, transfer: float | None = 4.0, **more: object) -> MoveRecord:
    values: dict[str, object] = {
        "time": 1.0, "guest": "web1", "source": "a", "target": target, "seconds": seconds, "expected": 4.5,
        "transfer": transfer, "downtime": 0.1, "expected_downtime": 0.1, "sent": 1000, "disks": 0, "speed": 250,
        "limited": False, "dirty_rate": 0, "rounds": 2,
    }  # fmt: skip
    return MoveRecord(**(values | more))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path))
    return tmp_path


def test_nothing_is_learnt_from_nothing() -> None:
    assert move_record.learnt("b") == (None, None)


def test_speed_is_of_that_target_and_unlimited() -> None:
    for move in (_move(), _move(speed=350), _move(speed=300), _move(speed=10, limited=True), _move("c", speed=9000)):
        move_record.record(move)
    assert move_record.learnt("b") == (300, 1.0)
    assert move_record.learnt("d") == (None, 1.0)


def test_a_torn_line_is_left_out() -> None:
    move_record.record(_move())
    with move_record.file().open("a") as file:
        file.write('{"time": 1\n[]\nnull\n')
    move_record.record(_move(guest="web2"))
    assert [move.guest for move in move_record.records()] == ["web1", "web2"]
    assert move_record.file().stat().st_mode & 0o077 == 0
