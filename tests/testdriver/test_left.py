"""What killed runs left is put right by the next run of any command, and nothing else is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmctl.host.lock import lock
from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

URI, HERE, GONE = "test:///default", "6695eb01-f6a4-8304-79aa-97f2502e193f", "6695eb01-f6a4-8304-79aa-000000000000"


def write(state: Path, kind: str, uuid: str, uri: str = URI, **more: Any) -> None:
    path = state / "journal.json"
    state.mkdir(exist_ok=True)
    empty: dict[str, Any] = {"version": 1, "changes": {}, "intents": {}}
    found = json.loads(path.read_text()) if path.exists() else empty
    data = {"guest": "test" if uuid == HERE else "gone", "uri": uri} | more
    found["intents"].setdefault(kind, {})[uuid] = {"data": data, "time": 1.0}
    path.write_text(json.dumps(found))


def left(state: Path) -> dict[str, list[str]]:
    return {kind: list(found) for kind, found in json.loads((state / "journal.json").read_text())["intents"].items()}


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The locks of the command line under test are this process's too."""
    (tmp_path / "run").mkdir(exist_ok=True)
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    yield
    assert os.environ["KVMCTL_RUN_DIR"]


@pytest.mark.parametrize("words", [["list"], ["show", "test"], ["list", "-q"]])
def test_a_frozen_guest_is_thawed_by_any_command(kvmctl: Kvmctl, state: Path, words: list[str]) -> None:
    write(state, "freeze", HERE)
    assert "the file systems of guest test are thawed" in kvmctl("-c", URI, *words).err
    assert left(state) == {}
    assert kvmctl("-c", URI, *words).err == ""


def test_a_guest_that_is_frozen_by_a_run_that_lives_is_left_to_it(
    kvmctl: Kvmctl, state: Path, run_directory: None
) -> None:
    write(state, "freeze", HERE)
    with lock(f"freeze-{HERE}"):
        assert kvmctl("-c", URI, "list").err == ""
    assert left(state) == {"freeze": [HERE]}


def test_what_is_of_a_guest_that_is_gone_goes(kvmctl: Kvmctl, state: Path, tmp_path: Path, run_directory: None) -> None:
    folder = tmp_path / "images"
    (folder / ".kvmctl-export-0123456789ab").mkdir(parents=True)
    (folder / ".kvmctl-export-0123456789ab/vda.qcow2").write_bytes(b"x")
    (folder / "disk.qcow2").write_bytes(b"x")
    write(state, "export", GONE, memory=True, folders=[str(folder)])
    write(state, "freeze", GONE)
    with lock(f"export of guest {GONE}"):
        assert kvmctl("-c", URI, "list").err == ""
        assert left(state) == {"export": [GONE]}
    assert kvmctl("-c", URI, "list").err == ""
    assert [path.name for path in folder.iterdir()] == ["disk.qcow2"]
    assert left(state) == {}


def test_another_hypervisor_s_guests_are_its_own(kvmctl: Kvmctl, state: Path) -> None:
    write(state, "freeze", HERE, uri="qemu:///system")
    write(state, "export", HERE, uri="qemu:///system", memory=True, folders=[])
    assert kvmctl("-c", URI, "list").err == ""
    assert left(state) == {"freeze": [HERE], "export": [HERE]}


@pytest.mark.parametrize("text", ['{"intents": {"freeze": 7}, "version": 1}', '"freeze"', '{"freeze" "export"'])
def test_a_journal_that_is_unusable_stands_in_nobody_s_way(kvmctl: Kvmctl, state: Path, text: str) -> None:
    state.mkdir()
    (state / "journal.json").write_text(text)
    assert "test" in kvmctl("-c", URI, "list").out
