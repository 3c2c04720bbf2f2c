import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.host import journal as host_journal
from kvmctl.host.journal import VERSION, Journal
from kvmctl.model.errors import KvmctlError

pytestmark = pytest.mark.unit
values = st.none() | st.booleans() | st.integers() | st.text(max_size=10)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(host_journal, "moved_aside", [])
    return Journal(tmp_path / "state" / "journal.json")


def test_the_first_old_and_the_latest_new_are_kept(journal: Journal) -> None:
    journal.record("ksm", "run", 0, 1)
    journal.record("ksm", "run", 1, 2)
    entry = Journal(journal.path).entries("ksm")["run"]
    assert (entry.old, entry.new) == (0, 2)
    journal.forget("ksm", "run")
    assert Journal(journal.path).entries("ksm") == {}


def test_several_changes_are_recorded_at_once(journal: Journal) -> None:
    journal.record("weight", "a", 1, 2)
    journal.record_all("weight", {"a": (2, 3), "b": (4, 5)})
    assert {key: (entry.old, entry.new) for key, entry in journal.entries("weight").items()} == {
        "a": (1, 3),
        "b": (4, 5),
    }
    journal.forget("weight", "a", "b", "c")
    assert journal.entries("weight") == {}


def test_what_another_writes_is_seen_at_once_though_what_was_read_is_kept(journal: Journal) -> None:
    other = Journal(journal.path)
    journal.record("weight", "a", 1, 2)
    old = journal.path.stat()
    os.utime(journal.path, ns=(old.st_atime_ns, old.st_mtime_ns - 10**9))
    assert journal.entries("weight")["a"].new == 2
    journal.entries("weight").clear()
    assert journal.entries("weight")["a"].new == 2
    for new in (3, 4, 5):
        other.record("weight", "a", 1, new)
        assert journal.entries("weight")["a"].new == new
    journal.path.unlink()
    assert journal.entries("weight") == {}


def test_what_was_read_is_not_read_again(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.record("weight", "a", 1, 2)
    old = journal.path.stat()
    os.utime(journal.path, ns=(old.st_atime_ns, old.st_mtime_ns - 10**9))
    assert journal.entries("weight")["a"].new == 2
    monkeypatch.setattr("kvmctl.host.journal.read_text", None)
    assert Journal(journal.path).entries("weight")["a"].new == 2


def test_writers_at_the_same_time_lose_nothing(journal: Journal) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: Journal(journal.path).begin("volume", str(number), None), range(40)))
    assert {intent.key for intent in journal.unfinished()} == {str(number) for number in range(40)}


def test_kinds_do_not_meet(journal: Journal) -> None:
    journal.record("ksm", "run", 0, 1)
    journal.record("pci", "run", "a", "b")
    journal.forget("pci", "run")
    assert set(journal.entries("ksm")) == {"run"}


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), values, values), max_size=8))
def test_any_history_reads_back(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any, Any]]) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.json")
    expected: dict[str, tuple[Any, Any]] = {}
    for key, old, new in steps:
        journal.record("kind", key, old, new)
        expected[key] = (expected[key][0] if key in expected else old, new)
    assert {key: (entry.old, entry.new) for key, entry in journal.entries("kind").items()} == expected


def test_what_was_begun_and_not_finished_is_listed_oldest_first(journal: Journal) -> None:
    journal.begin("volume", "default/a.qcow2", {"path": "/a"})
    journal.begin("volume", "default/b.qcow2", {"path": "/b"})
    journal.begin("seed", "default/c.iso", None)
    journal.done("volume", "default/a.qcow2")
    later = Journal(journal.path)
    assert [(i.kind, i.key, i.data) for i in later.unfinished()] == [
        ("volume", "default/b.qcow2", {"path": "/b"}),
        ("seed", "default/c.iso", None),
    ]
    assert [intent.key for intent in later.unfinished("seed")] == ["default/c.iso"]


def test_forgetting_or_finishing_what_is_not_there_is_no_error(journal: Journal) -> None:
    journal.forget("ksm", "run")
    journal.done("volume", "x")
    assert journal.unfinished() == ()


def test_the_files_are_private(journal: Journal) -> None:
    journal.record("ksm", "run", 0, 1)
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert journal.path.parent.stat().st_mode & 0o777 == 0o700


def test_entries_of_an_earlier_boot_do_not_count_but_intents_do(journal: Journal) -> None:
    journal.record("ksm", "run", 0, 1)
    journal.begin("volume", "default/a", None)
    document = json.loads(journal.path.read_text())
    document["changes"]["ksm"]["run"]["boot"] = "00000000-0000-0000-0000-000000000000"
    journal.path.write_text(json.dumps(document))
    assert journal.entries("ksm") == {}
    assert len(journal.unfinished()) == 1
    journal.record("ksm", "run", 2, 1)
    assert journal.entries("ksm")["run"].old == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"version": 1, "chan',
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 1, "changes": [], "intents": {}}',
        '{"version": 1, "changes": {"ksm": {"run": 5}}, "intents": {}}',
        '{"version": 1, "changes": {}, "intents": {"volume": {"a": {}}}}',
        "[" * 100_000,
        "\x00\xff",
    ],
)
def test_an_unusable_journal_is_moved_aside_with_a_warning(journal: Journal, content: str) -> None:
    journal.path.parent.mkdir()
    journal.path.write_text(content)
    assert journal.entries("ksm") == {}
    assert len(host_journal.moved_aside) == 1
    aside = [path for path in journal.path.parent.iterdir() if ".unusable-" in path.name]
    assert [path.read_text() for path in aside] == [content]
    journal.record("ksm", "run", 0, 1)
    assert set(Journal(journal.path).entries("ksm")) == {"run"}


def test_a_newer_journal_is_moved_aside_and_says_its_version(journal: Journal) -> None:
    journal.path.parent.mkdir()
    journal.path.write_text(json.dumps({"version": VERSION + 1, "changes": {}, "intents": {}}))
    journal.begin("volume", "a", None)
    assert f"its version is {VERSION + 1}" in host_journal.moved_aside[0]
    assert len(journal.unfinished()) == 1


@settings(deadline=None, max_examples=40)
@given(document=st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_no_content_makes_it_crash(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.json"
    path.write_text(json.dumps({"version": VERSION, "changes": document, "intents": document}))
    journal = Journal(path)
    assert isinstance(journal.entries("ksm"), dict)
    assert isinstance(journal.unfinished(), tuple)


_FULL_DISK = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from kvmctl.host.journal import Journal
from kvmctl.model.errors import KvmctlError
journal = Journal(Path(sys.argv[1], "journal.json"))
journal.record("ksm", "run", 0, 1)
try:
    Path(sys.argv[1], "filler").write_bytes(bytes(1 << 20))
except OSError:
    pass
try:
    journal.record("ksm", "pages_to_scan", 100, 500)
except KvmctlError as error:
    print(error.message, "|", error.hint, "|", set(journal.entries("ksm")))
"""


def test_a_full_disk_stops_before_the_change(tmp_path: Path) -> None:
    mounted = f'mount -t tmpfs -o size=16k none {tmp_path} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mounted, "sh", sys.executable, "-c", _FULL_DISK, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "No space left on device: the change of pages_to_scan is not recorded, so it was not made" in said
    assert f"df -h {tmp_path}" in said
    assert said.endswith("| {'run'}\n")


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KvmctlError, match="cannot make the folder"):
        Journal(tmp_path / "file" / "journal.json").begin("volume", "a", None)
