"""The nested host, before it is booted."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from kvmctl.bootstrap.nested import debian, host, image
from kvmctl.bootstrap.nested.host import Emulator, command
from kvmctl.bootstrap.nested.image import Image

pytestmark = pytest.mark.unit


def words(folder: Path, remapping: bool = True) -> str:
    return " ".join(command(Image(folder), Emulator("qemu", None, "10.0.2", 2), folder, 2222, remapping))


def test_each_device_to_be_given_away_is_behind_a_port_of_its_own(tmp_path: Path) -> None:
    text = words(tmp_path)
    ports = re.findall(r"-device pcie-root-port,id=(\w+),chassis=(\d+)", text)
    assert len(set(ports)) == len(ports)
    buses = re.findall(r"bus=(\w+)", text)
    assert len(set(buses)) == len(buses) == 5
    assert set(buses) <= {name for name, _chassis in ports}


def test_the_disks_begin_with_their_marks_and_are_new_for_each_host(tmp_path: Path) -> None:
    path = tmp_path / f"{host.NVME}.raw"
    path.write_bytes(b"of another host")
    words(tmp_path)
    assert path.read_bytes()[:20] == host.MARKS[host.NVME].ljust(20, b"\0")


def test_interrupts_are_remapped_unless_that_is_to_fail(tmp_path: Path) -> None:
    assert "intremap=on" in words(tmp_path)
    assert "intremap=off" in words(tmp_path, remapping=False)


def test_only_the_loopback_lets_anybody_in(tmp_path: Path) -> None:
    forwards = re.findall(r"hostfwd=(\S+)", words(tmp_path))
    assert forwards == ["tcp:127.0.0.1:2222-:22"]


@pytest.mark.parametrize(("version", "processors"), [("7.2.22", 1), ("10.0.2", 2), ("11.1.0", 2)])
def test_an_old_emulator_gives_it_one_processor(tmp_path: Path, version: str, processors: int) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho QEMU emulator version {version} '(Debian 1:{version})'\n")
    program.chmod(0o755)
    found = host._emulator(str(program), None)
    assert (found.version, found.processors) == (version, processors)


def test_what_is_copied_into_it_is_kvmctl_and_nothing_else() -> None:
    with tarfile.open(fileobj=io.BytesIO(host.packed())) as archive:
        names = archive.getnames()
        owners = {(member.uid, member.uname) for member in archive}
    assert {"kvmctl/__main__.py", "templates/domain.xml.j2"} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"kvmctl", "templates"}
    assert not [name for name in names if "__pycache__" in name]
    assert owners == {(0, "root")}


def test_an_image_is_known_by_its_packages() -> None:
    assert image._digest({"systemd": "1"}) == image._digest({"systemd": "1"})
    assert image._digest({"systemd": "1"}) != image._digest({"systemd": "2"})


def test_an_image_without_its_last_file_is_not_complete(tmp_path: Path) -> None:
    made = Image(tmp_path)
    assert not made.complete
    (tmp_path / "versions.json").write_text("{}")
    assert made.complete


def test_the_mirrors_are_those_of_this_machine() -> None:
    found = debian.sources()
    assert debian.release() in [source.release for source in found]
    assert all(re.fullmatch(r"deb \S+:\S+ \S+ main", source.line) for source in found)


def test_an_image_in_use_is_not_removed_for_another(tmp_path: Path) -> None:
    made = Image(tmp_path)
    assert not image._is_used(made)
    made.stamp.write_text("{}")
    with image.using(made):
        assert image._is_used(made)
    assert not image._is_used(made)
