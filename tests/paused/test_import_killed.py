"""Imports that are killed with -9, or lose libvirt, at any point: the next one puts that right, or says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control import importing, nvram
from kvmctl.control.meter import Silent
from kvmctl.control.place import Wishes
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import UnreachableError
from tests import archives
from tests.conftest import Kvmctl, environment
from tests.support import Guest

pytestmark = pytest.mark.paused

Names = Callable[..., str]
Pool = tuple[str, Path]
Killed = Callable[..., None]
URI = "qemu:///system"


@pytest.fixture
def guest(hypervisor: Hypervisor, make_name: Names, pool: Pool) -> Guest:
    """A paused guest with UEFI and one disk."""
    name, image = make_name("cut"), pool[1] / "first.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    text = archives.definition(name, inside="<features><acpi/></features>", devices="<memballoon model='virtio'/>")
    text = text.replace("/elsewhere/a.qcow2", str(image)).replace("<os>", "<os firmware='efi'>")
    domains.define(hypervisor, name, text.replace(f"<uuid>{archives.UUID}</uuid>", ""))
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    made = Guest(hypervisor, name)
    domains.start(made.domain, paused=True)
    return made


@pytest.fixture
def killed(state: Path, tmp_path: Path) -> Killed:
    """Run kvmctl; it is killed instead of calling a function of a module."""

    def run(at: str, *words: object) -> None:
        module, function = at.split(":")
        code = (
            f"import os, sys; import {module} as module\n"
            f"module.{function} = lambda *_: os.kill(os.getpid(), 9)\n"
            "from kvmctl.__main__ import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "-c", URI, *map(str, words)],
            env=environment(state, tmp_path / "run"),
            capture_output=True,
            check=False,
        )
        assert done.returncode == -9, done.stderr

    return run


def intents(state: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((state / "journal.json").read_text())["intents"]
    return found


def test_one_that_is_killed_before_the_guest_is_defined(
    kvmctl: Kvmctl, guest: Guest, pool: Pool, state: Path, tmp_path: Path, killed: Killed
) -> None:
    variables = nvram.FOLDER / f"{guest.name}_VARS.fd"
    before = variables.read_bytes()
    kvmctl("-c", URI, "export", guest.name, "-o", tmp_path / "a")
    guest.remove()
    killed("kvmctl.hypervisor.domains:define", "import", tmp_path / "a")
    assert variables.exists()
    assert (pool[1] / "first.qcow2").exists()
    kvmctl("-c", URI, "import", tmp_path / "a")
    assert variables.read_bytes() == before
    assert intents(state) == {}
    assert list(nvram.FOLDER.glob(".kvmctl-*")) == []


@pytest.mark.parametrize(
    ("at", "export", "words", "said"),
    [
        ("kvmctl.hypervisor.saved:restore", ["--with-memory"], [], "kvmctl delete {} and import it again"),
        ("kvmctl.control.importing:begin", [], ["--start"], "kvmctl start {}"),
        ("kvmctl.control.importing:begin", [], ["--name", "{}-2", "--start"], "kvmctl start {}-2"),
    ],
    ids=["memory", "start", "another"],
)
def test_one_that_is_killed_before_the_guest_is_started(
    kvmctl: Kvmctl,
    hypervisor: Hypervisor,
    guest: Guest,
    pool: Pool,
    state: Path,
    tmp_path: Path,
    killed: Killed,
    at: str,
    export: list[str],
    words: list[str],
    said: str,
) -> None:
    kvmctl("-c", URI, "export", guest.name, "-o", tmp_path / "a", *export)
    guest.remove()
    words, name = [word.format(guest.name) for word in words], said.split()[2].format(guest.name)
    try:
        killed(at, "import", tmp_path / "a", *words)
        assert domains.state(domains.find(hypervisor, name)) == "stopped"
        assert "the next kvmctl import" in kvmctl("-c", URI, "host", "doctor", code=None).out
        again = kvmctl("-c", URI, "import", tmp_path / "a", *words, code=4)
        assert "was cut off" in again.err
        assert said.format(guest.name) in again.err
        assert "cut off" not in kvmctl("-c", URI, "import", tmp_path / "a", *words, code=4).err
        assert domains.state(domains.find(hypervisor, name)) == "stopped"
        assert intents(state) == {}
        Guest(hypervisor, name).remove()
        row = kvmctl("-c", URI, "-o", "json", "import", tmp_path / "a", *words).json()[0]
        assert row["state"] == ("paused" if export else "running")
        assert [path for folder in (pool[1], nvram.FOLDER) for path in folder.glob(".kvmctl-*")] == []
    finally:
        Guest(hypervisor, name).remove()


def test_one_that_loses_libvirt_leaves_the_files_of_a_guest_that_may_be_defined(
    kvmctl: Kvmctl,
    hypervisor: Hypervisor,
    guest: Guest,
    pool: Pool,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_arguments: object) -> bool:
        raise UnreachableError("libvirt is gone")

    def begin(_domain: object) -> None:
        monkeypatch.setattr(domains, "has_uuid", lost)
        lost()

    for key, value in environment(state, tmp_path / "run").items():
        monkeypatch.setenv(key, value)
    kvmctl("-c", URI, "export", guest.name, "-o", tmp_path / "a")
    guest.remove()
    warnings: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(importing, "begin", begin)
        tell = importing.Tell(warnings.append, warnings.append)
        with pytest.raises(UnreachableError):
            importing.take_in(hypervisor, tmp_path / "a", Wishes(start=True), Silent(), tell)
    monkeypatch.undo()
    uuid, files = guest.domain.UUIDString(), [pool[1] / "first.qcow2", nvram.FOLDER / f"{guest.name}_VARS.fd"]
    assert [text for text in warnings if "its files stay" in text]
    assert all(path.exists() for path in files)
    assert intents(state).keys() == {"import"}
    assert intents(state)["import"].keys() == {uuid}
    kvmctl("-c", URI, "import", tmp_path / "a", code=4)
    assert all(path.exists() for path in files)
    assert intents(state) == {}
