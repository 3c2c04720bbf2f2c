"""What is wrong with a command line of snapshot, clone and backup is said before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

URI = "test:///default"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["snapshot"], 2, ""),
        (["snapshot", "create"], 2, "missing argument 'guest'"),
        (["snapshot", "create", "nobody"], 3, "there is no guest 'nobody'"),
        (["snapshot", "create", "test", "a/b"], 2, "is not usable"),
        (["snapshot", "create", "test", "--memory", "--disk-only"], 2, "exclude each other"),
        (["snapshot", "create", "test", "s", "--description", "\x1b[2J"], 2, "cannot be printed"),
        (["snapshot", "list", "tes*"], 3, "there is no guest 'tes*'"),
        (["snapshot", "revert", "test", "none"], 3, "no snapshot 'none'"),
        (["snapshot", "delete", "test", "none", "--yes"], 3, "no snapshot 'none'"),
        (["clone", "test"], 2, "missing argument 'new'"),
        (["clone", "test", "../x"], 2, "is not usable"),
        (["clone", "test", "x", "--snapshot", "s"], 2, "needs --linked"),
        (["clone", "test", "x"], 5, "another machine"),
        (["backup", "test"], 2, "missing argument 'dir'"),
        (["backup", "test", "/nowhere/at/all"], 5, "another machine"),
        (["backup", "test", "/tmp", "--list", "--incremental"], 2, "give one of them"),
        (["backup", "test", "/nowhere/at/all", "--list"], 3, "no backup of guest test"),
        (["backup", "..", "/tmp", "--list"], 5, "is not usable"),
        (["backup", "test", "x" * 300, "--list"], 1, "file name too long"),
        (["backup", "test", ""], 2, "a path cannot be empty"),
    ],
)
def test_wrong_input(kvmctl: Kvmctl, args: list[str], code: int, said: str) -> None:
    ran = kvmctl("-c", URI, *args, code=code)
    assert said in ran.err.lower()
    assert ran.out == ""


def test_manifests_that_are_none_are_named(kvmctl: Kvmctl, tmp_path: Path) -> None:
    for index, content in enumerate((b"", b"\xff\xfe", b"{}")):
        folder = tmp_path / "test" / f"2026112{index}-000000-full"
        folder.mkdir(parents=True)
        (folder / "backup.json").write_bytes(content)
    ran = kvmctl("-c", URI, "backup", "test", tmp_path, "--list", "-o", "json")
    assert ran.json() == []
    assert ran.err.count("backup.json: the manifest is not usable") == 3
