"""What a libvirtd that did not know swtpm's user yet has left to root."""

import os
from pathlib import Path

import pytest

from kvmctl.bootstrap import certificates

pytestmark = pytest.mark.unit

OTHER, THIRD = 12345, 23456


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_made_goes_to_the_owner_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lock").touch(mode=0o700)
    (tmp_path / "key").touch()
    (tmp_path / "link").symlink_to(tmp_path / "lock")
    os.chown(tmp_path, OTHER, -1)
    os.chown(tmp_path / "key", THIRD, -1)
    certificates.ensure(tmp_path)
    assert (tmp_path / "lock").stat().st_uid == OTHER
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "key").stat().st_uid == THIRD
    assert (tmp_path / "link").lstat().st_uid == 0
    assert "gave lock in" in "".join(capsys.readouterr())
    certificates.ensure(tmp_path)
    assert "gave" not in "".join(capsys.readouterr())


def test_nothing_is_touched_where_the_folder_is_roots_or_missing(tmp_path: Path) -> None:
    certificates.ensure(tmp_path / "missing")
    (tmp_path / "key").touch()
    before = (tmp_path / "key").stat().st_uid
    certificates.ensure(tmp_path)
    assert (tmp_path / "key").stat().st_uid == before
