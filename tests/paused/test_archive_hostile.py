"""Files that somebody else made: sound ones become guests, all others leave nothing behind."""

from __future__ import annotations

import json
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control import nvram
from kvmctl.host.files import stamp
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.archives import UUID, Archive, Member, compress, definition, pack, qcow2
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

URI = "qemu:///system"
MakeName = Callable[..., str]
Pool = tuple[str, Path]


@pytest.fixture
def name(make_name: MakeName) -> str:
    return make_name("archive")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


def run(kvmctl: Kvmctl, *words: object, code: int = 0) -> Any:
    ran = kvmctl("-c", URI, "--output", "json", *words, code=code)
    return ran.json()[0] if code == 0 else ran.err


@pytest.fixture
def archive(name: str, pool: Pool, tmp_path: Path) -> Archive:
    return Archive(name, qcow2(tmp_path), pool=pool[0])


def refused(kvmctl: Kvmctl, hypervisor: Hypervisor, path: Path, pool: Pool, code: int, *words: object) -> str:
    """What it says to the file; nothing of it is there afterwards."""
    before = (sorted(pool[1].rglob("*")), domains.names(hypervisor), sorted(nvram.FOLDER.iterdir()))
    said: str = run(kvmctl, "import", path, *words, code=code)
    assert before == (sorted(pool[1].rglob("*")), domains.names(hypervisor), sorted(nvram.FOLDER.iterdir()))
    return said


def test_a_sound_file_of_others(kvmctl: Kvmctl, archive: Archive, place: Path, pool: Pool) -> None:
    row = run(kvmctl, "import", archive.write(place / "a"))
    assert (row["name"], row["uuid"], row["files"]) == (archive.name, UUID, [str(pool[1] / f"{archive.name}.qcow2")])


