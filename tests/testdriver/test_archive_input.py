"""What export, import and inspect say to words that they cannot follow; no guest is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.archives import Archive, definition
from tests.conftest import Kvmctl, environment
from tests.support import Screen

pytestmark = pytest.mark.testdriver

TEST = ("-c", "test:///default")


def test_o_is_a_file_and_output_a_format(kvmctl: Kvmctl, tmp_path: Path) -> None:
    shown = kvmctl("export", "--help").out
    assert "--file FILE" in shown
    assert "(-c, --output, -q" in " ".join(shown.split())
    archive = Archive("web1", b"QFI\xfb").write(tmp_path / "a")
    assert kvmctl("inspect", archive, "-o", "name").out == "web1\n"
    assert kvmctl("-o", "json", "inspect", archive).json()["guest"] == "web1"
    assert kvmctl("inspect", "-", "-o", "yaml", stdin=archive.read_bytes()).out.startswith("format: kvmctl-guest\n")


def test_what_would_reach_into_a_host_is_shown(kvmctl: Kvmctl, tmp_path: Path) -> None:
    text = definition("web1", devices="<hostdev mode='subsystem' type='pci'/>")
    found = kvmctl("inspect", Archive("web1", b"x", text).write(tmp_path / "a")).out
    assert "foreign:      device <hostdev> of type pci" in found
    assert "verified:     no" in found


def test_a_damaged_file_is_seen_by_verify_alone(kvmctl: Kvmctl, tmp_path: Path) -> None:
    archive = Archive("web1", b"QFI\xfb").write(tmp_path / "a", sums=b"")
    kvmctl("inspect", archive)
    assert "sum" in kvmctl("inspect", "--verify", archive, code=2).err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("import", "none"), 5),  # another machine's, which nothing can be written to
        (("export", "test"), 5),
        (("export", "test", "--format", "tar"), 2),
        (("export", "test", "--format", "ova", "--with-memory"), 2),
        (("export",), 2),
        (("import", "a", "--network", "x"), 2),
        (("import", "a", "--pool", "=x"), 2),
        (("inspect", "none"), 3),
        (("inspect", "/"), 2),
        (("inspect", "/etc/passwd"), 2),
        (("inspect", ""), 2),
        (("import", ""), 2),
        (("inspect", "/proc/self/mem"), 1),  # which cannot be read at its beginning
    ],
)
def test_words_that_cannot_be_followed(kvmctl: Kvmctl, words: tuple[str, ...], code: int) -> None:
    ran = kvmctl(*TEST, *words, code=code)
    assert ran.err.startswith("error: ")
    assert "internal" not in ran.err
    assert "cannot write: " not in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"no archive", "not compressed with zstd"),
        (tarfile.TarInfo("manifest.json").tobuf(), "does not begin with an OVF"),
    ],
)
def test_a_file_that_is_none_is_said(kvmctl: Kvmctl, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "web1.tar.zst"
    file.write_bytes(content)
    assert said in kvmctl("inspect", file, code=2).err


_AS_NOBODY = """
import os, pwd, sys
import kvmctl.cli.inspect, kvmctl.control.archive, kvmctl.control.from_backup, kvmctl.control.ova
from kvmctl.cli.main import run
os.chdir("/")
user = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
run(sys.argv[1:])
"""
"""Python itself may be where nobody may read it, so it is loaded before."""


@pytest.mark.parametrize("name", ["file", "folder", "folder/inner"])
def test_what_may_not_be_read_is_said(state: Path, tmp_path: Path, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    tmp_path.chmod(0o700 if "/" in name else 0o755)
    path = tmp_path / name
    (path.parent if "/" in name else path).mkdir() if "folder" in name else path.write_bytes(b"")
    (path.parent if "/" in name else path).chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "inspect", str(path)],
        env=environment(state, tmp_path / "run"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.lower().startswith(f"error: cannot read {path}: permission denied\n".lower())


def test_an_archive_is_nothing_for_a_terminal(screen: Screen) -> None:
    screen.start(*TEST, "export", "test", "-o", "-")
    assert screen.wait() == 2
    screen.start("inspect", "-")
    assert screen.wait() == 2
    assert "terminal" in screen.text
