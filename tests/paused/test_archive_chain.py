"""Disks that are overlays go into a file image by image; what they are over then is what was imported, and no more."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests import disks
from tests.archives import Archive, Member, qcow2
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

Names = Callable[..., str]
Pool = tuple[str, Path]


def run(kvmctl: Kvmctl, *words: object, code: int = 0) -> Any:
    ran = kvmctl("-c", "qemu:///system", "--output", "json", *words, code=code)
    return ran.json()[0] if code == 0 else ran.err


def chain(image: Path) -> list[dict[str, Any]]:
    command = ["qemu-img", "info", "--backing-chain", "--output=json", str(image)]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


@pytest.fixture
def layered(hypervisor: Hypervisor, kvmctl: Kvmctl, make_name: Names, pool: Pool) -> Guest:
    """A guest that is off, whose disk is an overlay over an overlay, of more capacity, over a raw image."""
    name = make_name("chain")
    (base,) = disks.define(kvmctl, name, *pool, formats=("raw",))
    disks.write(base, 1)
    disks.write(base, 1, at=3)
    for index, size in ((2, "4M"), (3, "8M")):
        over = pool[1] / f"{name}.{index}"
        form = "raw" if index == 2 else "qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", form, str(over), size]
        subprocess.run(command, check=True)
        disks.write(over, index, at=index)
        base = over
    # What lies below is covered by zeros.
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 0 64k", base], capture_output=True, check=True)
    guest = Guest(hypervisor, name)
    text = domains.definition(guest.domain).replace("type='raw'", "type='qcow2'")
    domains.define(hypervisor, name, text.replace(f"{name}-0.raw", f"{name}.3"))
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    return guest


@pytest.mark.parametrize("how", ["as it was", "another"])
def test_each_image_stays_one(
    kvmctl: Kvmctl, hypervisor: Hypervisor, layered: Guest, pool: Pool, tmp_path: Path, make_name: Names, how: str
) -> None:
    image = pool[1] / f"{layered.name}.3"
    before = [(Path(one["filename"]).name, one["virtual-size"]) for one in chain(image)]
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, tmp_path / "raw"], check=True)
    run(kvmctl, "export", layered.name, "-o", tmp_path / "a", "--chain")
    parts = [part["name"] for part in kvmctl("-o", "json", "inspect", "--verify", tmp_path / "a").json()["parts"]]
    assert parts[2:] == ["disks/vda.qcow2", "disks/vda.1.qcow2", "disks/vda.2.qcow2"]
    subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "a"], check=True)
    subprocess.run(["qemu-img", "compare", "-F", "raw", tmp_path / "disks/vda.qcow2", tmp_path / "raw"], check=True)
    if how == "another":
        name = make_name("chain")
        row = run(kvmctl, "import", tmp_path / "a", "--name", name)
    else:
        layered.remove()
        for path in pool[1].iterdir():
            path.unlink()
        row = run(kvmctl, "import", tmp_path / "a")
    found = chain(Path(row["files"][0]))
    assert [one["filename"] for one in found] == row["files"]
    assert all(Path(one["filename"]).parent == pool[1] for one in found)
    assert [one["virtual-size"] for one in found] == [size for _name, size in before]
    if how == "as it was":
        assert [Path(one["filename"]).name for one in found] == [name for name, _size in before]
    subprocess.run(["qemu-img", "compare", "-F", "raw", row["files"][0], tmp_path / "raw"], check=True)
    made = Guest(hypervisor, row["name"])
    domains.start(made.domain, paused=True)  # QEMU opens all of them
    assert domains.state(made.domain) == "paused"
    made.remove()
    for path in row["files"]:
        Path(path).unlink(missing_ok=True)


def test_without_it_the_disk_is_one_image(kvmctl: Kvmctl, layered: Guest, tmp_path: Path) -> None:
    run(kvmctl, "export", layered.name, "-o", tmp_path / "a")
    parts = [part["name"] for part in kvmctl("-o", "json", "inspect", tmp_path / "a").json()["parts"]]
    assert parts[2:] == ["disks/vda.qcow2"]


def test_a_guest_that_runs_is_not_taken_apart(kvmctl: Kvmctl, layered: Guest, tmp_path: Path) -> None:
    domains.start(layered.domain, paused=True)
    assert "--with-memory" in run(kvmctl, "export", layered.name, "-o", tmp_path / "a", "--chain", code=4)
    assert run(kvmctl, "export", layered.name, "-o", tmp_path / "a", "--chain", "--with-memory")["state"] == "paused"
    assert "OVA" in run(kvmctl, "export", layered.name, "-o", tmp_path / "b", "--chain", "--format", "ova", code=2)


BASE = {"name": "disks/vda.1.qcow2", "kind": "backing", "target": "vda", "level": 1, "capacity": 1 << 20}


def over(tmp_path: Path, backing: str, form: str = "qcow2") -> bytes:
    return qcow2(tmp_path, "-u", "-b", backing, "-F", form)


@pytest.mark.parametrize(
    ("code", "words", "backing", "form", "row"),
    [
        (5, "names another file", "/etc/passwd", "qcow2", {}),
        (5, "names another file", "../vda.1.qcow2", "qcow2", {}),
        (5, "backing format", "vda.1.qcow2", "raw", {}),
        (2, "that no disk is over", "vda.1.qcow2", "qcow2", {"name": "disks/vda.2.qcow2", "level": 2}),
        (2, "that no disk is over", "vda.1.qcow2", "qcow2", {"name": "disks/vdb.1.qcow2", "target": "vdb"}),
        (2, "its level", "vda.1.qcow2", "qcow2", {"level": "1"}),
        (2, "is called", "vda.1.qcow2", "qcow2", {"name": "disks/../x"}),
    ],
)
def test_a_chain_that_leads_elsewhere(
    kvmctl: Kvmctl,
    hypervisor: Hypervisor,
    make_name: Names,
    pool: Pool,
    tmp_path: Path,
    code: int,
    words: str,
    backing: str,
    form: str,
    row: dict[str, Any],
) -> None:
    name, base = make_name("chain"), qcow2(tmp_path)
    archive = Archive(name, over(tmp_path, backing, form), pool=pool[0])
    part: dict[str, Any] = BASE | {"size": len(base), "pool": pool[0]} | row
    archive.manifest["parts"].append(part)
    archive.members.append(Member(part["name"], base))
    assert words in run(kvmctl, "import", archive.write(tmp_path / "a"), code=code)
    assert list(pool[1].iterdir()) == []
    assert name not in domains.names(hypervisor)
