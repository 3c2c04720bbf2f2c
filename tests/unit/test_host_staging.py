from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from kvmctl.host import staging
from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError

pytestmark = pytest.mark.unit


def test_a_folder_is_gone_after_the_block(tmp_path: Path) -> None:
    with staging.staging(tmp_path, "import") as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").mkdir()
        (folder / "x/y").write_text("z")
    assert list(tmp_path.iterdir()) == []
    with suppress(KeyboardInterrupt), staging.staging(tmp_path, "import", 0o711) as folder:
        assert folder.stat().st_mode & 0o777 == 0o711
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_live_one_has_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from kvmctl.host.staging import staging\n"
        "with staging(Path(sys.argv[1]), 'import') as folder:\n"
        "    (folder / 'x').write_text('y'); print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert (left / "x").exists()
    with staging.staging(tmp_path, "export") as other:
        assert left.exists()
        with staging.staging(tmp_path, "import") as one, staging.staging(tmp_path, "import") as two:
            assert not left.exists()
            assert {path.name for path in tmp_path.iterdir()} == {other.name, one.name, two.name}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(KvmctlError, match="cannot make"), staging.staging(tmp_path / "none", "import"):
        pass


def test_a_name_is_given_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    staging.name(one, tmp_path / "final")
    assert not one.exists()
    other.write_text("2")
    with pytest.raises(ConflictError):
        staging.name(other, tmp_path / "final")
    assert (tmp_path / "final").read_text() == "1"
    assert other.exists()
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(ConflictError):
        staging.name(other, tmp_path / "link")


@pytest.mark.parametrize("flag", [0, errno.EINVAL], ids=["renameat2", "plain rename"])
def test_a_name_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int) -> None:
    def link(*_paths: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    if flag:
        monkeypatch.setattr(staging, "_rename_new", lambda *_paths: flag)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    inode = one.stat().st_ino
    staging.name(one, tmp_path / "final")
    assert (tmp_path / "final").stat().st_ino == inode
    assert not one.exists()
    other.write_text("2")
    with pytest.raises(ConflictError):
        staging.name(other, tmp_path / "final")
    assert (tmp_path / "final").read_text() == "1"
    with pytest.raises(KvmctlError, match="No such file"):
        staging.name(other, tmp_path / "none/final")
    monkeypatch.setattr(Path, "rename", link)
    with pytest.raises(KvmctlError, match="not permitted") if flag else nullcontext():
        staging.name(other, tmp_path / "second")
    assert (tmp_path / "second").exists() == (not flag)
    assert other.exists() == bool(flag)


def test_room(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    staging.check_room(tmp_path, 0)
    with pytest.raises(RefusedError, match="are free"):
        staging.check_room(tmp_path, found.f_bavail * found.f_frsize)
