"""Folders of backups, read without a hypervisor: any damage is seen, and a chain is what it says or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.control import from_backup
from kvmctl.control.meter import Silent
from kvmctl.model.errors import ConflictError, KvmctlError, UsageError
from tests import backupfolders
from tests.backupfolders import FULL, IDS, LAST, NEXT
from tests.conftest import cannot

pytestmark = pytest.mark.unit

if shutil.which("qemu-img") is None:
    cannot("qemu-img is not installed")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backupfolders.make(tmp_path_factory.mktemp("backups"), "web1", Path("/pool/web1.qcow2"))


def test_what_is_chosen(sound: Path) -> None:
    assert from_backup.find(sound.parent, None).chosen.id == LAST
    assert [one.id for one in from_backup.find(sound, "20260102").chain] == [FULL, NEXT]
    assert [one.id for one in from_backup.find(sound / NEXT, None).chain] == [FULL, NEXT]
    shown = from_backup.document(sound, None, True, Silent())
    assert (shown["guest"], shown["backup"], shown["foreign"]) == ("web1", LAST, [])
    assert [part["name"] for part in shown["parts"]] == ["domain.xml", "disks/vda.qcow2"]
    assert shown["parts"][1]["volume"] == "web1.qcow2"
    assert shown["parts"][1]["size"] == sum((sound / id_ / "disks/vda.qcow2").stat().st_size for id_ in IDS)


def test_a_chain_of_two_guests_or_with_other_disks(sound: Path, tmp_path: Path) -> None:
    home = tmp_path / "web1"
    shutil.copytree(sound, home)
    backupfolders.write(home, FULL, uuid="99999999-2222-4333-8444-555555555555")
    with pytest.raises(UsageError, match="another guest"):
        from_backup.find(home, None)
    shutil.copy(sound / FULL / "backup.json", home / FULL)
    backupfolders.write(home, NEXT, lambda found: found["parts"].pop(0))
    with pytest.raises(UsageError, match="other disks"):
        from_backup.find(home, None)
    backupfolders.write(home, FULL, parent=LAST, kind="incremental", id=FULL)
    with pytest.raises(KvmctlError):
        from_backup.find(home, None)


def test_a_chain_that_goes_round(sound: Path, tmp_path: Path) -> None:
    home = tmp_path / "web1"
    shutil.copytree(sound, home)
    backupfolders.write(home, NEXT, parent=LAST)
    with pytest.raises(ConflictError):
        from_backup.find(home, None)


@settings(deadline=None)
@given(
    id_=st.sampled_from(IDS),
    name=st.sampled_from(["disks/vda.qcow2", "domain.xml", "backup.json"]),
    at=st.integers(0, 1 << 20),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_any_damage_is_seen(sound: Path, id_: str, name: str, at: int, value: int, cut: bool) -> None:
    path = sound / id_ / name
    whole = path.read_bytes()
    at %= len(whole)
    damaged = whole[:at] if cut else whole[:at] + bytes([value]) + whole[at + 1 :]
    path.write_bytes(damaged)
    try:
        shown = from_backup.document(sound, None, True, Silent())
    except KvmctlError:
        return
    finally:
        path.write_bytes(whole)
    # What a manifest says of itself can be changed; what it is of, cannot.
    assert damaged == whole or name == "backup.json"
    assert shown["guest"] == "web1" or name == "backup.json"