BACKING = ("-u", "-b", "/etc/passwd", "-F", "raw")
HOSTILE: dict[str, tuple[int, str, Callable[[Archive, Path], Any]]] = {
    "a backing file": (5, "backing", lambda one, tmp: Archive(one.name, qcow2(tmp, *BACKING), pool=one.pool)),
    "a data file": (
        5,
        "another file",
        lambda one, tmp: Archive(one.name, qcow2(tmp, "-o", f"data_file={tmp}/x"), pool=one.pool),
    ),
    "another size": (2, "shows", lambda one, tmp: Archive(one.name, qcow2(tmp, size="2M"), pool=one.pool)),
    "no image": (2, "no qcow2", lambda one, tmp: Archive(one.name, b"#!/bin/sh\n", pool=one.pool)),
    "a host device": (
        5,
        "hostdev",
        lambda one, tmp: Archive(
            one.name, one.disk, definition(one.name, devices="<hostdev mode='subsystem' type='pci'/>"), one.pool
        ),
    ),
    "another name": (2, "another guest", lambda one, tmp: Archive(one.name, one.disk, definition("x"), one.pool)),
    "a network that is not here": (
        3,
        "--network",
        lambda one, tmp: Archive(
            one.name,
            one.disk,
            definition(one.name, devices="<interface type='network'><source network='kvmctl-none'/></interface>"),
            one.pool,
        ),
    ),
    "a pool that is not here": (3, "--pool", lambda one, tmp: Archive(one.name, one.disk, pool="kvmctl-none")),
    "a machine that is not here": (
        5,
        "cannot run",
        lambda one, tmp: Archive(one.name, one.disk, definition(one.name).replace("q35", "pc-q35-99.0"), one.pool),
    ),
    "a misspelt element": (
        2,
        "",
        lambda one, tmp: Archive(
            one.name, one.disk, definition(one.name, devices="<memballoon modle='virtio'/>"), one.pool
        ),
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_file_must_not_hold(
    what: str, kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool, tmp_path: Path
) -> None:
    code, words, make = HOSTILE[what]
    path = make(archive, tmp_path).write(place / "a")
    assert words in refused(kvmctl, hypervisor, path, pool, code)


def changed(archive: Archive, index: int, member: Member) -> list[Member]:
    members = archive.all()
    members[index] = member
    return members


def test_members_that_lead_out(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool
) -> None:
    victim = place / "victim"
    for member in (
        Member(f"../../../../../..{victim}", b"x"),
        Member(str(victim), b"x"),
        Member("disks/vda.qcow2", b"", tarfile.SYMTYPE, str(victim)),
        Member("disks/vda.qcow2", b"", tarfile.LNKTYPE, "/etc/passwd"),
        Member("disks/vda.qcow2", b"", tarfile.CHRTYPE),
    ):
        (place / "a").write_bytes(compress(pack(changed(archive, 2, member))))
        refused(kvmctl, hypervisor, place / "a", pool, 2)
        assert not victim.exists()


def test_sums_that_are_wrong(kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool) -> None:
    said = refused(kvmctl, hypervisor, archive.write(place / "a", sums=b"0" * 64 + b"  manifest.json\n"), pool, 2)
    assert "sum" in said
    members = archive.all()
    members[2].content = archive.disk[:-1] + b"\x01"
    (place / "a").write_bytes(compress(pack(members)))
    assert "disks/vda.qcow2" in refused(kvmctl, hypervisor, place / "a", pool, 2)


def test_a_file_cut_off_and_one_of_tomorrow(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool
) -> None:
    whole = archive.write(place / "a").read_bytes()
    (place / "a").write_bytes(whole[: len(whole) * 2 // 3])
    refused(kvmctl, hypervisor, place / "a", pool, 2)
    archive.manifest["version"] = 2
    assert "version 2" in refused(kvmctl, hypervisor, archive.write(place / "b"), pool, 2)


def test_a_disk_that_finds_no_room(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool
) -> None:
    archive.manifest["parts"][1]["size"] = 1 << 50
    assert "are free" in refused(kvmctl, hypervisor, archive.write(place / "a"), pool, 5)


def test_what_is_taken(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool, make_name: MakeName
) -> None:
    path = archive.write(place / "a")
    taken = pool[1] / f"{archive.name}.qcow2"
    taken.write_bytes(b"somebody's")
    assert str(taken) in refused(kvmctl, hypervisor, path, pool, 4)
    assert taken.read_bytes() == b"somebody's"
    taken.unlink()
    run(kvmctl, "import", path)
    other = Archive(make_name("other"), archive.disk, pool=pool[0]).write(place / "b")
    assert UUID in refused(kvmctl, hypervisor, other, pool, 4)
    assert run(kvmctl, "import", other, "--new-identity")["uuid"] != UUID


def test_what_reaches_into_the_host_can_be_left_out(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool
) -> None:
    evil = "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>"
    text = definition(archive.name, devices=evil)
    row = run(kvmctl, "import", Archive(archive.name, archive.disk, text, pool[0]).write(place / "a"), "--leave-out")
    assert row["notes"] == ["left out: device <filesystem> of type mount"]
    assert "filesystem" not in domains.definition(Guest(hypervisor, archive.name).domain)


def test_a_promise_that_cannot_be_kept(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, place: Path, pool: Pool
) -> None:
    said = "<kvmctl:guest xmlns:kvmctl='urn:kvmctl:guest:1'><kvmctl:cpu reservation='500'/></kvmctl:guest>"
    text = definition(archive.name, inside=f"<metadata>{said}</metadata>")
    path = Archive(archive.name, archive.disk, text, pool[0]).write(place / "a")
    assert "cannot keep" in refused(kvmctl, hypervisor, path, pool, 5, "--start")
    assert run(kvmctl, "import", path)["state"] == "stopped"


def test_what_a_killed_import_left_goes_with_the_next(
    kvmctl: Kvmctl,
    hypervisor: Hypervisor,
    archive: Archive,
    place: Path,
    pool: Pool,
    state: Path,
    make_name: MakeName,
) -> None:
    """Its folder aside, and the files that it gave their names; a file of somebody else's that has one stays."""
    left, foreign = pool[1] / f"{archive.name}.qcow2", pool[1] / "foreign.qcow2"
    for path in (left, foreign):
        path.write_bytes(b"x")
    (pool[1] / ".kvmctl-import-aabbccddeeff").mkdir()
    later = pool[1] / "later.qcow2"
    later.write_bytes(b"x")
    own = pool[1] / "own.qcow2"
    own.write_bytes(archive.disk)
    name = make_name("own")
    text = definition(name, str(uuid.uuid4())).replace("/elsewhere/a.qcow2", str(own))
    domains.define(hypervisor, name, text)
    files = {str(path): list(stamp(path) or ()) for path in (left, foreign, later, own)}
    files[str(foreign)][0] += 1
    files[str(later)][1] -= 1  # as of a file that had the same inode before
    data = {"uri": URI, "name": "x", "files": files}
    intent = {"import": {str(uuid.uuid4()): {"data": data, "time": 1.0}}}
    state.mkdir(exist_ok=True)
    (state / "journal.json").write_text(json.dumps({"version": 1, "changes": {}, "intents": intent}))
    run(kvmctl, "import", archive.write(place / "a"))
    assert left.read_bytes() == archive.disk
    assert [path.read_bytes() for path in (foreign, later)] == [b"x", b"x"]
    assert own.read_bytes() == archive.disk, "a guest has it by now"
    assert json.loads((state / "journal.json").read_text())["intents"] == {}
