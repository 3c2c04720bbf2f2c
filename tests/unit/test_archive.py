"""The file that holds a guest: what is read is what was written, and nothing else is read at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.control import archive as control
from kvmctl.control.meter import Silent
from kvmctl.host import tarstream
from kvmctl.host.tarstream import Reader, Writer
from kvmctl.model import archive
from kvmctl.model.archive import Manifest, Part
from kvmctl.model.errors import KvmctlError, NotFoundError, UsageError
from tests.archives import UUID, Archive, Member, compress, pack

pytestmark = pytest.mark.unit

GIB = 1 << 30
MANIFEST = Manifest(
    "web1",
    UUID,
    "running",
    "one moment",
    "2026-01-01T00:00:00+00:00",
    "kvmctl 1",
    (
        Part("definition", 100),
        Part("nvram", 1 << 17),
        Part("disk", 20 * GIB, "vda", 40 * GIB, "web1.qcow2", "default"),
        Part("seed", 4096, "sda"),
        Part("memory", 9),
        Part("tpm", 6000),
        Part("backing", GIB, "vda", 40 * GIB, "base.qcow2", "default", 1),
        Part("backing", GIB, "vda", 20 * GIB, level=2),
    ),
    autostart=True,
)


def parsed(document: Any) -> Manifest:
    return archive.parse(json.dumps(document).encode())


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert parsed(archive.document(MANIFEST)) == MANIFEST
    assert MANIFEST.size == sum(part.size for part in MANIFEST.parts)
    assert [part.name for part in MANIFEST.of("disk")] == ["disks/vda.qcow2"]
    over = [MANIFEST.over(part) for part in MANIFEST.parts]
    assert [part and part.name for part in over if part] == ["disks/vda.1.qcow2", "disks/vda.2.qcow2"]


@pytest.mark.parametrize("name", ["web1", "a.b-c_d+e"])
@pytest.mark.parametrize("state", archive.STATES)
def test_manifests_of_every_guest(name: str, state: str) -> None:
    found = archive.document(MANIFEST) | {"guest": name, "state": state}
    assert (parsed(found).guest, parsed(found).state) == (name, state)


def part(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["parts"][2].update(changes)


def top(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.update(changes)


BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no format": lambda found: found.pop("format"),
    "a newer version": top(version=2),
    "a version that is true": top(version=True),
    "a name with a way out": top(guest="../../etc"),
    "a name that is an option": top(guest="-rf"),
    "no UUID": top(uuid="x"),
    "another key": top(more="x"),
    "a key too few": lambda found: found.pop("consistency"),
    "a state of its own": top(state="flying"),
    "no parts": top(parts=[]),
    "parts that are none": top(parts={"a": 1}),
    "too many parts": top(parts=[{}] * 600),
    "a text that is none": top(created=7),
    "a text without end": top(created="x" * 1000),
    "another name": part(name="../../etc/passwd"),
    "an absolute name": part(name="/etc/passwd"),
    "another kind": part(kind="device"),
    "a kind that is none": part(kind=["disk"]),
    "no kind": lambda found: found["parts"][2].pop("kind"),
    "a drive that is a path": part(target="../x"),
    "no drive": lambda found: found["parts"][2].pop("target"),
    "a drive where there is none": lambda found: found["parts"][1].update(target="vdb"),
    "a volume that is a path": part(volume="../x.qcow2"),
    "a hidden volume": part(volume=".x"),
    "a pool that is none": part(pool=["x"]),
    "a negative size": part(size=-1),
    "a size that is none": part(size="1"),
    "a size that is true": part(size=True),
    "a size beyond every disk": part(size=1 << 62),
    "a capacity beyond every disk": part(capacity=1 << 62),
    "no capacity": lambda found: found["parts"][2].pop("capacity"),
    "an NVRAM that is none": lambda found: found["parts"][1].update(size=1 << 30),
    "a part twice": lambda found: found["parts"].append(found["parts"][2]),
    "a drive twice": lambda found: found["parts"][3].update(target="vda", name="disks/vda.seed"),
    "a level where there is none": part(level=1),
    "no level": lambda found: found["parts"][6].pop("level"),
    "a level that is true": lambda found: found["parts"][6].update(level=True),
    "a level of none": lambda found: found["parts"][6].update(level=0, name="disks/vda.0.qcow2"),
    "a level too deep": lambda found: found["parts"][7].update(level=65, name="disks/vda.65.qcow2"),
    "a level that is left out": lambda found: found["parts"].pop(6),
    "a level twice": lambda found: found["parts"][7].update(level=1, name="disks/vda.1.qcow2"),
    "what no disk is over": lambda found: found["parts"][7].update(target="vdb", name="disks/vdb.2.qcow2"),
    "what a seed is over": lambda found: found["parts"][6].update(target="sda", name="disks/sda.1.qcow2"),
    "a TPM that is none": lambda found: found["parts"][5].update(size=1 << 30),
    "another part first": lambda found: found["parts"].reverse(),
    "an unknown key": part(owner="root"),
    "a part that is none": lambda found: found["parts"].append("x"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_manifest_that_could_not_have_been_written(what: str) -> None:
    found = archive.document(MANIFEST)
    BAD[what](found)
    with pytest.raises(UsageError):
        parsed(found)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": "other"}', b"nul"])
def test_what_is_no_manifest(text: bytes) -> None:
    with pytest.raises(UsageError):
        archive.parse(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@given(st.sampled_from(["guest", "uuid", "state", "parts", "version", "autostart", "created"]), json_values)
def test_any_value_is_read_or_refused(key: str, value: Any) -> None:
    try:
        found = parsed(archive.document(MANIFEST) | {key: value})
    except UsageError:
        return
    assert found.parts[0].kind == "definition"


@given(
    st.sampled_from(["kind", "size", "target", "capacity", "volume", "pool", "name", "level"]),
    st.sampled_from([2, 5, 6, 7]),
    json_values,
)
def test_any_value_of_a_part_is_read_or_refused(key: str, index: int, value: Any) -> None:
    found = archive.document(MANIFEST)
    found["parts"][index][key] = value
    try:
        again = parsed(found)
    except UsageError:
        return
    assert {one.name.split("/")[0] for one in again.parts} <= {
        "domain.xml",
        "nvram.fd",
        "disks",
        "memory.save",
        "tpm.state",
    }


# The stream


@given(st.lists(st.binary(max_size=2000), max_size=4))
def test_members_come_back_with_their_sums(contents: list[bytes]) -> None:
    out = io.BytesIO()
    writer = Writer(out)
    for index, content in enumerate(contents):
        writer.add(f"disks/{index}", len(content), io.BytesIO(content))
    writer.finish()
    out.seek(0)
    reader = Reader(out)
    assert [reader.content(f"disks/{index}", 2000) for index in range(len(contents))] == contents
    reader.end()
    assert reader.digests == writer.digests
    assert list(reader.digests.values()) == [hashlib.sha256(content).hexdigest() for content in contents]


def test_a_member_beyond_eight_gibibytes_has_a_plain_header() -> None:
    info = tarfile.TarInfo("disks/vda.qcow2")
    info.size = 20 * GIB
    block = info.tobuf(tarfile.GNU_FORMAT)
    assert len(block) == tarstream.BLOCK
    assert Reader(io.BytesIO(block)).next("disks/vda.qcow2") == 20 * GIB


def test_a_source_that_shrinks_is_an_error() -> None:
    with pytest.raises(KvmctlError, match="shorter"):
        Writer(io.BytesIO()).add("a", 10, io.BytesIO(b"123"))


@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    reader = Reader(io.BytesIO(data))
    with pytest.raises(UsageError):
        reader.content("manifest.json", 1000)


@given(st.integers(0, 511), st.integers(0, 255))
def test_any_change_of_a_header_is_harmless(at: int, value: int) -> None:
    data = bytearray(pack([Member("manifest.json", b"{}")]))
    data[at] = value
    with suppress(UsageError):
        assert len(Reader(io.BytesIO(bytes(data))).content("manifest.json", 4)) <= 4


def test_holes_stay_holes(tmp_path: Path) -> None:
    content = b"a" * tarstream.CHUNK + bytes(64 * tarstream.CHUNK)
    target = tmp_path / "x"
    with target.open("w+b") as file:
        tarstream.put(iter([content[i : i + tarstream.CHUNK] for i in range(0, len(content), tarstream.CHUNK)]), file)
    assert target.read_bytes() == content
    assert target.stat().st_blocks * 512 < 2 * tarstream.CHUNK


# Whole files


def read(path: Path) -> dict[str, Any]:
    return control.document(path, verify=True, meter=Silent())


@pytest.fixture
def sound() -> Archive:
    return Archive("web1", b"QFI\xfb" + os.urandom(3000))


def test_a_sound_file(sound: Archive, tmp_path: Path) -> None:
    path = sound.write(tmp_path / "a")
    found = read(path)
    assert (found["guest"], found["verified"], found["foreign"]) == ("web1", True, [])
    assert control.document(path, verify=False, meter=Silent())["verified"] is False


def test_gnu_tar_reads_it_and_what_gnu_tar_writes_is_read(sound: Archive, tmp_path: Path) -> None:
    path = sound.write(tmp_path / "a")
    folder = tmp_path / "x"
    folder.mkdir()
    subprocess.run(["tar", "-C", folder, "-xf", path], check=True)
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True).returncode == 0
    names = [member.name for member in sound.all()]
    subprocess.run(["tar", "-C", folder, "--zstd", "-cf", tmp_path / "b", *names], check=True)
    assert read(tmp_path / "b")["guest"] == "web1"


def other(name: str, kind: bytes, link: str = "", content: bytes = b"") -> Callable[[list[Member]], None]:
    return lambda members: members.insert(2, Member(name, content, kind, link))


HOSTILE: dict[str, Callable[[list[Member]], Any]] = {
    "a way out": other("../../tmp/x", tarfile.REGTYPE),
    "an absolute name": other("/etc/cron.d/x", tarfile.REGTYPE, content=b"x"),
    "a symbolic link": other("disks", tarfile.SYMTYPE, "/etc"),
    "a link instead of a disk": lambda members: members.__setitem__(
        2, Member("disks/vda.qcow2", b"", tarfile.SYMTYPE, "/etc/passwd")
    ),
    "a hard link": other("disks/vda.qcow2", tarfile.LNKTYPE, "/etc/shadow"),
    "a character device": other("disks/vda.qcow2", tarfile.CHRTYPE),
    "a block device": other("disks/vda.qcow2", tarfile.BLKTYPE),
    "a pipe": other("disks/vda.qcow2", tarfile.FIFOTYPE),
    "a folder": other("disks/", tarfile.DIRTYPE),
    "a sparse file": other("disks/vda.qcow2", tarfile.GNUTYPE_SPARSE),
    "an extended header": other("x", tarfile.XHDTYPE, content=b"30 path=../../../../etc/passwd\n"),
    "a global header": other("x", tarfile.XGLTYPE, content=b"30 path=../../../../etc/passwd\n"),
    "a long name": other("x", tarfile.GNUTYPE_LONGNAME, content=b"../" * 100),
    "a member that nobody listed": other("more", tarfile.REGTYPE, content=b"x"),
    "a member twice": lambda members: members.insert(2, members[2]),
    "a member too few": lambda members: members.pop(2),
    "another order": lambda members: members.insert(1, members.pop(2)),
    "the manifest later": lambda members: members.insert(1, members.pop(0)),
    "no sums": lambda members: members.pop(),
    "a disk that is longer": lambda members: members[2].__setattr__("content", members[2].content + b"x"),
    "a disk that is shorter": lambda members: members[2].__setattr__("content", members[2].content[:-1]),
    "another disk": lambda members: members[2].__setattr__("content", bytes(len(members[2].content))),
    "more after the sums": lambda members: members.append(Member("late", b"x")),
    "a manifest without end": lambda members: members[0].__setattr__("content", b" " * (2 << 20)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_leads_astray(what: str, sound: Archive, tmp_path: Path) -> None:
    members = sound.all()
    HOSTILE[what](members)
    path = tmp_path / "a"
    path.write_bytes(compress(pack(members)))
    with pytest.raises(UsageError) as caught:
        read(path)
    assert caught.value.hint


def test_every_way_to_cut_a_file(sound: Archive, tmp_path: Path) -> None:
    whole = sound.write(tmp_path / "a").read_bytes()
    plain = pack(sound.all())
    for length in (0, 1, 3, 4, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(UsageError):
            read(tmp_path / "b")
    # The padding of the last record is no part of it.
    for length in range(0, len(plain.rstrip(b"\0")) + 400, 397):
        (tmp_path / "b").write_bytes(compress(plain[:length]))
        with pytest.raises(UsageError):
            read(tmp_path / "b")


@settings(max_examples=30)
@given(data=st.data())
def test_any_damage_is_seen(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sound = Archive("web1", b"QFI\xfb" + bytes(range(256)) * 4)
    plain = bytearray(pack(sound.all()))
    at = data.draw(st.integers(0, len(plain.rstrip(b"\0")) - 1))
    plain[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damage") / "a"
    path.write_bytes(compress(bytes(plain)))
    try:
        found = read(path)
    except UsageError:
        return
    # What a header says of owner, time and mode is not looked at.
    assert found == read(sound.write(path))


def test_what_follows_the_end(sound: Archive, tmp_path: Path) -> None:
    plain = pack(sound.all())
    for tail, good in ((bytes(10240), True), (b"x" * 512, False), (bytes(1 << 20), False)):
        (tmp_path / "b").write_bytes(compress(plain + tail))
        if good:
            read(tmp_path / "b")
        else:
            with pytest.raises(UsageError, match="after the end"):
                read(tmp_path / "b")


def test_a_bomb_takes_no_memory_and_no_time(tmp_path: Path) -> None:
    """A hundred gibibytes of zeros in a manifest, which zstd packs into some megabytes: it is not unpacked."""
    info = tarfile.TarInfo("manifest.json")
    info.size = 100 * GIB
    (tmp_path / "a").write_bytes(compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20)))
    with pytest.raises(UsageError, match="more than it can have"):
        read(tmp_path / "a")


def test_a_window_beyond_what_memory_is_for(sound: Archive, tmp_path: Path) -> None:
    done = subprocess.run(
        ["zstd", "-q", "-c", "-1", "--long=31"], input=pack(sound.all()), capture_output=True, check=True
    )
    (tmp_path / "a").write_bytes(done.stdout)
    with pytest.raises(UsageError, match="decompressed"):
        read(tmp_path / "a")


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read(tmp_path / "none")
    with pytest.raises(UsageError, match="folder"):
        read(tmp_path)
    (tmp_path / "a").write_bytes(b"not compressed at all")
    with pytest.raises(UsageError, match="zstd"):
        read(tmp_path / "a")
    (tmp_path / "a").write_bytes(tarstream.ZSTD_MAGIC + os.urandom(100))
    with pytest.raises(UsageError):
        read(tmp_path / "a")
