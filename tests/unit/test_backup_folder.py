from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvmctl.control import backup
from kvmctl.model.backup import Manifest, Part, text
from kvmctl.model.errors import RefusedError

pytestmark = pytest.mark.unit

ID = "20261126-053000-full"


def put(folder: Path, content: bytes = b"disk", **more: str) -> Manifest:
    part = Part("disks/vda.qcow2", len(content), hashlib.sha256(content).hexdigest(), "vda", 4096)
    plain = Manifest(ID, "web1", "u", "full", None, "t", None, "off", "kvmctl", (part,))
    one = replace(plain, **more)  # type: ignore[arg-type]
    place = folder / "web1" / one.id
    (place / "disks").mkdir(parents=True)
    (place / part.name).write_bytes(content)
    (place / "backup.json").write_text(text(one))
    return one


def test_what_lies_in_a_folder_is_read_oldest_first(tmp_path: Path) -> None:
    later = put(tmp_path, id="20261127-000000-incremental", kind="incremental", parent=ID)
    first = put(tmp_path)
    home = backup.home_of(tmp_path, "web1")
    (home / ".partial-x").mkdir()
    (home / ".partial-x/backup.json").write_text("half")
    found, faults = backup.manifests(home)
    assert list(found.values()) == [first, later]
    assert faults == []


def test_one_that_lies_in_a_wrong_place_is_named(tmp_path: Path) -> None:
    put(tmp_path)
    home = tmp_path / "web1"
    (home / ID).rename(home / "20261128-000000-full")
    found, faults = backup.manifests(home)
    assert found == {}
    assert "wrong folder" in faults[0]


def test_damage(tmp_path: Path) -> None:
    one = put(tmp_path)
    home = tmp_path / "web1"
    image = home / ID / "disks/vda.qcow2"

    def wrong() -> list[str]:
        return backup.verify(home, {ID: one}, lambda _what, _done: None)[ID]

    assert wrong() == []
    image.write_bytes(b"kisd")
    assert wrong() == ["disks/vda.qcow2 is not what was written"]
    image.write_bytes(b"dis")
    assert wrong() == ["disks/vda.qcow2 is not what was written"]
    image.unlink()
    assert wrong() == ["disks/vda.qcow2 is missing"]
    (tmp_path / "other").write_bytes(b"disk")
    image.symlink_to(tmp_path / "other")
    assert wrong() == ["disks/vda.qcow2 is missing"]


def test_the_order_of_names_is_that_of_backups_whatever_the_clock_does(tmp_path: Path) -> None:
    last = put(tmp_path, id="29991231-235958-full")
    assert backup.moment(last) == "29991231-235959"
    assert backup.moment(None)[:8] == f"{datetime.now(UTC):%Y%m%d}"


@pytest.mark.parametrize("name", ["..", "a/b", "", " ", "1"])
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedError):
        backup.home_of(tmp_path, name)
