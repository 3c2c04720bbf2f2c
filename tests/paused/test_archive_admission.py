"""What an import starts is admitted as any start is, also when somebody was quicker while it read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.archives import Archive, definition
from tests.conftest import Kvmctl, environment
from tests.support import Guest, until

pytestmark = pytest.mark.paused

Names = Callable[..., str]
Pool = tuple[str, Path]
URI = "qemu:///system"


def promising(name: str, cores: float) -> str:
    said = f"<kvmctl:guest xmlns:kvmctl='urn:kvmctl:guest:1'><kvmctl:cpu reservation='{cores}'/></kvmctl:guest>"
    text = definition(name, inside=f"<metadata>{said}</metadata>")
    return text.replace("<vcpu>1</vcpu>", f"<vcpu>{os.cpu_count()}</vcpu>")


@pytest.fixture
def archive(make_name: Names, pool: Pool, tmp_path: Path) -> Archive:
    """A guest to which two thirds of the host's cores are promised, with a disk that does not compress."""
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(os.urandom(4 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    name = make_name("promised")
    made = Archive(name, image.read_bytes(), promising(name, (os.cpu_count() or 1) * 2 / 3), pool[0])
    made.manifest["parts"][1]["capacity"] = 4 << 20
    return made


@pytest.fixture
def other(hypervisor: Hypervisor, make_name: Names, pool: Pool) -> Guest:
    """A guest that is off, to which two thirds are promised too."""
    name, image = make_name("quicker"), pool[1] / "other.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    text = promising(name, (os.cpu_count() or 1) * 2 / 3).replace("/elsewhere/a.qcow2", str(image))
    domains.define(hypervisor, name, text.replace("11111111-2222", "11111111-3333"))
    return Guest(hypervisor, name)


def test_somebody_is_quicker(
    kvmctl: Kvmctl, hypervisor: Hypervisor, archive: Archive, other: Guest, pool: Pool, state: Path, tmp_path: Path
) -> None:
    whole = archive.write(tmp_path / "a").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmctl", "-c", URI, "import", "-", "--start"],
        env=environment(state, tmp_path / "run"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(whole[: len(whole) // 2])
    process.stdin.flush()
    until(lambda: list(pool[1].glob(".kvmctl-import-*")), bool, 30, "its folder")  # so it was admitted
    kvmctl("start", other.name, "--paused")
    _out, said = process.communicate(whole[len(whole) // 2 :], timeout=60)
    assert process.returncode == 5, said
    assert b"CPU reservations" in said
    assert archive.name not in domains.names(hypervisor)
    assert [path.name for path in pool[1].iterdir()] == ["other.qcow2"]


def test_one_that_stays_off_promises_nothing_yet(
    kvmctl: Kvmctl, archive: Archive, other: Guest, tmp_path: Path
) -> None:
    kvmctl("start", other.name, "--paused")
    path = archive.write(tmp_path / "a")
    for words in (["--start"], ["--start", "--dry-run"]):
        assert "CPU reservations" in kvmctl("-c", URI, "import", path, *words, code=5).err
    said = kvmctl("-c", URI, "import", path).err
    assert "stays off, and could not be started" in said
    assert "CPU reservations" in kvmctl("start", archive.name, code=5).err


def test_force_breaks_the_promise_and_says_so_once(
    kvmctl: Kvmctl, archive: Archive, other: Guest, state: Path, tmp_path: Path
) -> None:
    kvmctl("start", other.name, "--paused")
    said = kvmctl("-c", URI, "import", archive.write(tmp_path / "a"), "--start", "--force").err
    assert said.count("promises will not be kept") == 1
    assert (state / "history.jsonl").read_text().count("forced: ") == 1
