"""The state of an emulated TPM goes with its guest."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from kvmctl.control import tpm
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests import archives
from tests.archives import Archive
from tests.conftest import Kvmctl, cannot
from tests.support import PREFIX, Guest

pytestmark = pytest.mark.paused

Names = Callable[..., str]
Pool = tuple[str, Path]
TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


def run(kvmctl: Kvmctl, *words: object, code: int = 0) -> Any:
    ran = kvmctl("-c", "qemu:///system", "--output", "json", *words, code=code)
    return ran.json()[0] if code == 0 else ran.err


@pytest.fixture
def sealed(hypervisor: Hypervisor, make_name: Names, pool: Pool) -> Guest:
    """A guest with a TPM, which has been started, so that the TPM has keys."""
    if shutil.which("swtpm") is None:
        cannot("swtpm is not installed")
    name, image = make_name("tpm"), pool[1] / "first.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    text = archives.definition(name, devices=TPM).replace("/elsewhere/a.qcow2", str(image))
    domains.define(hypervisor, name, text.replace(archives.UUID, str(uuid4())))
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    guest = Guest(hypervisor, name)
    domains.start(guest.domain, paused=True)
    return guest


def keys(guest: Guest) -> bytes:
    found = tpm.state(guest.domain)
    assert found
    return found


@pytest.mark.parametrize("running", [False, True], ids=["off", "running"])
def test_it_goes_into_a_file_and_comes_back(
    kvmctl: Kvmctl, sealed: Guest, tmp_path: Path, hypervisor: Hypervisor, running: bool
) -> None:
    if not running:
        domains.power_off(sealed.domain)
    before, uuid = keys(sealed), sealed.domain.UUIDString()
    run(kvmctl, "export", sealed.name, "-o", tmp_path / "a")
    sealed.remove()
    assert not (tpm.FOLDER / uuid).exists()
    run(kvmctl, "import", tmp_path / "a")
    assert keys(sealed) == before
    path = tpm.file(uuid, "2.0")
    assert (path.owner(), path.parent.owner()) == ("tss", "tss")
    assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0
    domains.start(sealed.domain, paused=True)  # swtpm reads it
    assert domains.state(sealed.domain) == "paused"
    # A copy has another UUID, and so a folder of its own.
    row = run(kvmctl, "import", tmp_path / "a", "--name", f"{sealed.name}-2")
    copy = Guest(hypervisor, row["name"])
    try:
        assert keys(copy) == before
        assert any("same keys" in text for text in row["notes"])
        domains.start(copy.domain, paused=True)
    finally:
        copy.remove()


def test_it_goes_with_the_memory_and_with_a_backup(kvmctl: Kvmctl, sealed: Guest, tmp_path: Path, pool: Pool) -> None:
    uuid = sealed.domain.UUIDString()
    run(kvmctl, "export", sealed.name, "-o", tmp_path / "a", "--with-memory")
    folder = pool[1] / "backups"
    folder.mkdir(mode=0o711)
    try:
        kvmctl("backup", sealed.name, folder)
        before = keys(sealed)
        sealed.remove()
        assert run(kvmctl, "import", tmp_path / "a")["state"] == "paused"
        assert keys(sealed)
        sealed.remove()
        run(kvmctl, "import", folder)
    finally:
        shutil.rmtree(folder)
    assert keys(sealed) == before
    assert tpm.file(uuid, "2.0").exists()


@pytest.fixture
def others(pool: Pool, make_name: Names, tmp_path: Path) -> Iterator[Archive]:
    """An archive with the state of a TPM, whose folder is not there."""
    name = make_name("tpm")
    made = Archive(name, archives.qcow2(tmp_path), archives.definition(name, devices=TPM), pool[0])
    made.manifest["parts"].append({"name": "tpm.state", "kind": "tpm", "size": 3})
    made.members.append(archives.Member("tpm.state", b"key"))
    shutil.rmtree(tpm.FOLDER / archives.UUID, ignore_errors=True)
    yield made
    shutil.rmtree(tpm.FOLDER / archives.UUID, ignore_errors=True)


def test_what_is_refused_leaves_no_state(
    kvmctl: Kvmctl, hypervisor: Hypervisor, others: Archive, tmp_path: Path, pool: Pool
) -> None:
    folder = tpm.FOLDER / archives.UUID
    # libvirt refuses the definition, after everything else has its name.
    wrong = archives.definition(others.name, devices=TPM + "<memballoon modle='virtio'/>")
    others.members[0].content = wrong.encode()
    others.manifest["parts"][0]["size"] = len(wrong)
    run(kvmctl, "import", others.write(tmp_path / "a"), code=2)
    assert not folder.exists()
    assert list(pool[1].iterdir()) == []


def test_the_state_of_another_is_not_replaced(
    kvmctl: Kvmctl, hypervisor: Hypervisor, others: Archive, tmp_path: Path
) -> None:
    folder = tpm.FOLDER / archives.UUID
    folder.mkdir(parents=True)
    assert str(folder) in run(kvmctl, "import", others.write(tmp_path / "a"), code=4)
    assert list(folder.iterdir()) == []
    row = run(kvmctl, "import", tmp_path / "a", "--name", f"{others.name}-2")
    assert PREFIX in row["name"]
    assert tpm.file(row["uuid"], "2.0").read_bytes() == b"key"
    Guest(hypervisor, row["name"]).remove()
    assert not (tpm.FOLDER / row["uuid"]).exists()


@pytest.mark.parametrize(
    "device",
    [
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        "<tpm model='tpm-tis'><backend type='emulator' version='2.0' debug='5'/></tpm>",
        "<tpm model='tpm-crb'><backend type='emulator'><encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/>"
        "</backend></tpm>",
    ],
)
def test_a_tpm_that_reaches_into_the_host_is_refused(
    kvmctl: Kvmctl, make_name: Names, pool: Pool, tmp_path: Path, device: str
) -> None:
    name = make_name("tpm")
    text = archives.definition(name, devices=device)
    path = Archive(name, archives.qcow2(tmp_path), text, pool[0]).write(tmp_path / "a")
    assert "<tpm>" in run(kvmctl, "import", path, code=5)
