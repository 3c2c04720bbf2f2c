"""Backups of real guests: what is restored is compared with what the disk held at each moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.control import weights
from kvmctl.hypervisor import backups, live, moving
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change
from kvmctl.model.units import MIB
from tests import disks
from tests.conftest import Kvmctl, environment
from tests.support import Guest, until

pytestmark = pytest.mark.paused

Pool = tuple[str, Path]


@pytest.fixture
def guest(kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str], pool: Pool) -> Callable[..., Guest]:
    def make(state: str = "paused", **more: str) -> Guest:
        name = make_name("backup")
        disks.define(kvmctl, name, *pool, state=state, **more)  # type: ignore[arg-type]
        return Guest(hypervisor, name)

    return make


def restored(home: Path, id_: str, to: Path) -> Path:
    """A disk of a backup as any tool that reads qcow2 has it."""
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", home / id_ / "disks/vda.qcow2", to], check=True)
    return to


def test_each_backup_of_a_chain_restores_its_own_moment(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path, tmp_path: Path
) -> None:
    one = guest()
    home = folder / one.name
    ids: list[str] = []
    for value in (1, 2, 3):
        disks.write_live(one, value)
        disks.write_live(one, value, at=value)
        said = kvmctl("backup", one.name, folder, *(["--incremental"] if ids else []), "-o", "name")
        ids.append(said.out.strip())
        assert "not frozen" in said.err
        assert backups.checkpoints(one.domain) == [f"kvmctl-{ids[-1]}"]
    disks.write_live(one, 9)
    for value, id_ in enumerate(ids, 1):
        image = restored(home, id_, tmp_path / id_)
        assert disks.holds(image, value)
        assert [disks.holds(image, at, at) for at in (1, 2, 3)] == [at <= value for at in (1, 2, 3)]
        done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=home / id_, check=False)
        assert done.returncode == 0
        assert "<name>" in (home / id_ / "domain.xml").read_text()
    kvmctl("stop", one.name, "--force", "--timeout", "0")
    kvmctl("start", one.name, "--paused")
    disks.write_live(one, 4)
    id_ = kvmctl("backup", one.name, folder, "--incremental", "-o", "name").out.strip()
    assert disks.holds(restored(home, id_, tmp_path / id_), 4)
    found = kvmctl("backup", one.name, folder, "--list", "-o", "json").json()
    assert [(row["name"], row["parent"], row["restorable"]) for row in found] == [
        (id_, parent, True) for id_, parent in zip([*ids, id_], [None, *ids], strict=True)
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*") if path.is_file())


def test_changes_are_known_through_snapshots_and_their_merge(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path, tmp_path: Path
) -> None:
    one = guest()
    disks.write_live(one, 1, at=1)
    kvmctl("backup", one.name, folder)
    disks.write_live(one, 2, at=2)
    kvmctl("snapshot", "create", one.name, "s", "--disk-only")
    disks.write_live(one, 3, at=3)
    first = kvmctl("backup", one.name, folder, "--incremental", "-o", "name").out.strip()
    disks.write_live(one, 4, at=4)
    kvmctl("snapshot", "delete", one.name, "s", "--yes")
    disks.write_live(one, 5, at=5)
    second = kvmctl("backup", one.name, folder, "--incremental", "-o", "name").out.strip()
    images = [restored(folder / one.name, id_, tmp_path / id_) for id_ in (first, second)]
    assert [disks.holds(images[0], at, at) for at in (1, 2, 3, 4, 5)] == [True, True, True, False, False]
    assert [disks.holds(images[1], at, at) for at in (1, 2, 3, 4, 5)] == [True] * 5


@pytest.fixture
def small(folder: Path) -> Iterator[Path]:
    """A file system of 80 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,mode=711", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_leaves_the_backups_that_there_were(
    small: Path, kvmctl: Kvmctl, guest: Callable[..., Guest], tmp_path: Path
) -> None:
    one = guest()
    first = kvmctl("backup", one.name, small, "-o", "name").out.strip()
    for at in range(40):
        disks.write_live(one, 1, at)
    filler = small / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    said = kvmctl("backup", one.name, small, "--incremental", code=1)
    assert "df -h" in said.err
    assert [path.name for path in (small / one.name).iterdir()] == [first]
    assert backups.checkpoints(one.domain) == [f"kvmctl-{first}"]
    kvmctl("backup", one.name, small, code=5)
    filler.unlink()
    second = kvmctl("backup", one.name, small, "--incremental", "-o", "name").out.strip()
    assert disks.holds(restored(small / one.name, second, tmp_path / "out"), 1, 39)


def test_damage_is_found_and_what_is_over_it_is_lost_too(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path
) -> None:
    one = guest()
    first = kvmctl("backup", one.name, folder, "-o", "name").out.strip()
    second = kvmctl("backup", one.name, folder, "--incremental", "-o", "name").out.strip()
    kvmctl("backup", one.name, folder, "--verify")
    image = folder / one.name / first / "disks/vda.qcow2"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    said = kvmctl("backup", one.name, folder, "--verify", "-o", "json", code=1)
    assert {row["name"]: (row["restorable"], row["faults"]) for row in said.json()} == {
        first: (False, ["disks/vda.qcow2 is not what was written"]),
        second: (False, []),
    }
    assert f"2 of 2 backups cannot be restored: {first}, {second}" in said.err


