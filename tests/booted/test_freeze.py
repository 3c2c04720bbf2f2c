"""A guest with an agent is frozen for the moment that its disks are of, and thawed again, also by the run after one
that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor.connection import Hypervisor
from tests import agent
from tests.conftest import Kvmctl, environment
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted


@pytest.fixture
def with_agent(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
    pool: tuple[str, Path],
) -> tuple[Guest, Console]:
    """A booted guest with a disk, whose agent answers."""
    name = make_name("agent")
    kernel = f"kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet"
    kvmctl(
        "apply",
        "-f",
        "-",
        stdin=f"guests:\n  - name: {name}\n    accelerator: {accelerator}\n    memory: {{size: 256MiB}}\n"
        f"    agent: true\n    boot: {{{kernel}}}\n"
        f"    disks: [{{volume: {name}.qcow2, pool: {pool[0]}, size: 4MiB}}]\n",
    )
    guest = Guest(hypervisor, name)
    line = console(guest)
    line.ready()
    agent.begin(guest, line)
    return guest, line


@pytest.fixture
def folder(pool: tuple[str, Path]) -> Iterator[Path]:
    """A folder that QEMU can enter."""
    import shutil

    path = pool[1] / "out"
    path.mkdir(mode=0o711)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("what", ["export", "backup", "snapshot"])
def test_its_disks_are_taken_while_it_is_frozen(
    kvmctl: Kvmctl, with_agent: tuple[Guest, Console], folder: Path, state: Path, what: str
) -> None:
    guest, line = with_agent
    words: dict[str, list[object]] = {
        "export": ["export", guest.name, "-o", folder / "a"],
        "backup": ["backup", guest.name, folder],
        "snapshot": ["snapshot", "create", guest.name, "s", "--disk-only"],
    }
    said = kvmctl(*words[what]).err
    assert "held still" in said or "were frozen" in said
    assert agent.told(line)[:2] == ["freeze", "thaw"]
    assert json.loads((state / "journal.json").read_text())["intents"] == {}


@pytest.mark.parametrize("what", ["export", "backup"])
def test_the_run_after_a_killed_one_thaws_it(
    kvmctl: Kvmctl, with_agent: tuple[Guest, Console], folder: Path, state: Path, tmp_path: Path, what: str
) -> None:
    guest, line = with_agent
    line.run(": >/run/hold")
    target = ["-o", str(folder / "a")] if what == "export" else [str(folder)]
    running = subprocess.Popen(
        [sys.executable, "-m", "kvmctl", what, guest.name, *target],
        env=environment(state, tmp_path / "run"),
        stderr=subprocess.DEVNULL,
    )
    until(lambda: agent.told(line), lambda said: said == ["freeze"], 60, "the freeze")
    assert "thawed" not in kvmctl("list").err  # it is that run's business, and it lives
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    line.run("rm /run/hold")
    said = until(lambda: kvmctl("list").err, lambda err: "are thawed" in err, 30, "what the next run says")
    assert guest.name in said
    assert agent.told(line)[-1] == "thaw"
    assert "frozen" not in kvmctl("list").err
    kvmctl(what, guest.name, *target)
