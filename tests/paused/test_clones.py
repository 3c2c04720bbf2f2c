"""Copies of real guests: their disks, what is theirs alone, and that the original's images are left as they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control import clone, seed
from kvmctl.host import qemu_img
from kvmctl.host.files import birth
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml import identity, metadata
from tests import disks
from tests.conftest import Kvmctl, environment
from tests.support import Guest

pytestmark = pytest.mark.paused

Pool = tuple[str, Path]


@pytest.fixture
def guest(kvmctl: Kvmctl, hypervisor: Hypervisor, make_name: Callable[..., str], pool: Pool) -> Callable[..., Guest]:
    def make(state: str = "stopped", **more: object) -> Guest:
        name = make_name("clone")
        disks.define(kvmctl, name, *pool, state=state, **more)  # type: ignore[arg-type]
        return Guest(hypervisor, name)

    return make


def test_a_full_copy_shares_nothing(
    kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str], pool: Pool
) -> None:
    one = guest(formats=("qcow2", "raw"), more=", nics: [{user: true}], labels: {tier: front}, vnc: {port: 5999}")
    for index, value in enumerate((1, 2)):
        disks.write(disks.disk(one, index), value)
    new = Guest(one.hypervisor, make_name("copy"))
    said = kvmctl("clone", one.name, new.name, "-o", "json").json()[0]
    assert (said["kind"], said["over"]) == ("full", [])
    assert said["uuid"] == new.domain.UUIDString()
    assert [disks.holds(disks.disk(new, index), value) for index, value in enumerate((1, 2))] == [True, True]
    assert [disks.form(disks.disk(new, index)) for index in (0, 1)] == ["qcow2", "raw"]
    disks.write(disks.disk(one), 9)
    assert disks.holds(disks.disk(new), 1)
    texts = [domains.definition(which.domain) for which in (one, new)]
    old, own = map(identity.read, texts)
    assert old.uuid != own.uuid
    assert not set(old.macs) & set(own.macs)
    assert metadata.read(texts[1]).labels == (("tier", "front"),)
    kvmctl("start", one.name, new.name, "--paused")
    assert {disks.disk(new, index).parent for index in (0, 1)} == {pool[1]}


def test_a_guest_that_runs_is_copied_as_it_is_at_one_moment(
    kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str]
) -> None:
    one = guest("paused")
    disks.write_live(one, 5)
    new = Guest(one.hypervisor, make_name("copy"))
    assert "not frozen" in kvmctl("clone", one.name, new.name).err
    disks.write_live(one, 6)
    assert disks.holds(disks.disk(new), 5)
    assert one.domain.isActive()
    assert not new.domain.isActive()


def test_linked_copies_protect_what_they_are_over(
    kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str]
) -> None:
    one = guest()
    base = disks.disk(one)
    disks.write(base, 1)
    copies = [Guest(one.hypervisor, make_name("copy")) for _ in range(2)]
    for copy in copies:
        said = kvmctl("clone", one.name, copy.name, "--linked", "-o", "json").json()[0]
        assert said["over"] == [str(base)]
    # The second found the original as the first had left it.
    assert len(qemu_img.chain(str(disks.disk(one)), "qcow2")) == 2
    kvmctl("start", one.name, *(copy.name for copy in copies), "--paused")
    for value, each in enumerate((one, *copies), 2):
        disks.write_live(each, value)
    assert [disks.holds(disks.disk(each), value) for value, each in enumerate((one, *copies), 2)] == [True] * 3
    assert disks.holds(base, 1)
    name = kvmctl("snapshot", "list", one.name, "-o", "name").out.strip()
    said = kvmctl("snapshot", "delete", one.name, name, "--yes", code=5)
    assert "linked clones need it" in said.err
    assert disks.holds(base, 1)
    said = kvmctl("delete", one.name, "--force", "--disks", "--yes")
    assert f"{base}  (" in said.err
    assert f"guest {copies[0].name} uses it" in said.err or f"guest {copies[1].name} uses it" in said.err
    assert base.exists()
    assert disks.holds(disks.disk(copies[0]), 3)
    kvmctl("delete", *(copy.name for copy in copies), "--force", "--disks", "--yes")
    assert base.exists()  # it was nobody's any more: what is not named is not deleted


def test_a_linked_copy_of_a_snapshot(
    kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str], pool: Pool
) -> None:
    one = guest("paused")
    disks.write_live(one, 1)
    kvmctl("snapshot", "create", one.name, "golden", "--disk-only")
    disks.write_live(one, 2)
    new = Guest(one.hypervisor, make_name("copy"))
    kvmctl("clone", one.name, new.name, "--linked", "--snapshot", "golden")
    assert disks.holds(disks.disk(new), 1)
    kvmctl("delete", new.name, "--disks", "--yes")
    assert "keeps no image" not in kvmctl("snapshot", "delete", one.name, "golden", "--yes").err
    assert [path.name for path in pool[1].iterdir()] == [f"{one.name}-0.qcow2"]
    kvmctl("clone", one.name, new.name, "--linked", "--snapshot", "golden", code=3)


def test_deleting_a_guest_takes_the_images_below_its_snapshots(
    kvmctl: Kvmctl, guest: Callable[..., Guest], pool: Pool
) -> None:
    one = guest("paused")
    for name in ("a", "b"):
        kvmctl("snapshot", "create", one.name, name, "--disk-only")
    assert len(list(pool[1].iterdir())) == 3
    kvmctl("delete", one.name, "--force", "--disks", "--yes")
    assert list(pool[1].iterdir()) == []


def test_what_apply_says_of_a_guest_stays_true_over_its_snapshots(
    kvmctl: Kvmctl, guest: Callable[..., Guest], pool: Pool
) -> None:
    one = guest("paused")
    kvmctl("snapshot", "create", one.name, "a", "--disk-only")
    now = disks.disk(one)
    text = (
        f"guests: [{{name: {one.name}, memory: {{size: 64MiB}}, description: new, "
        f"disks: [{{volume: {one.name}-0.qcow2, pool: {pool[0]}, size: 4MiB, format: qcow2}}]}}]"
    )
    changed = kvmctl("apply", "-f", "-", "-o", "json", stdin=text).json()
    assert [change["field"] for change in changed] == ["description"]
    assert disks.disk(one) == now


def test_a_copy_is_another_instance_for_cloud_init(
    kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str]
) -> None:
    one = guest(more=", cloud-init: {user: ann}")
    new = Guest(one.hypervisor, make_name("copy"))
    kvmctl("clone", one.name, new.name)
    try:
        paths = [metadata.read(domains.definition(each.domain)).cloud_init for each in (one, new)]
        first, second = [dict(seed.read_image(Path(path.seed or "").read_bytes())) for path in paths if path]
        assert new.name.encode() in second["meta-data"]
        assert one.name.encode() in first["meta-data"]
        assert one.name.encode() not in second["meta-data"] + second["user-data"]
    finally:
        kvmctl("delete", one.name, new.name, "--yes")
    assert not [path for path in paths if path and Path(path.seed or "").exists()]


def test_uefi_variables_are_copied(kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str]) -> None:
    one = guest("paused", more=", boot: {firmware: uefi}")
    variables = Path("/var/lib/libvirt/qemu/nvram") / f"{one.name}_VARS.fd"
    kvmctl("stop", one.name, "--force", "--timeout", "0")
    content = bytearray(variables.read_bytes())
    content[-64:] = b"a mark of this test".ljust(64)
    variables.write_bytes(content)
    new = Guest(one.hypervisor, make_name("copy"))
    kvmctl("clone", one.name, new.name)
    kvmctl("start", new.name, "--paused")
    copy = variables.with_name(f"{new.name}_VARS.fd")
    assert str(copy) in domains.live_definition(new.domain)
    assert copy.read_bytes() == bytes(content)
    kvmctl("delete", new.name, one.name, "--force", "--yes")
    assert not copy.exists()


def test_names_that_are_taken_and_names_that_are_none(
    kvmctl: Kvmctl, guest: Callable[..., Guest], make_name: Callable[..., str], pool: Pool
) -> None:
    one = guest()
    kvmctl("clone", one.name, one.name, code=4)
    for wrong in ("1", "a/b", "..", "-x", "x" * 64):
        kvmctl("clone", "--", one.name, wrong, code=2)
    kvmctl("clone", "kvmctl-test-nobody", "x", code=3)
    kvmctl("clone", one.name, "x", "--snapshot", "y", code=2)
    new = make_name("copy")
    (pool[1] / f"{new}-vda.qcow2").write_bytes(b"mine")
    for option in ([], ["--linked"]):
        assert "exists already" in kvmctl("clone", one.name, new, *option, code=4).err
    assert (pool[1] / f"{new}-vda.qcow2").read_bytes() == b"mine"
    assert new not in domains.names(one.hypervisor)
    # The snapshot that a linked copy began with is gone with it.
    assert kvmctl("snapshot", "list", one.name, "-o", "name").out == ""
    assert len(qemu_img.chain(str(disks.disk(one)), "qcow2")) == 1


def test_what_a_killed_run_left_is_told_from_what_came_after_it(
    kvmctl: Kvmctl,
    guest: Callable[..., Guest],
    make_name: Callable[..., str],
    pool: Pool,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The owner has cleared up by hand, and made files of the same names, or guests of those that there were."""
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))
    one, others = guest(), guest()
    used, later, left, half, unknown = (disks.disk(others), *(pool[1] / f"{n}.qcow2" for n in "abcd"))
    for path in (later, left, unknown):
        path.write_bytes(b"x")
    half.touch()
    files = {str(path): birth(path) for path in (used, later, left)} | {str(half): None, str(unknown): None}
    later.unlink()
    later.write_bytes(b"x")
    data = {"uri": "qemu:///system", "uuid": str(uuid.uuid4()), "files": files}
    Journal().begin(clone.INTENT, "kvmctl-test-gone", data)
    new = make_name("copy")
    kvmctl("clone", one.name, new)
    assert [path.exists() for path in (used, later, unknown)] == [True, True, True]
    assert [path.exists() for path in (left, half)] == [False, False]
    assert not Journal().unfinished()


