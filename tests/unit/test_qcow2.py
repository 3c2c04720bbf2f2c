"""Headers of images that somebody else made."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.host import qcow2
from kvmctl.model.errors import KvmctlError, RefusedError, UsageError

pytestmark = pytest.mark.unit


def made(folder: Path, *options: str, name: str = "a.qcow2", size: str = "3M") -> Path:
    path = folder / name
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True)
    return path


@pytest.mark.parametrize(
    "options",
    [(), ("-o", "compat=0.10"), ("-o", "cluster_size=512"), ("-o", "lazy_refcounts=on"), ("-o", "extended_l2=on")],
    ids=" ".join,
)
def test_what_qemu_makes_is_sound(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = made(tmp_path, *options)
    assert qcow2.check(path, 3 << 20) == 3 << 20
    with pytest.raises(UsageError):
        qcow2.check(path, 4 << 20)


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "-u", "-b", "/etc/passwd", "-F", "raw")
    with pytest.raises(RefusedError, match="backing"):
        qcow2.check(path)
    with pytest.raises(RefusedError, match="backing"):
        qcow2.check(made(tmp_path, "-u", "-b", "json:{}", "-F", "raw", "-o", "compat=0.10"))


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "-o", f"data_file={tmp_path}/data,data_file_raw=on")
    with pytest.raises(RefusedError, match="another file"):
        qcow2.check(path)
    # The name of it alone, without the feature that has it opened.
    data = bytearray(path.read_bytes())
    struct.pack_into(">Q", data, 72, 0)
    with pytest.raises(RefusedError, match="data file"):
        qcow2.check_header(bytes(data))


def test_an_encrypted_disk_is_refused(tmp_path: Path) -> None:
    for method in (1, 2):
        data = bytearray(made(tmp_path).read_bytes())
        struct.pack_into(">I", data, 32, method)
        with pytest.raises(RefusedError, match="encrypted"):
            qcow2.check_header(bytes(data))


def test_what_is_no_image(tmp_path: Path) -> None:
    for data in (
        b"",
        b"QFI\xfb",
        b"\x7fELF" + bytes(500),
        b"QFI\xfb" + bytes(500),
        b"QFI\xfb\0\0\0\x03" + b"\xff" * 500,
    ):
        with pytest.raises(KvmctlError):
            qcow2.check_header(data)
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="link"):
        qcow2.check(tmp_path / "link")


@given(data=st.data())
def test_any_header_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sound = made(tmp_path_factory.mktemp("header")).read_bytes()[:65536]
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    try:
        qcow2.check_header(bytes(changed))
    except KvmctlError:
        return
    # Whatever passed names no other file: QEMU's own words.
    path = tmp_path_factory.mktemp("passed") / "a.qcow2"
    path.write_bytes(changed + bytes(1 << 20))
    command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)]
    said = subprocess.run(command, capture_output=True, check=False).stdout
    if said:  # it opened it
        found = json.loads(said.decode(errors="replace"))
        assert "backing-filename" not in found
        assert "data-file" not in found["format-specific"]["data"]


def test_snapshots_of_its_own(tmp_path: Path) -> None:
    path = made(tmp_path)
    subprocess.run(["qemu-img", "snapshot", "-c", "one", path], check=True)
    with pytest.raises(RefusedError, match="snapshots"):
        qcow2.check(path)


def over(tmp_path: Path, backing: str, *form: str) -> Path:
    path = tmp_path / "over.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, *form, path, "1M"], check=True)
    return path


def test_the_one_backing_file_that_it_is_to_have(tmp_path: Path) -> None:
    path = over(tmp_path, "a.qcow2", "-F", "qcow2")
    assert qcow2.check(path, 1 << 20, "a.qcow2") == 1 << 20
    for other in ("b.qcow2", "a.qcow", "a.qcow22", ""):
        with pytest.raises(RefusedError):
            qcow2.check(path, 1 << 20, other)
    with pytest.raises(RefusedError):
        qcow2.check(path)


def test_a_backing_file_whose_format_is_another_or_guessed(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="backing format"):
        qcow2.check(over(tmp_path, "a.qcow2", "-F", "raw"), 1 << 20, "a.qcow2")
    path = over(tmp_path, "a.qcow2", "-F", "qcow2")
    data = path.read_bytes()
    at = data.index(bytes.fromhex("e2792aca"))
    path.write_bytes(data[:at] + bytes.fromhex("12345678") + data[at + 4 :])
    with pytest.raises(RefusedError, match="does not say the format"):
        qcow2.check(path, 1 << 20, "a.qcow2")
    with pytest.raises(RefusedError, match="or none"):
        qcow2.check(made(tmp_path, name="alone"), 3 << 20, "a.qcow2")
