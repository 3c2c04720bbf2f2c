"""Files of a folder that somebody else filled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmctl.host import within
from kvmctl.model.errors import UsageError

pytestmark = pytest.mark.unit


def test_a_plain_file_in_plain_folders_is_read(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"x" * 100)
    (tmp_path / "way").symlink_to(tmp_path)
    assert within.content(tmp_path / "way", "a/b/c", 100) == b"x" * 100  # the way there is the user's own
    with pytest.raises(UsageError, match="more than the 99 bytes"):
        within.content(tmp_path, "a/b/c", 99)
    assert b"".join(within.pieces(tmp_path, "a/b/c", 7)) == b"x" * 7


@pytest.mark.parametrize("what", ["link", "folder link", "pipe", "folder", "device", "nothing"])
def test_what_leads_out_or_waits_is_refused(tmp_path: Path, what: str) -> None:
    home = tmp_path / "home"
    (home / "in").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    path, name = home / "in/file", "in/file"
    if what == "link":
        path.symlink_to(tmp_path / "secret")
    elif what == "folder link":
        (home / "out").symlink_to(tmp_path)
        name = "out/secret"
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(UsageError) as caught:
        within.content(home, name, 10)
    assert str(home) in caught.value.message