@pytest.mark.parametrize("live", [True, False])
def test_a_run_that_is_killed_has_taken_down_what_it_makes(
    kvmctl: Kvmctl,
    guest: Callable[..., Guest],
    make_name: Callable[..., str],
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hypervisor: Hypervisor,
    live: bool,
) -> None:
    """It is killed as soon as all of it is copied."""
    one = guest("paused" if live else "stopped", more=", boot: {firmware: uefi}, cloud-init: {user: ann}")
    if live:
        disks.write_live(one, 1)
    new = make_name("copy")
    program = (
        "import os, signal, sys; from kvmctl.control import clone; from kvmctl.__main__ import main; "
        "clone._define = lambda *_: os.kill(os.getpid(), signal.SIGKILL); main()"
    )
    words = [sys.executable, "-c", program, "clone", one.name, new]
    done = subprocess.run(words, env=environment(state, tmp_path / "run"), capture_output=True, text=True, check=False)
    kvmctl("delete", one.name, "--force", "--yes")
    assert done.returncode == -signal.SIGKILL, done.stderr
    monkeypatch.setenv("KVMCTL_STATE_DIR", str(state))
    (intent,) = Journal().unfinished()
    assert len(intent.data["files"]) >= (3 if live else 2)
    assert all(birth(path) == noted for path, noted in intent.data["files"].items())
    assert None not in intent.data["files"].values()
    clone.recover(hypervisor, new)
    assert not [path for path in intent.data["files"] if Path(path).exists()]


@pytest.mark.parametrize("linked", [[], ["--linked"]])
def test_runs_that_are_killed_leave_a_whole_copy_or_none(
    kvmctl: Kvmctl,
    guest: Callable[..., Guest],
    make_name: Callable[..., str],
    pool: Pool,
    state: Path,
    tmp_path: Path,
    linked: list[str],
) -> None:
    one = guest()
    for at in range(60):
        disks.write(disks.disk(one), 1, at)
    for moment in (0.45, 0.6, 0.75, 0.9):
        new = Guest(one.hypervisor, make_name("copy"))
        running = subprocess.Popen(
            [sys.executable, "-m", "kvmctl", "clone", one.name, new.name, *linked],
            env=environment(state, tmp_path / "run"),
        )
        time.sleep(moment)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        whole = new.name in domains.names(one.hypervisor)
        kvmctl("clone", one.name, new.name, *linked, code=4 if whole else 0)
        assert disks.holds(disks.disk(new), 1, 59)
        assert "no run was interrupted" in kvmctl("host", "doctor", code=None).out
        kvmctl("delete", new.name, "--disks", "--yes")
        assert not [path for path in pool[1].iterdir() if path.name.startswith(new.name)]
