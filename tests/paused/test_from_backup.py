"""Backups become guests again, each as it was at its moment; folders that somebody changed leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control import nvram, tpm
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests import backupfolders, disks
from tests.backupfolders import FULL, IDS, LAST, NEXT
from tests.conftest import Kvmctl
from tests.support import Guest

pytestmark = pytest.mark.paused

Names = Callable[..., str]
Pool = tuple[str, Path]


@pytest.fixture
def home(folder: Path, make_name: Names, pool: Pool) -> Path:
    """Three backups, one over the other, of a guest that is not there any more."""
    name = make_name("backup")
    return backupfolders.make(folder, name, pool[1] / f"{name}.qcow2")


def run(kvmctl: Kvmctl, *words: object, code: int = 0) -> Any:
    ran = kvmctl("-c", "qemu:///system", "--output", "json", *words, code=code)
    return ran.json()[0] if code in (0, 10) else ran.err


def filled(image: Path) -> list[bool]:
    """Which of the first blocks hold what they were filled with."""
    return [disks.holds(image, value, at=value - 1) for value in (1, 2, 3)]


def test_each_moment_of_a_guest_that_goes_on(
    kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Names, pool: Pool, folder: Path, tmp_path: Path
) -> None:
    name = make_name("backup")
    (image,) = disks.define(kvmctl, name, *pool, state="paused")
    guest = Guest(hypervisor, name)
    ids: list[str] = []
    states: list[Path] = []
    for value in (1, 2, 3):
        disks.write_live(guest, value, at=value - 1)
        disks.write_live(guest, value, at=9)
        ids.append(kvmctl("backup", name, folder, *(["--incremental"] if ids else []), "-o", "name").out.strip())
        states.append(tmp_path / str(value))
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, states[-1]], check=True)
    disks.write_live(guest, 7, at=9)
    for id_, state in zip(ids, states, strict=True):
        row = run(kvmctl, "import", folder / name, "--at", id_, "--name", f"{name}-then")
        made = Path(row["files"][0])
        assert made.parent == pool[1]
        compared = subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", made, state], check=False)
        assert compared.returncode == 0
        assert (
            "backing file"
            not in subprocess.run(["qemu-img", "info", made], capture_output=True, text=True, check=True).stdout
        )
        Guest(hypervisor, f"{name}-then").remove()
    assert "there is a guest" in run(kvmctl, "import", folder, code=4)
    before = domains.definition(guest.domain)
    guest.remove()
    row = run(kvmctl, "import", folder, "--start")  # the newest, under its own name and files
    assert (row["name"], row["files"], row["state"]) == (name, [str(image)], "running")
    assert domains.definition(guest.domain) == before
    assert not any(pool[1].glob(".kvmctl-*"))


def test_a_folder_of_others_is_taken(kvmctl: Kvmctl, home: Path, pool: Pool, hypervisor: Hypervisor) -> None:
    image = pool[1] / f"{home.name}.qcow2"
    for what, expected in ((FULL, 1), ("20260102", 2), ("2026", 3)):
        run(kvmctl, "import", home, "--at", what)
        assert filled(image) == [value <= expected for value in (1, 2, 3)]
        Guest(hypervisor, home.name).remove()
    run(kvmctl, "import", home / NEXT)
    assert filled(image) == [True, True, False]


def test_a_dry_run_makes_nothing(kvmctl: Kvmctl, hypervisor: Hypervisor, home: Path, pool: Pool) -> None:
    row = run(kvmctl, "import", home, "--dry-run", code=10)
    assert row["files"] == [str(pool[1] / f"{home.name}.qcow2")]
    assert list(pool[1].iterdir()) == []
    assert home.name not in domains.names(hypervisor)
    disks.write(home / FULL / "disks/vda.qcow2", 9)
    run(kvmctl, "import", home, "--dry-run", code=2)


def test_what_is_in_a_folder(kvmctl: Kvmctl, home: Path) -> None:
    shown = kvmctl("-o", "json", "inspect", home.parent, "--verify").json()
    assert (shown["guest"], shown["backup"], shown["verified"]) == (home.name, LAST, True)
    assert [one["name"] for one in shown["backups"]] == list(IDS)
    shutil.rmtree(home / NEXT)
    shown = kvmctl("-o", "json", "inspect", home, "--at", FULL).json()
    assert [one["restorable"] for one in shown["backups"]] == [True, False]
    assert "is not there" in kvmctl("inspect", home, code=4).err
    assert home.name in kvmctl("inspect", home / FULL).out


def test_which_folder_and_which_backup(kvmctl: Kvmctl, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, home.parent / "another")
    assert "several guests" in run(kvmctl, "import", home.parent, code=2)
    assert "begins with 2031" in run(kvmctl, "import", home, "--at", "2031", code=3)
    assert "one backup already" in run(kvmctl, "import", home / FULL, "--at", FULL, code=2)
    assert "holds no backup" in run(kvmctl, "import", tmp_path, code=2)
    assert "--at" in run(kvmctl, "import", home / FULL / "backup.json", "--at", FULL, code=2)


def edit_disk(id_: str, change: Callable[[Path], Any], signed: bool = False) -> Callable[[Path], Any]:
    """A disk is changed; with `signed` its manifest is too, as who can write to the folder would."""

    def edit(home: Path) -> None:
        change(home / id_ / "disks/vda.qcow2")
        if signed:
            backupfolders.write(home, id_)

    return edit


def move_disks(home: Path) -> None:
    (home / NEXT / "disks").rename(home.parent / "aside")
    (home / NEXT / "disks").symlink_to(home.parent / "aside")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_manifests(home: Path) -> None:
    for id_ in IDS:
        backupfolders.link(home / id_ / "backup.json", Path("/etc/passwd"))


def edit_manifests(ids: Sequence[str], **values: Any) -> Callable[[Path], Any]:
    def edit(home: Path) -> None:
        for id_ in ids:
            backupfolders.write(home, id_, lambda found: found.update(values))

    return edit


def rename_guest(home: Path) -> None:
    definition = home / LAST / "domain.xml"
    definition.write_text(definition.read_text().replace(home.name, "x"))
    backupfolders.write(home, LAST)


HOSTILE: dict[str, tuple[int, str, Callable[[Path], Any]]] = {
    "one that is missing": (4, "is not there", lambda home: shutil.rmtree(home / NEXT)),
    "the full one missing": (4, "is not there", lambda home: shutil.rmtree(home / FULL)),
    "a disk that is missing": (2, "cannot read", edit_disk(NEXT, Path.unlink)),
    "a disk cut off": (2, "its sum", edit_disk(FULL, lambda path: os.truncate(path, 65536))),
    "another content": (2, "its sum", edit_disk(NEXT, lambda path: disks.write(path, 8, at=5))),
    "a backing file of the host": (
        5,
        "names another file",
        edit_disk(NEXT, lambda path: backupfolders.rebase(path, "/etc/passwd", "raw"), signed=True),
    ),
    "a backing file that is probed": (
        5,
        "backing format",
        edit_disk(NEXT, lambda path: backupfolders.rebase(path, f"../../{FULL}/disks/vda.qcow2", "raw"), signed=True),
    ),
    "a full one over something": (
        5,
        "backing file",
        edit_disk(FULL, lambda path: backupfolders.rebase(path, "/etc/passwd", "raw"), signed=True),
    ),
    "a link": (2, "cannot read", edit_disk(NEXT, lambda path: backupfolders.link(path, Path("/etc/passwd")))),
    "a pipe": (2, "not a plain file", edit_disk(NEXT, pipe)),
    "a folder that is a link": (2, "cannot read", move_disks),
    "an image of another size": (
        2,
        "shows",
        edit_disk(LAST, lambda path: subprocess.run(["qemu-img", "resize", "-q", path, "8M"], check=True), signed=True),
    ),
    "a manifest that is a link": (3, "cannot read", link_manifests),
    "one of tomorrow": (3, "version 2", edit_manifests(IDS, version=2)),
    "one of another guest": (2, "another guest", edit_manifests([FULL], guest="other")),
    "a definition of another": (2, "another guest", rename_guest),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_folder_must_not_hold(what: str, kvmctl: Kvmctl, hypervisor: Hypervisor, home: Path, pool: Pool) -> None:
    code, words, change = HOSTILE[what]
    change(home)
    assert words in run(kvmctl, "import", home, code=code)
    assert list(pool[1].iterdir()) == []
    assert home.name not in domains.names(hypervisor)
    assert not (nvram.FOLDER / f"{home.name}_VARS.fd").exists()


def test_what_it_boots_from_comes_back(
    kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Names, pool: Pool, folder: Path
) -> None:
    name = make_name("backup")
    for what in ("kernel", "initrd"):
        (folder / what).write_bytes(os.urandom(5000))
    disks.define(kvmctl, name, *pool, more=f", boot: {{kernel: {folder}/kernel, initrd: {folder}/initrd}}")
    kvmctl("backup", name, folder)
    Guest(hypervisor, name).remove()
    row = run(kvmctl, "import", folder, "--pool", f"default={pool[0]}")
    for what in ("kernel", "initrd"):
        assert (pool[1] / f"{name}-{what}").read_bytes() == (folder / what).read_bytes()
    assert str(pool[1] / f"{name}-kernel") in domains.definition(Guest(hypervisor, name).domain)
    assert len(row["files"]) == 3


def test_variables_and_tpm_come_back(kvmctl: Kvmctl, hypervisor: Hypervisor, home: Path) -> None:
    definition = home / LAST / "domain.xml"
    text = (
        definition.read_text()
        .replace("<os>", "<os firmware='efi'>")
        .replace("</os>", "</os><features><acpi/></features>")
    )
    device = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>"
    definition.write_text(text.replace("</devices>", device))
    for name in backupfolders.SMALL:
        (home / LAST / name).write_bytes(name.encode())
    backupfolders.write(home, LAST)
    row = run(kvmctl, "import", home, "--name", f"{home.name}-2")
    made = Guest(hypervisor, row["name"])
    variables, state = nvram.FOLDER / f"{made.name}_VARS.fd", tpm.file(row["uuid"], "2.0")
    try:
        assert variables.read_bytes() == b"nvram.fd"
        assert state.read_bytes() == b"tpm.state"
        assert any("same keys" in text for text in row["notes"])
    finally:
        made.remove()
    assert not variables.exists()
    assert not state.exists()
