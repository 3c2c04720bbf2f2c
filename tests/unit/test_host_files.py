import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.host import files
from kvmctl.model.errors import KvmctlError

pytestmark = pytest.mark.unit


@settings(deadline=None, max_examples=40)
@given(content=st.binary(max_size=2000))
def test_what_is_written_atomically_is_read_back(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("files") / "state"
    files.write_atomic(path, content)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["state"]


def test_the_mode_is_tight_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        files.write_atomic(tmp_path / "private", "x")
        files.write_atomic(tmp_path / "public", "x", mode=0o644)
    finally:
        os.umask(old)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(KvmctlError, match="cannot write"):
        files.write_atomic(folder, "new")
    assert (folder / "inside").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KvmctlError, match="No space left") as caught:
        files.write_kernel(Path("/dev/full"), "1")
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_an_absent_file_is_none_and_an_unreadable_one_is_an_error(tmp_path: Path) -> None:
    assert files.read_text(tmp_path / "none") is None
    (tmp_path / "file").write_text("x")
    assert files.read_text(tmp_path / "file" / "below") is None
    with pytest.raises(KvmctlError, match="Is a directory"):
        files.read_text(tmp_path)


def test_a_process_that_ended_is_absent() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert files.read_text(Path(f"/proc/{child}/status")) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("12\n", 12), ("-1\n", -1), ("max\n", None), ("", None), ("9223372036854771712\n", 2**63 - 4096)],
)
def test_an_integer_file(tmp_path: Path, text: str, value: int | None) -> None:
    (tmp_path / "figure").write_text(text)
    assert files.read_int(tmp_path / "figure") == value


def test_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"QFI\xfb....")
    assert files.first_bytes(tmp_path / "image", 4) == b"QFI\xfb"
    assert files.first_bytes(str(tmp_path / "image"), 100) == b"QFI\xfb...."
    assert files.first_bytes(tmp_path / "none", 4) == b""
    os.mkfifo(tmp_path / "pipe")
    assert files.first_bytes(tmp_path / "pipe", 4) == b""


def test_the_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    assert files.state_directory() == tmp_path / "state"
    assert files.run_directory() == tmp_path / "run"


def test_a_file_is_told_from_the_next_one_of_its_name_and_inode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    before = files.birth(path)
    if before is None:
        pytest.skip("this file system keeps no time of birth")
    path.write_bytes(b"more")
    os.utime(path, (1, 1))
    os.link(path, tmp_path / "other")
    assert files.birth(path) == files.birth(tmp_path / "other") == before
    seen = {before}
    for _ in range(5):
        for one in tmp_path.iterdir():
            one.unlink()
        path.touch()
        seen.add(str(files.birth(path)))
    assert len(seen) == 6
    assert str(path.stat().st_ino) in str(files.birth(path))
    assert files.birth(tmp_path / "none") is None
    (tmp_path / "link").symlink_to(path)
    assert files.birth(tmp_path / "link") != files.birth(path)
