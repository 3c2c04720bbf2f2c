"""What export, import and inspect say to words that they cannot follow; no guest is needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archives import Archive, definition
from tests.conftest import Kvmctl
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
    ],
)
def test_words_that_cannot_be_followed(kvmctl: Kvmctl, words: tuple[str, ...], code: int) -> None:
    ran = kvmctl(*TEST, *words, code=code)
    assert ran.err.startswith("error: ")
    assert ran.out == ""


def test_an_archive_is_nothing_for_a_terminal(screen: Screen) -> None:
    screen.start(*TEST, "export", "test", "-o", "-")
    assert screen.wait() == 2
    screen.start("inspect", "-")
    assert screen.wait() == 2
    assert "terminal" in screen.text
