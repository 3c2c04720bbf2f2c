"""Snapshots of real guests: what their disks hold before and after says whether they are what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmctl.control import snapshot_images, snapshots
from kvmctl.control.snapshots import existing, facts_of
from kvmctl.host import qemu_img
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError
from tests import disks
from tests.conftest import Kvmctl, environment
from tests.support import Guest

pytestmark = pytest.mark.paused

Pool = tuple[str, Path]


@pytest.fixture
def guest(kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str], pool: Pool) -> Callable[..., Guest]:
    def make(state: str = "stopped", **more: str) -> Guest:
        name = make_name("snap")
        disks.define(kvmctl, name, *pool, state=state, **more)  # type: ignore[arg-type]
        return Guest(hypervisor, name)

    return make


def listed(kvmctl: Kvmctl, name: str) -> dict[str, tuple[str | None, str, bool, bool]]:
    found = kvmctl("snapshot", "list", name, "-o", "json").json()
    return {one["name"]: (one["parent"], one["kind"], one["memory"], one["current"]) for one in found}


def test_a_guest_that_is_off_goes_back_and_forth(kvmctl: Kvmctl, guest: Callable[..., Guest]) -> None:
    one = guest()
    image = disks.disk(one)
    disks.write(image, 1)
    said = kvmctl("snapshot", "create", one.name, "first", "--description", "before <that> & this")
    assert "it is off" in said.err
    disks.write(image, 2)
    kvmctl("snapshot", "create", one.name, "second")
    assert listed(kvmctl, one.name) == {
        "first": (None, "internal", False, False),
        "second": ("first", "internal", False, True),
    }
    disks.write(image, 3)
    assert "no way back" not in kvmctl("snapshot", "revert", one.name, "first", code=5).err
    assert disks.holds(image, 3)
    kvmctl("snapshot", "revert", one.name, "first", "--yes")
    assert disks.holds(image, 1)
    kvmctl("snapshot", "revert", one.name, "second", "--yes")
    assert disks.holds(image, 2)
    kvmctl("snapshot", "delete", one.name, "first", "--yes")
    assert listed(kvmctl, one.name) == {"second": (None, "internal", False, True)}
    assert qemu_img.image(str(image), "qcow2").snapshots == ("second",)
    assert kvmctl("snapshot", "list", one.name, "-o", "name").out == "second\n"
    table = kvmctl("snapshot", "list", one.name).out
    assert table.splitlines()[0].split() == ["NAME", "NOW", "KIND", "MEMORY", "STATE", "CREATED", "DESCRIPTION"]


def test_memory_and_disks_come_back_together(kvmctl: Kvmctl, guest: Callable[..., Guest]) -> None:
    one = guest("paused")
    disks.write_live(one, 1)
    assert "memory and its disks" in kvmctl("snapshot", "create", one.name, "m").err
    assert listed(kvmctl, one.name) == {"m": (None, "internal", True, True)}
    disks.write_live(one, 2)
    kvmctl("stop", one.name, "--force", "--timeout", "0")
    said = kvmctl("snapshot", "revert", one.name, "m", "--yes")
    assert "and paused" in said.err
    assert one.domain.isActive()
    assert disks.holds(disks.disk(one), 1)


def test_overlays_of_a_running_guest_are_merged_while_it_runs(
    kvmctl: Kvmctl, guest: Callable[..., Guest], pool: Pool
) -> None:
    one = guest("paused")
    base = disks.disk(one)
    disks.write_live(one, 1)
    assert "no agent" in kvmctl("snapshot", "create", one.name, "a", "--disk-only").err
    disks.write_live(one, 2)
    kvmctl("snapshot", "create", one.name, "b", "--disk-only")
    disks.write_live(one, 3)
    assert listed(kvmctl, one.name) == {"a": (None, "external", False, False), "b": ("a", "external", False, True)}
    assert [Path(image.path).name for image in qemu_img.chain(str(disks.disk(one)), "qcow2")] == [
        f"{one.name}-vda.b.qcow2",
        f"{one.name}-vda.a.qcow2",
        base.name,
    ]
    assert disks.holds(base, 1)
    # In the middle of the chain, then at its top.
    kvmctl("snapshot", "delete", one.name, "a", "--yes")
    assert disks.holds(base, 2)
    assert disks.holds(disks.disk(one), 3)
    kvmctl("snapshot", "delete", one.name, "b", "--yes")
    assert disks.disk(one) == base
    assert disks.holds(base, 3)
    assert listed(kvmctl, one.name) == {}
    assert [path.name for path in pool[1].iterdir()] == [base.name]


def test_overlays_of_a_guest_that_is_off(kvmctl: Kvmctl, guest: Callable[..., Guest], pool: Pool) -> None:
    one = guest("stopped", formats=("raw", "qcow2"))
    images = [disks.disk(one, index) for index in (0, 1)]
    for value, name in enumerate(("a", "b"), 1):
        for index in (0, 1):
            disks.write(disks.disk(one, index), value)
        kvmctl("snapshot", "create", one.name, name)
    for index in (0, 1):
        disks.write(disks.disk(one, index), 3)
    said = kvmctl("snapshot", "revert", one.name, "a", "--yes", code=5)
    assert "later ones, whose images would be lost: b" in said.err
    kvmctl("snapshot", "revert", one.name, "b", "--yes")
    assert [disks.holds(disks.disk(one, index), 2) for index in (0, 1)] == [True, True]
    kvmctl("start", one.name, "--paused")
    assert "stop" in kvmctl("snapshot", "revert", one.name, "b", "--yes", code=4).err
    disks.write_live(one, 4)
    kvmctl("snapshot", "revert", one.name, "b", "--yes", "--force")
    assert not one.domain.isActive()
    assert disks.holds(disks.disk(one), 2)
    kvmctl("snapshot", "delete", one.name, "a", "--yes")
    kvmctl("snapshot", "delete", one.name, "b", "--yes")
    assert [disks.disk(one, index) for index in (0, 1)] == images
    assert [disks.holds(image, 2) for image in images] == [True, True]
    assert {path.name for path in pool[1].iterdir()} == {image.name for image in images}
    kvmctl("start", one.name, "--paused")


def test_a_revert_that_was_cut_off_between_two_disks_is_finished(
    kvmctl: Kvmctl, guest: Callable[..., Guest], hypervisor: Hypervisor, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))
    one = guest("stopped", formats=("raw", "qcow2"))
    kvmctl("snapshot", "create", one.name, "a")
    for index in (0, 1):
        disks.write(disks.disk(one, index), 7)
    facts, (taken,) = facts_of(one.domain), existing(one.domain)
    renames = snapshot_images.prepare(hypervisor, facts, taken)
    data = {"guest": one.name, "uri": hypervisor.uri, "renames": renames}
    Journal().begin(snapshot_images.REVERT, facts.uuid, data)
    Path(renames[0][0]).replace(renames[0][1])
    assert "snapshot list" in kvmctl("host", "doctor", code=None).out
    kvmctl("snapshot", "list", one.name)
    assert [disks.holds(disks.disk(one, index), 0) for index in (0, 1)] == [True, True]
    assert not [new for new, _overlay in renames if Path(new).exists()]
    assert "no run was interrupted" in kvmctl("host", "doctor", code=None).out


def test_nothing_is_begun_over_what_a_merge_has_half_written(
    kvmctl: Kvmctl, guest: Callable[..., Guest], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The overlay masks what the merge wrote below it: it is the only place where the guest's state now is whole."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))
    one = guest("paused", formats=("qcow2",))
    base = disks.disk(one)
    kvmctl("snapshot", "create", one.name, "a", "--disk-only")
    kvmctl("stop", one.name, "--force", "--timeout", "0")
    overlay = disks.disk(one)
    for at in (0, 1):
        disks.write(overlay, 5, at)
    Journal().begin(snapshot_images.MERGE, str(overlay), {"guest": one.name, "uri": "qemu:///system"})
    disks.write(base, 5)  # what a merge that was cut off has come to
    before = overlay.stat().st_ino
    copy = f"{one.name}-2"
    for words in (
        ("snapshot", "revert", one.name, "a", "--yes"),
        ("clone", one.name, copy, "--linked", "--snapshot", "a"),
    ):
        said = kvmctl(*words, code=5).err
        assert "cut off" in said
        assert f"snapshot delete {one.name} a" in said
    assert overlay.stat().st_ino == before
    assert [path.name for path in overlay.parent.iterdir() if path.name.startswith(copy)] == []
    assert all(disks.holds(overlay, 5, at) for at in (0, 1))
    kvmctl("snapshot", "delete", one.name, "a", "--yes")
    assert disks.disk(one) == base
    assert all(disks.holds(base, 5, at) for at in (0, 1))


@pytest.mark.parametrize("moment", ["before", "after", "meanwhile"])
def test_a_guest_that_is_started_right_after_its_merge_keeps_its_overlay(
    kvmctl: Kvmctl,
    guest: Callable[..., Guest],
    state: Path,
    tmp_path: Path,
    hypervisor: Hypervisor,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """It is started before the guest is looked at, after that, or before and is off again, with something written."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))
    monkeypatch.setenv("KVMCTL_RUN_DIR", str(tmp_path / "run"))
    one = guest("paused")
    base = disks.disk(one)
    kvmctl("snapshot", "create", one.name, "a", "--disk-only")
    kvmctl("stop", one.name, "--force", "--timeout", "0")
    overlay = disks.disk(one)
    disks.write(overlay, 5)
    before = domains.definition(one.domain)

    def start(*_: object) -> None:
        if not one.domain.isActive():
            domains.start(one.domain, paused=True)
            disks.write_live(one, 6, 1)
        if moment == "meanwhile":
            domains.power_off(one.domain)

    real = domains.define

    def define(*words: Any) -> Any:
        start()
        return real(*words)

    with monkeypatch.context() as patched:
        if moment == "after":
            patched.setattr(domains, "define", define)
        else:
            patched.setattr(qemu_img, "sync", start)
        with pytest.raises(ConflictError, match="was started"):
            snapshots.delete(
                hypervisor, (domains.sample_one(one.domain), one.domain), "a", print, lambda _what, _done: None
            )
    assert one.domain.isActive() == (moment != "meanwhile")
    assert disks.disk(one) == overlay
    assert disks.holds(overlay, 6, 1)
    assert domains.definition(one.domain) == before
    assert [intent.key for intent in Journal(state / "journal.json").unfinished()] == [str(overlay)]
    kvmctl("snapshot", "delete", one.name, "a", "--yes")
    assert disks.disk(one) == base
    assert [disks.holds(base, 5), disks.holds(base, 6, 1)] == [True, True]
    assert not overlay.exists()


