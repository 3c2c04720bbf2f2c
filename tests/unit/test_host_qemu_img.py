"""Images made, merged and copied by the real tool; no guest and no libvirt."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvmctl.host import qemu_img
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError
from tests import disks
from tests.conftest import cannot
from tests.support import until

pytestmark = pytest.mark.unit

if shutil.which("qemu-img") is None:
    cannot("qemu-img is not installed")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"], check=True)
    disks.write(path, 1)
    return path


def over(path: Path, name: str) -> Path:
    new = path.with_name(name)
    qemu_img.create_overlay(str(new), str(path), disks.form(path))
    return new


def test_a_chain_is_read_from_the_top(base: Path) -> None:
    top = over(over(base, "mid.qcow2"), "top.qcow2")
    chain = qemu_img.chain(str(top), "qcow2")
    assert [Path(one.path).name for one in chain] == ["top.qcow2", "mid.qcow2", "base.qcow2"]
    assert [(one.format, one.size, one.backing_format) for one in chain] == [
        ("qcow2", 4 << 20, "qcow2"),
        ("qcow2", 4 << 20, "qcow2"),
        ("qcow2", 4 << 20, None),
    ]


def test_backing_files_that_are_relative_or_go_round(base: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    top = tmp_path / "sub/top.qcow2"
    qemu_img.create_overlay(str(top), str(base), "qcow2", relative=True)
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    try:
        chain = qemu_img.chain(str(moved / "sub/top.qcow2"), "qcow2")
        assert [Path(one.path).resolve() for one in chain] == [moved / "sub/top.qcow2", moved / "base.qcow2"]
    finally:
        moved.rename(tmp_path)
    subprocess.run(["qemu-img", "rebase", "-u", "-b", top, "-F", "qcow2", base], check=True)
    with pytest.raises(KvmctlError):
        qemu_img.chain(str(top), "qcow2")


def test_an_overlay_is_untouched_until_it_is_written_to(base: Path) -> None:
    top = over(base, "top.qcow2")
    assert qemu_img.is_untouched(str(top))
    disks.write(top, 0)  # zeros count: the base has something else there
    assert not qemu_img.is_untouched(str(top))


def test_a_merge_can_be_done_again(base: Path) -> None:
    mid = over(base, "mid.qcow2")
    disks.write(mid, 2)
    top = over(mid, "top.qcow2")
    disks.write(top, 3, at=1)
    for _again in range(2):
        qemu_img.commit(str(mid), "qcow2")
    assert disks.holds(base, 2)
    qemu_img.rebase_unchecked(str(top), str(base), "qcow2")
    mid.unlink()
    assert disks.holds(top, 2)
    assert disks.holds(top, 3, at=1)


def test_a_copy_is_whole_and_says_how_far_it_is(base: Path, tmp_path: Path) -> None:
    top = over(base, "top.qcow2")
    disks.write(top, 3, at=1)
    seen: list[float] = []
    for form in ("qcow2", "raw"):
        copy = tmp_path / f"copy.{form}"
        qemu_img.convert(str(top), "qcow2", str(copy), form, seen.append)
        assert qemu_img.chain(str(copy), disks.form(copy))[1:] == []
        assert disks.holds(copy, 1)
        assert disks.holds(copy, 3, at=1)
    assert seen[-1] == 1.0
    assert all(0.0 <= share <= 1.0 for share in seen)


def test_what_is_wrong_is_said_in_our_words(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        qemu_img.image(str(tmp_path / "none.qcow2"), "qcow2")
    with pytest.raises(ConflictError, match="exists already"):
        qemu_img.create_overlay(str(base), str(base), "qcow2")
    assert disks.holds(base, 1)
    (tmp_path / "broken.qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    with pytest.raises(KvmctlError):
        qemu_img.image(str(tmp_path / "broken.qcow2"), "qcow2")
    with subprocess.Popen(["qemu-io", base], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as holder:
        locked = until(lambda: _refused(base, tmp_path), bool, 20, "the lock")
        assert locked is not None
        assert "open" in locked.hint
        holder.communicate(b"quit\n")
    # A raw disk whose guest has written the header of another format is raw.
    (raw := tmp_path / "raw.img").write_bytes(over(base, "evil.qcow2").read_bytes())
    assert [one.format for one in qemu_img.chain(str(raw), "raw")] == ["raw"]
    # A file's name is no protocol, and no option.
    odd = tmp_path / "nbd:x,snapshot.id=1"
    shutil.copy(base, odd)
    assert qemu_img.image(str(odd), "qcow2").size == 4 << 20


def _refused(base: Path, tmp_path: Path) -> ConflictError | None:
    try:
        qemu_img.commit(str(over(base, f"o{os.urandom(4).hex()}.qcow2")), "qcow2")
    except ConflictError as error:
        return error
    return None


def test_the_tool_ends_with_its_caller(tmp_path: Path) -> None:
    program = tmp_path / "qemu-img"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    code = "from kvmctl.host import qemu_img; qemu_img.convert('a', 'raw', 'b', 'raw')"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment)
    children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
    (child,) = until(lambda: children.read_text().split(), bool, 20, "the tool")
    until(lambda: Path(f"/proc/{child}/comm").read_text(), lambda name: name == "sleep\n", 20, "its name")
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()

    def state() -> str:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "gone"

    until(state, lambda found: found in ("gone", "Z"), 20, "the tool")


def test_an_image_whose_name_is_an_address_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nbd:localhost:1"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", f"file:{path}", "1M"], check=True)
    qemu_img.convert(path, "raw", tmp_path / "a:b.qcow2", "qcow2", options="compat=0.10")
    made = qemu_img.image(str(tmp_path / "a:b.qcow2"), "qcow2")
    assert (made.size, made.compat) == (1 << 20, "0.10")
    assert qemu_img.required(tmp_path / "a:b.qcow2", "qcow2") < 1 << 20


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    for ask in (qemu_img.info, qemu_img.required):
        with pytest.raises(KvmctlError, match="failed") as caught:
            ask(tmp_path / "a", "qcow2")
        assert "qemu-img check" in caught.value.hint
    with pytest.raises(KvmctlError, match="convert"):
        qemu_img.convert(tmp_path / "a", "qcow2", tmp_path / "b", "qcow2")
