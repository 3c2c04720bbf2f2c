"""Guests of this machine's libvirt become files, and files become guests: stopped, paused, with memory; and hostile
files leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kvmctl.control import export as exporting
from kvmctl.control import moment, nvram
from kvmctl.control.meter import Silent
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import RefusedError
from kvmctl.xml import metadata
from tests.archives import Archive
from tests.conftest import Kvmctl, environment
from tests.support import Guest, Screen, until

pytestmark = pytest.mark.paused

URI = "qemu:///system"
GIB = 1 << 30
MakeName = Callable[..., str]
Pool = tuple[str, Path]


def run_image(*words: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=True)
    return done.stdout


def disk(path: Path, size: str = "64M", *options: str) -> Path:
    run_image("create", "-q", "-f", "qcow2", *options, path, size)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 2M", path], capture_output=True, check=True)
    return path


def same(one: Path, other: Path) -> None:
    assert "identical" in run_image("compare", "-U", "-f", "qcow2", "-F", "qcow2", one, other)


def define(hypervisor: Hypervisor, name: str, image: Path, devices: str = "", firmware: str = "") -> Guest:
    text = (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        f"<genid/><os {firmware}><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>"
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>"
        "<target dev='vda' bus='virtio'/></disk><interface type='user'/><memballoon model='virtio'/>"
        f"{devices}</devices></domain>"
    )
    domains.define(hypervisor, name, text)
    return Guest(hypervisor, name)


@pytest.fixture
def name(make_name: MakeName) -> str:
    return make_name("archive")


@pytest.fixture
def guest(hypervisor: Hypervisor, name: str, pool: Pool) -> Guest:
    """A guest that is off, with one disk in a pool of its own."""
    made = define(hypervisor, name, disk(pool[1] / "first.qcow2"))
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def nothing_is_left(pool: Pool) -> Iterator[None]:
    yield
    folders = (pool[1], Path("/var/tmp"))
    assert [path for folder in folders for path in folder.glob(".kvmctl-*")] == []


def run(kvmctl: Kvmctl, *words: object, code: int = 0) -> Any:
    ran = kvmctl("-c", URI, "--output", "json", *words, code=code)
    return ran.json()[0] if code == 0 else ran.err


def test_a_guest_that_is_off_there_and_back(
    kvmctl: Kvmctl, hypervisor: Hypervisor, guest: Guest, pool: Pool, place: Path
) -> None:
    before, text = place / "before.qcow2", domains.definition(guest.domain)
    run_image("convert", "-O", "qcow2", pool[1] / "first.qcow2", before)
    row = run(kvmctl, "export", guest.name, "-o", place / "a")
    assert (row["state"], row["file"], row["memory"]) == ("stopped", str(place / "a"), None)
    assert (place / "a").stat().st_mode & 0o777 == 0o600
    assert "exists already" in run(kvmctl, "export", guest.name, "-o", place / "a", code=4)
    assert "there is a guest" in run(kvmctl, "import", place / "a", code=4)

    guest.remove()
    assert not (pool[1] / "first.qcow2").exists()
    row = run(kvmctl, "import", place / "a")
    assert (row["state"], row["files"]) == ("stopped", [str(pool[1] / "first.qcow2")])
    same(pool[1] / "first.qcow2", before)
    assert domains.definition(guest.domain) == text
    shown = kvmctl("--output", "json", "inspect", "--verify", place / "a").json()
    assert (shown["guest"], shown["verified"], shown["foreign"]) == (guest.name, True, [])
    assert guest.name in kvmctl("inspect", place / "a").out


def test_a_disk_with_any_name_comes_back(
    kvmctl: Kvmctl, hypervisor: Hypervisor, name: str, pool: Pool, place: Path
) -> None:
    image, before = disk(pool[1] / "a b (1).qcow2"), place / "before.qcow2"
    run_image("convert", "-O", "qcow2", image, before)
    guest = define(hypervisor, name, image)
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    run(kvmctl, "export", name, "-o", place / "a")
    shown = kvmctl("--output", "json", "inspect", "--verify", place / "a").json()
    assert [part.get("volume") for part in shown["parts"] if part["kind"] == "disk"] == [None]
    guest.remove()
    assert run(kvmctl, "import", place / "a")["files"] == [str(pool[1] / f"{name}-vda.qcow2")]
    same(pool[1] / f"{name}-vda.qcow2", before)


def test_what_no_import_would_take_is_not_written(
    hypervisor: Hypervisor, guest: Guest, place: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment(state, place.parent / "run").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(moment, "OFF", "o" * 401)  # longer than a manifest's texts can be
    with pytest.raises(RefusedError, match="consistency"):
        exporting.export(hypervisor, guest.name, place / "a", False, Silent())
    assert list(place.iterdir()) == []


def test_a_sparse_disk_gives_a_small_file(
    kvmctl: Kvmctl, hypervisor: Hypervisor, name: str, pool: Pool, place: Path
) -> None:
    define(hypervisor, name, disk(pool[1] / "big.qcow2", "40G"))
    row = run(kvmctl, "export", name, "-o", place / "a")
    assert row["disks"] < 16 << 20
    assert row["size"] < 1 << 20
    row = run(kvmctl, "import", place / "a", "--name", f"{name}-2", "--pool", f"default={pool[0]}")
    try:
        made = Path(row["files"][0])
        assert json.loads(run_image("info", "--output=json", made))["virtual-size"] == 40 * GIB
        assert made.stat().st_blocks * 512 < 16 << 20
        same(made, pool[1] / "big.qcow2")
    finally:
        Guest(hypervisor, f"{name}-2").remove()


@pytest.mark.parametrize("hollow", [False, True])
def test_a_disk_is_copied_only_where_that_makes_it_smaller(
    kvmctl: Kvmctl, guest: Guest, pool: Pool, place: Path, hollow: bool
) -> None:
    image = pool[1] / "first.qcow2"
    if hollow:
        # Blocks that the guest has used, and not any more.
        for what in ("write -P 1 8M 32M", "discard 8M 32M"):
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", what, image], capture_output=True, check=True)
    row = run(kvmctl, "export", guest.name, "-o", place / "a")
    assert (row["disks"] == image.stat().st_size) == (not hollow)
    subprocess.run(["tar", "-C", place, "-xf", place / "a"], check=True)
    same(place / "disks/vda.qcow2", image)
    assert (place / "disks/vda.qcow2").stat().st_size < 8 << 20


def test_an_overlay_becomes_one_disk(
    kvmctl: Kvmctl, hypervisor: Hypervisor, name: str, pool: Pool, place: Path
) -> None:
    disk(pool[1] / "base.qcow2")
    over = pool[1] / "over.qcow2"
    run_image("create", "-q", "-f", "qcow2", "-b", pool[1] / "base.qcow2", "-F", "qcow2", over)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x77 8M 1M", over], capture_output=True, check=True)
    define(hypervisor, name, over)
    run(kvmctl, "export", name, "-o", place / "a")
    before = place / "before.qcow2"
    run_image("convert", "-O", "qcow2", over, before)
    subprocess.run(["tar", "-C", place, "-xf", place / "a"], check=True)
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=place, check=True)
    same(place / "disks/vda.qcow2", before)
    assert "backing-filename" not in json.loads(run_image("info", "--output=json", place / "disks/vda.qcow2"))


def test_a_running_guest_goes_on(kvmctl: Kvmctl, guest: Guest, pool: Pool, place: Path) -> None:
    domains.start(guest.domain, paused=True)
    pid = guest.pid
    row = run(kvmctl, "export", guest.name, "-o", place / "a")
    assert (row["state"], row["pause"]) == ("paused", 0)
    assert "no guest agent" in row["consistency"]
    assert (guest.pid, domains.state(guest.domain)) == (pid, "paused")
    assert guest.domain.jobInfo()[0] == 0
    subprocess.run(["tar", "-C", place, "-xf", place / "a"], check=True)
    same(place / "disks/vda.qcow2", pool[1] / "first.qcow2")


@pytest.mark.parametrize("firmware", ["", "firmware='efi'"], ids=["bios", "uefi"])
def test_memory_goes_with_the_guest(
    kvmctl: Kvmctl, hypervisor: Hypervisor, name: str, pool: Pool, place: Path, make_name: MakeName, firmware: str
) -> None:
    guest = define(hypervisor, name, disk(pool[1] / "first.qcow2"), firmware=firmware)
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    domains.start(guest.domain, paused=True)
    row = run(kvmctl, "export", guest.name, "-o", place / "a", "--with-memory")
    assert row["memory"] > 0
    assert row["pause"] > 0
    assert domains.state(guest.domain) == "paused"
    assert not domains.has_saved_state(guest.domain)
    assert "keeps its identity" in run(kvmctl, "import", place / "a", "--name", make_name("copy"), code=5)
    guest.remove()
    row = run(kvmctl, "import", place / "a")
    assert row["state"] == "paused"
    assert guest.domain.isPersistent()
    domains.resume(guest.domain)
    assert domains.state(guest.domain) == "running"
    guest.remove()
    assert run(kvmctl, "import", place / "a", "--no-memory")["state"] == "stopped"


def test_memory_of_a_guest_that_is_off(kvmctl: Kvmctl, guest: Guest, place: Path) -> None:
    assert "no memory" in run(kvmctl, "export", guest.name, "-o", place / "a", "--with-memory", code=4)
    assert list(place.iterdir()) == []


def test_another_identity_is_another_guest(
    kvmctl: Kvmctl, hypervisor: Hypervisor, name: str, make_name: MakeName, pool: Pool, place: Path
) -> None:
    guest = define(hypervisor, name, disk(pool[1] / "first.qcow2"), firmware="firmware='efi'")
    hypervisor.connection.storagePoolLookupByName(pool[0]).refresh(0)
    domains.start(guest.domain, paused=True)
    variables = nvram.FOLDER / f"{name}_VARS.fd"
    run(kvmctl, "export", name, "-o", place / "a")
    copy = make_name("copy")
    row = run(kvmctl, "import", place / "a", "--name", copy)
    other = Guest(hypervisor, copy)
    one, two = (ElementTree.fromstring(domains.definition(each.domain)) for each in (guest, other))
    for path in ("name", "uuid", "genid"):
        assert one.findtext(path) != two.findtext(path)
    macs = [root.find("devices/interface/mac") for root in (one, two)]
    assert macs[0] is not None
    assert macs[1] is not None
    assert macs[0].get("address") != macs[1].get("address")
    assert row["files"] == [str(pool[1] / f"{copy}-vda.qcow2")]
    own = nvram.FOLDER / f"{copy}_VARS.fd"
    assert own.read_bytes() == variables.read_bytes()
    domains.start(other.domain, paused=True)
    assert domains.state(other.domain) == "paused"
    guest.remove()
    other.remove()
    assert not own.exists()
    assert not variables.exists()
    assert run(kvmctl, "import", place / "a")["name"] == name


@pytest.mark.parametrize("words", [["--name"], ["--new-identity", "--name"]], ids=" ".join)
def test_another_guest_is_in_no_project_and_does_not_start_by_itself(
    kvmctl: Kvmctl, hypervisor: Hypervisor, guest: Guest, make_name: MakeName, place: Path, words: list[str]
) -> None:
    said = "<kvmctl:guest xmlns:kvmctl='urn:kvmctl:guest:1' project='lab'>{}</kvmctl:guest>"
    cloud = f"<kvmctl:cloud-init hostname='{guest.name}'/><kvmctl:label key='a'>b</kvmctl:label>"
    text = domains.definition(guest.domain).replace("<memory ", f"<metadata>{said.format(cloud)}</metadata><memory ", 1)
    domains.define(hypervisor, guest.name, text)
    domains.set_autostart(guest.domain, True)
    run(kvmctl, "export", guest.name, "-o", place / "a")
    copy = make_name("copy")
    run(kvmctl, "import", place / "a", *words, copy)
    domain = Guest(hypervisor, copy).domain
    found = metadata.read(domains.definition(domain))
    assert (found.project, found.labels) == (None, (("a", "b"),))
    assert found.cloud_init is not None
    assert found.cloud_init.hostname == copy
    assert not domains.autostart(domain)
    guest.remove()
    run(kvmctl, "import", place / "a")
    assert metadata.read(domains.definition(guest.domain)).project == "lab"
    assert domains.autostart(guest.domain)


def test_through_a_pipe(kvmctl: Kvmctl, guest: Guest, make_name: MakeName, pool: Pool, tmp_path: Path) -> None:
    command = f"{sys.executable} -m kvmctl -c {URI}"
    copy = make_name("copy")
    done = subprocess.run(
        f"{command} export {guest.name} -o - | {command} import - --name {copy}",
        shell=True,
        env=environment(tmp_path / "state", tmp_path / "run"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    same(pool[1] / f"{copy}-vda.qcow2", pool[1] / "first.qcow2")


def test_a_pipe_that_breaks_leaves_nothing(kvmctl: Kvmctl, guest: Guest, tmp_path: Path, pool: Pool) -> None:
    before = sorted(pool[1].iterdir())
    command = f"{sys.executable} -m kvmctl -c {URI}"
    done = subprocess.run(
        f"{command} export {guest.name} -o - | head -c 300 | {command} import - --new-identity --name {guest.name}-x",
        shell=True,
        env=environment(tmp_path / "state", tmp_path / "run"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert sorted(pool[1].iterdir()) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("memory", [False, True], ids=["live", "with memory"])
def test_an_interrupted_export_leaves_no_file(
    hypervisor: Hypervisor, name: str, pool: Pool, place: Path, tmp_path: Path, how: signal.Signals, memory: bool
) -> None:
    guest = define(hypervisor, name, disk(pool[1] / "first.qcow2", "2G"))
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 1G", pool[1] / "first.qcow2"], capture_output=True, check=True
    )
    domains.start(guest.domain, paused=True)
    words = ["export", name, "-o", str(place / "a"), *(["--with-memory"] if memory else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmctl", "-c", URI, *words],
        env=environment(tmp_path / "state", tmp_path / "run"),
        stderr=subprocess.PIPE,
    )
    spots = (pool[1], place)
    pattern = ".kvmctl-export-*/*.qcow2"
    until(lambda: [found for spot in spots for found in spot.glob(pattern)], bool, 30, "what it writes")
    process.send_signal(how)
    _out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert list(place.iterdir()) == []
    assert domains.state(guest.domain) == "paused"
    assert not domains.has_saved_state(guest.domain)
    until(lambda: guest.domain.jobInfo()[0], lambda kind: kind == 0, 10, "the guest's job")


def test_what_a_killed_export_left_goes_with_the_next(kvmctl: Kvmctl, guest: Guest, place: Path) -> None:
    (place / ".kvmctl-export-aabbccddeeff").mkdir()
    (place / ".kvmctl-export-aabbccddeeff/vda.qcow2").write_bytes(b"x")
    run(kvmctl, "export", guest.name, "-o", place / "a")
    assert [path.name for path in place.iterdir()] == ["a"]


def test_an_interrupted_import_leaves_nothing(name: str, pool: Pool, place: Path, tmp_path: Path) -> None:
    # Random, so that zstd has to give something on before it has seen the whole.
    (place / "raw").write_bytes(os.urandom(8 << 20))
    run_image("convert", "-f", "raw", "-O", "qcow2", place / "raw", place / "disk.qcow2")
    archive = Archive(name, (place / "disk.qcow2").read_bytes(), pool=pool[0])
    archive.manifest["parts"][1]["capacity"] = 8 << 20
    whole = archive.write(place / "a").read_bytes()
    before = sorted(pool[1].iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmctl", "-c", URI, "import", "-"],
        env=environment(tmp_path / "state", tmp_path / "run"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(whole[: len(whole) // 2])
    process.stdin.flush()
    until(lambda: list(pool[1].glob(".kvmctl-import-*")), bool, 30, "its folder")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert sorted(pool[1].iterdir()) == before


def test_a_terminal_shows_how_far_it_is(screen: Screen, guest: Guest, place: Path) -> None:
    screen.start("-c", URI, "export", guest.name, "-o", str(place / "a"))
    screen.expect("write  0% of 2")
    assert screen.wait() == 0
    assert "/s" in screen.text
    screen.start("-q", "-c", URI, "export", guest.name, "-o", str(place / "b"))
    assert screen.wait() == 0
    assert "write" not in screen.text
