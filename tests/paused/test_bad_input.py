"""What QEMU could not use is refused before anything is made, with the user and the folder that are in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.host import access
from kvmctl.hypervisor.capabilities import capabilities, qemu_user
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl

pytestmark = pytest.mark.paused
Refused = Callable[..., str]


@pytest.fixture
def refused(kvmctl: Kvmctl, make_name: Callable[..., str], tmp_path: Path) -> Iterator[Refused]:
    """Applies a new guest that cannot be had; the error, told once and with a next step."""
    made: list[str] = []

    def apply(keys: str, code: int) -> str:
        made.append(make_name("bad"))
        file = tmp_path / "guests.yaml"
        file.write_text(f"guests: [{{name: {made[-1]}, state: paused, accelerator: tcg, {keys}}}]")
        ran = kvmctl("apply", "-f", file, code=code)
        lines = ran.err.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1, ran.err
        assert lines[-1].startswith("  "), ran.err
        assert made[-1] in ran.err
        return ran.err

    yield apply
    for name in made:
        kvmctl("show", name, code=3)


@pytest.fixture
def closed(hypervisor: Hypervisor, pool: tuple[str, Path]) -> Iterator[Path]:
    """A file in a folder that only root may enter."""
    user = qemu_user(capabilities(hypervisor))
    assert user is not None
    assert user[0] != 0, "QEMU runs as root here, so nothing is closed to it"
    folder = pool[1].with_name(pool[1].name + "-closed")
    folder.mkdir(mode=0o700)
    file = folder / "image"
    file.write_bytes(bytes(1 << 20))
    yield file
    file.unlink()
    folder.rmdir()


@pytest.mark.parametrize("keys", ["boot: {kernel: FILE}", "boot: {iso: FILE}", "disks: [{path: FILE}]"])
def test_a_file_that_qemu_cannot_reach(hypervisor: Hypervisor, refused: Refused, closed: Path, keys: str) -> None:
    user = qemu_user(capabilities(hypervisor))
    assert user is not None
    said = refused(keys.replace("FILE", str(closed)), 5)
    assert f"QEMU runs as {access.user_name(user[0])}" in said
    assert f"may not enter {closed.parent}:" in said
    assert str(closed) in said


@pytest.mark.parametrize(
    "keys",
    ["boot: {kernel: FILE}", "boot: {kernel: /dev/null, initrd: FILE}", "boot: {iso: FILE}", "disks: [{path: FILE}]"],
)
def test_a_file_that_is_missing_or_a_folder(refused: Refused, tmp_path: Path, keys: str) -> None:
    assert "/does/not/exist" in refused(keys.replace("FILE", "/does/not/exist"), 3)
    assert f"{tmp_path} is a folder" in refused(keys.replace("FILE", str(tmp_path)), 2)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ("nics: [{network: none-such}]", 3),
        ("nics: [{bridge: none-such}]", 3),
        ("disks: [{volume: a.qcow2, pool: default}]", 2),
        ("disks: [{volume: a.qcow2, pool: default, base: none-such.qcow2}]", 3),
        ("cpu: {count: 4096}", 2),
        ("cpu: {count: 200, reservation: 200}", 5),
        ("memory: {size: 100TiB, reservation: 100TiB}", 5),
        ("cpu: {model: none-such}", 2),
        ("boot: {machine: none-such}", 2),
    ],
)
def test_what_this_host_does_not_have(refused: Refused, keys: str, code: int) -> None:
    refused(keys, code)


def test_a_start_that_fails_is_told_once(kvmctl: Kvmctl, make_name: Callable[..., str], tmp_path: Path) -> None:
    name = make_name("bad")
    file = tmp_path / "guests.yaml"
    file.write_text(
        f"guests: [{{name: {name}, accelerator: tcg, vnc: {{listen: 192.0.2.1}}}}]"
    )  # no host has this address
    ran = kvmctl("apply", "-f", file, code=1)
    assert (ran.out + ran.err).count("Failed to bind socket") == 1
    assert f"/{name}.log" in ran.err
    (outcome,) = [row for row in kvmctl("apply", "-f", file, "-o", "json", code=1).json() if row["field"] == "state"]
    assert outcome["result"] == "not applied"
    assert "Failed to bind socket" in outcome["reason"]
