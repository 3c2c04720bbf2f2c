"""Exports that are killed with -9 leave the guest as it was, or saved, and the next runs put that right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.hypervisor import backups, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.xml.snapshot import render_backup
from tests import archives
from tests.conftest import Kvmctl, environment
from tests.support import Guest, until

pytestmark = pytest.mark.paused

Names = Callable[..., str]
Pool = tuple[str, Path]


@pytest.fixture
def guest(hypervisor: Hypervisor, make_name: Names, pool: Pool) -> Guest:
    """A paused guest with 1 GiB on its disk, so that copying takes a while."""
    name, image = make_name("killed"), pool[1] / "first.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "2G"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 1G", image], capture_output=True, check=True)
    text = archives.definition(name, devices="<memballoon model='virtio'/>").replace("/elsewhere/a.qcow2", str(image))
    domains.define(hypervisor, name, text.replace(f"<uuid>{archives.UUID}</uuid>", ""))
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    made = Guest(hypervisor, name)
    domains.start(made.domain, paused=True)
    return made


def kill_while(copies: Callable[[], object], state: Path, tmp_path: Path, *words: object) -> None:
    """Kill an export as soon as there is something of what it copies."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmctl", "-c", "qemu:///system", "export", *map(str, words)],
        env=environment(state, tmp_path / "run"),
        stderr=subprocess.DEVNULL,
    )
    until(copies, bool, 60, "what it copies")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def intents(state: Path) -> object:
    return json.loads((state / "journal.json").read_text())["intents"]


@pytest.mark.parametrize("by", ["start", "rebalance", "export"])
def test_a_saved_guest_goes_on(kvmctl: Kvmctl, guest: Guest, state: Path, tmp_path: Path, by: str) -> None:
    place = tmp_path / "files"
    place.mkdir()
    export = (guest.name, "-o", place / "a", "--with-memory")
    kill_while(lambda: list(place.glob(".kvmctl-export-*/vda.qcow2")), state, tmp_path, *export)
    assert domains.state(guest.domain) == "stopped"
    assert domains.has_saved_state(guest.domain)
    said = kvmctl("list").err
    assert guest.name in said
    assert "kvmctl start" in said
    assert domains.state(guest.domain) == "stopped"  # to look at it starts nothing
    if by == "export":
        row = kvmctl("-o", "json", "export", *export).json()[0]
        assert row["memory"] > 0
        assert [path.name for path in place.iterdir()] == ["a"]
    elif by == "start":
        kvmctl("start", guest.name)
    else:
        try:
            kvmctl("rebalance")
        finally:
            kvmctl("host", "restore")  # it sets what the host's guests weigh, too
    assert domains.state(guest.domain) == "paused"  # as it was
    assert not domains.has_saved_state(guest.domain)
    assert "killed" not in kvmctl("list").err
    assert intents(state) == {}
    assert list(place.glob(".kvmctl-*")) == []


def test_the_copy_of_a_running_guest_is_ended(
    kvmctl: Kvmctl, guest: Guest, pool: Pool, state: Path, tmp_path: Path
) -> None:
    kill_while(lambda: backups.runs(guest.domain), state, tmp_path, guest.name, "-o", tmp_path / "a")
    kvmctl("list")
    until(lambda: backups.runs(guest.domain), lambda runs: not runs, 20, "the job")
    assert list(pool[1].glob(".kvmctl-*")) == []
    assert intents(state) == {}
    kvmctl("export", guest.name, "-o", tmp_path / "a")


def test_the_job_of_somebody_else_goes_on(
    kvmctl: Kvmctl, guest: Guest, pool: Pool, state: Path, tmp_path: Path
) -> None:
    data = {"guest": guest.name, "uri": "qemu:///system", "memory": False, "folders": []}
    state.mkdir(exist_ok=True)
    journal = {
        "version": 1,
        "changes": {},
        "intents": {"export": {guest.domain.UUIDString(): {"data": data, "time": 1}}},
    }
    (state / "journal.json").write_text(json.dumps(journal))
    backups.begin(guest.domain, render_backup({"vda": f"{pool[1]}/theirs.qcow2"}, None, ()), None)
    kvmctl("list")
    assert backups.runs(guest.domain) or backups.failure(guest.domain) is None
    backups.abort(guest.domain)
    until(lambda: backups.runs(guest.domain), lambda runs: not runs, 20, "the job")
