from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kvmctl.host import image, staging
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


def test_room(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    staging.check_room(tmp_path, 0)
    with pytest.raises(RefusedError, match="are free"):
        staging.check_room(tmp_path, found.f_bavail * found.f_frsize)


# Images


def test_an_image_whose_name_is_an_address_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nbd:localhost:1"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", f"file:{path}", "1M"], check=True)
    told: list[int] = []
    image.convert(path, "raw", tmp_path / "a:b.qcow2", "qcow2", 1000, told.append)
    assert sum(told) == 1000
    assert image.info(tmp_path / "a:b.qcow2", "qcow2")["virtual-size"] == 1 << 20
    assert image.required(tmp_path / "a:b.qcow2", "qcow2") < 1 << 20


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    for ask in (image.info, image.required):
        with pytest.raises(KvmctlError, match="cannot read") as caught:
            ask(tmp_path / "a", "qcow2")
        assert "qemu-img check" in caught.value.hint
    with pytest.raises(KvmctlError, match="cannot convert"):
        image.convert(tmp_path / "a", "qcow2", tmp_path / "b", "qcow2", 1)


def test_an_image_that_is_in_use_is_a_conflict(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdin
    assert user.stdout
    user.stdin.write(b"length\n")
    user.stdin.flush()
    user.stdout.readline()
    try:
        with pytest.raises(ConflictError, match="another program"):
            image.convert(path, "qcow2", tmp_path / "b", "qcow2", 1)
    finally:
        user.communicate()