@pytest.mark.parametrize("running", [True, False])
def test_merges_that_are_killed_lose_nothing_and_go_on(
    kvmctl: Kvmctl, guest: Callable[..., Guest], pool: Pool, state: Path, tmp_path: Path, running: bool
) -> None:
    one = guest("paused")
    base = disks.disk(one)
    for moment in (0.5, 0.6, 0.7, 0.8, 0.9):
        kvmctl("snapshot", "create", one.name, "a", "--disk-only")
        value = int(moment * 10)
        for at in range(50):
            disks.write_live(one, value, at)
        if not running:
            kvmctl("stop", one.name, "--force", "--timeout", "0")
        process = subprocess.Popen(
            [sys.executable, "-m", "kvmctl", "snapshot", "delete", one.name, "a", "--yes"],
            env=environment(state, tmp_path / "run"),
        )
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if not running:
            kvmctl("start", one.name, "--paused")
        disks.write_live(one, value, 50)
        kvmctl("snapshot", "delete", one.name, "a", "--yes", code=None)
        assert disks.disk(one) == base
        assert [path.name for path in pool[1].iterdir()] == [base.name]
        assert all(disks.holds(base, value, at) for at in (0, 49, 50))
        assert listed(kvmctl, one.name) == {}
        assert "no run was interrupted" in kvmctl("host", "doctor", code=None).out


def test_what_cannot_be_kept_is_said(kvmctl: Kvmctl, guest: Callable[..., Guest]) -> None:
    one = guest("paused", formats=("raw", "qcow2"))
    said = kvmctl("snapshot", "create", one.name, "a", "--memory", code=5)
    assert "disk vda is raw" in said.err
    assert "--disk-only" in said.err
    kvmctl("snapshot", "create", one.name, "a", "--disk-only")
    assert "already" in kvmctl("snapshot", "create", one.name, "a", "--disk-only", code=4).err
    kvmctl("snapshot", "delete", one.name, "a", code=5)
    assert list(listed(kvmctl, one.name)) == ["a"]
