"""The nested host, before it is booted."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import tempfile
from pathlib import Path

import pytest

from kvmctl.bootstrap.nested import debian, host, image
from kvmctl.bootstrap.nested.host import Emulator, command
from kvmctl.bootstrap.nested.image import Image
from kvmctl.model.errors import KvmctlError

pytestmark = pytest.mark.unit


def words(folder: Path, remapping: bool = True) -> str:
    return " ".join(command(Image(folder), Emulator("qemu", None, "10.0.2"), folder, 2222, remapping))


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


@pytest.mark.parametrize("version", ["7.2.22", "10.0.2"])
def test_the_emulators_version_is_found(tmp_path: Path, version: str) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho QEMU emulator version {version} '(Debian 1:{version})'\n")
    program.chmod(0o755)
    assert host._emulator(str(program), None).version == version


@pytest.mark.parametrize(
    ("line", "ill"),
    [
        ("[  328.5] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", True),
        ("[   40.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [qemu:12]", True),
        ("[    9.0] Kernel panic - not syncing: Fatal exception", True),
        ("[   87.4] kvm [464]: vcpu0, guest rIP: 0xffffffffa4e7e744 Unhandled WRMSR(0xc0010007) = 0xffff", False),
    ],
)
def test_what_the_kernel_says_tells_an_ill_host(tmp_path: Path, line: str, ill: bool) -> None:
    found = object.__new__(host.Host)
    found.folder = tmp_path
    assert found.illness() == ""
    (tmp_path / "console.log").write_text(f"nested login: \r\n{line}\r\nmore\n")
    assert found.illness() == (line if ill else "")


def test_the_folder_of_a_host_whose_maker_was_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {f"kvmctl-nested-{os.getpid()}-a", "kvmctl-nested-4194399-b", "kvmctl-nested-other", "else"}
    for name in names:
        (tmp_path / name).mkdir()
    host.remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == names - {"kvmctl-nested-4194399-b"}


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


def repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Debian's backports as this machine's mirror has them, until the test puts something there: nothing."""
    monkeypatch.setattr(debian, "sources", lambda: (debian.Source(f"file:{folder}", debian.release(), "main"),))
    return folder / f"dists/{debian.release()}-backports"


def test_a_mirror_without_backports_has_no_newer_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path / "mirror", monkeypatch)
    assert debian.fetch_backported_qemu(tmp_path) == ""


def test_backports_that_debian_has_not_signed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = repository(tmp_path / "mirror", monkeypatch)
    (place / "main/binary-amd64").mkdir(parents=True)
    (place / "main/binary-amd64/Packages").write_text("")
    digest = hashlib.sha256(b"").hexdigest()
    (place / "Release").write_text(
        f"Suite: backports\nArchitectures: amd64\nSHA256:\n {digest} 0 main/binary-amd64/Packages\n"
    )
    with pytest.raises(KvmctlError, match="is not signed"):
        debian.fetch_backported_qemu(tmp_path)


def test_a_mirror_that_does_not_answer_is_not_taken_for_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = debian.Source("http://127.0.0.1:1/debian", debian.release(), "main")
    monkeypatch.setattr(debian, "sources", lambda: (source,))
    with pytest.raises(KvmctlError, match=r"the backports of http://127.0.0.1:1/debian could not be read"):
        debian.fetch_backported_qemu(tmp_path)


def test_an_image_that_cannot_be_built_for_lack_of_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_words: object) -> None:
        raise KvmctlError("E: Failed to fetch http://mirror/x  Could not resolve 'mirror'")

    monkeypatch.setattr(image, "_build", build)
    with pytest.raises(KvmctlError, match="there is no network to the package sources") as caught:
        image._try_to_build(Image(tmp_path), {})
    assert debian.sources()[0].uri in (caught.value.hint or "")


def test_the_host_ends_with_whoever_booted_it(tmp_path: Path) -> None:
    assert words(tmp_path).startswith("setpriv --pdeathsig KILL qemu ")


def test_an_image_in_use_or_used_today_is_not_removed_for_another(tmp_path: Path) -> None:
    made = Image(tmp_path)
    assert not image._is_used(made)
    made.stamp.write_text("{}")
    assert image._is_used(made)
    os.utime(made.stamp, (0, 0))
    assert not image._is_used(made)
    with image.using(made):
        os.utime(made.stamp, (0, 0))
        assert image._is_used(made)
    assert not image._is_used(made)