def test_a_backup_that_is_not_there_or_cannot_be_read_is_found(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path
) -> None:
    one = guest()
    first, second, third = (
        kvmctl("backup", one.name, folder, *more, "-o", "name").out.strip() for more in ([], ["--incremental"], [])
    )
    kvmctl("backup", one.name, folder, "--verify")
    shutil.rmtree(folder / one.name / first)
    said = kvmctl("backup", one.name, folder, "--verify", "-o", "json", code=1)
    assert f"1 of 2 backups cannot be restored: {second}\n" in said.err
    kvmctl("backup", one.name, folder, "--list")
    shutil.rmtree(folder / one.name / second)
    kvmctl("backup", one.name, folder, "--verify")
    (folder / one.name / third / "backup.json").write_text("{}")
    said = kvmctl("backup", one.name, folder, "--verify", code=1)
    assert f"1 cannot be read: {folder / one.name / third}" in said.err


def test_what_cannot_be_incremental_is_refused(kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path) -> None:
    one = guest("stopped")
    assert "take a full backup" in kvmctl("backup", one.name, folder, "--incremental", code=4).err
    disks.write(disks.disk(one), 7)
    kvmctl("backup", one.name, folder)
    kvmctl("start", one.name, "--paused")
    assert "nobody has kept account" in kvmctl("backup", one.name, folder, "--incremental", code=5).err
    kvmctl("snapshot", "create", one.name, "s")
    kvmctl("backup", one.name, folder)
    kvmctl("backup", one.name, folder, "--incremental")
    said = kvmctl("snapshot", "revert", one.name, "s", "--yes")
    assert "has to be a full one" in said.err
    assert "nobody has kept account" in kvmctl("backup", one.name, folder, "--incremental", code=5).err
    assert backups.checkpoints(one.domain) == []


def test_an_old_image_is_named_with_what_makes_it_new(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path
) -> None:
    one = guest("stopped")
    image = disks.disk(one)
    subprocess.run(["qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", image], check=True)
    kvmctl("start", one.name, "--paused")
    said = kvmctl("backup", one.name, folder)
    assert f"qemu-img amend -f qcow2 -o compat=1.1 {image}" in said.err
    assert backups.checkpoints(one.domain) == []


def test_the_seed_and_the_nvram_are_in_it(kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path) -> None:
    one = guest("paused", more=", cloud-init: {user: ann}, boot: {firmware: uefi}")
    try:
        made = kvmctl("backup", one.name, folder, "-o", "json").json()[0]
        names = {str(path.relative_to(folder / one.name / made["name"])) for path in folder.rglob("*.*")}
        assert {"nvram.fd", "disks/vda.qcow2", "domain.xml"} <= names
        assert [name for name in names if name.endswith(".seed")]
        kvmctl("backup", one.name, folder, "--verify")
    finally:
        kvmctl("delete", one.name, "--force", "--yes")


def test_a_raw_disk_is_named_and_backed_up_in_full(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path, tmp_path: Path
) -> None:
    one = guest("paused", formats=("raw",))
    disks.write_live(one, 5)
    said = kvmctl("backup", one.name, folder, "-o", "name")
    assert "vda is raw, not qcow2" in said.err
    assert disks.holds(restored(folder / one.name, said.out.strip(), tmp_path / "out"), 5)


def test_a_folder_that_qemu_cannot_reach_leaves_nothing(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path, state: Path
) -> None:
    one = guest()
    folder.chmod(0o700)
    said = kvmctl("backup", one.name, folder, code=None)
    assert said.code in (1, 5, 6), said.err
    assert list(folder.iterdir()) == []
    assert backups.checkpoints(one.domain) == []
    assert "intents" not in (state / "journal.json").read_text().replace('"intents": {}', "")


def test_a_run_that_is_killed_leaves_no_backup_and_no_checkpoint(
    kvmctl: Kvmctl, guest: Callable[..., Guest], folder: Path, state: Path, tmp_path: Path
) -> None:
    one = guest()
    for at in range(60):
        disks.write_live(one, 1, at)
    running = subprocess.Popen(
        [sys.executable, "-m", "kvmctl", "backup", one.name, str(folder)], env=environment(state, tmp_path / "run")
    )
    home = folder / one.name
    until(lambda: [*home.glob(".partial-*/disks")] or running.poll() is not None, bool, 60, "the folder of the backup")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    # It may have been whole by then.
    names = [path.name for path in home.iterdir() if not path.name.startswith(".")]
    id_ = kvmctl("backup", one.name, folder, "-o", "name").out.strip()
    assert sorted(path.name for path in home.iterdir()) == sorted([*names, id_])
    assert backups.checkpoints(one.domain) == [f"kvmctl-{id_}"]
    assert not backups.runs(one.domain)


def test_a_guest_that_is_backed_up_can_be_given_memory_and_weight(guest: Callable[..., Guest]) -> None:
    """One that is squeezed has to have its memory back when it needs it, however long its backup takes."""
    one = guest()
    socket = f"/var/lib/libvirt/qemu/{one.name}.sock"
    server = f"<server transport='unix' socket='{socket}'/>"
    one.domain.backupBegin(f"<domainbackup mode='pull'>{server}</domainbackup>", None, 0)
    try:
        assert moving.busy_with(one.domain) == "a backup is being made"
        assert moving.blocked_by(one.domain) is None
        live.set_balloon(one.domain, live.balloon(one.domain) - MIB)
        done = weights.set_weight(one.domain, Change(one.name, "cpu.weight", None, 777))
        assert (done.result, done.found) == ("changed", 777)
    finally:
        one.domain.abortJob()
    until(lambda: moving.busy_with(one.domain), lambda job: job is None, 30, "the job")
