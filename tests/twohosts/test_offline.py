"""Guests that are off move with their disks: the source lets go of them once the target has everything."""

from __future__ import annotations

import filecmp
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import archives
from tests.pair import Pair, make_image
from tests.support import until
from tests.twohosts.conftest import Make, Traveller, promised

pytestmark = pytest.mark.twohosts

OFF = ("--offline", "--copy-storage")


class Images:
    """Those of a guest: its own overlays a base."""

    def __init__(self, hosts: Pair, traveller: Traveller) -> None:
        self.hosts, self.names = hosts, (f"{traveller.name}-base.qcow2", f"{traveller.name}.qcow2")
        folder = "/var/lib/libvirt/images"
        base, top = (f"{folder}/{name}" for name in self.names)
        create = ["qemu-img", "create", "-q", "-f", "qcow2"]
        self._run([*create, base, "10G"])
        self._run(["qemu-io", "-c", "write -P 7 5G 4M", "-f", "qcow2", base])
        self._run([*create, "-b", base, "-F", "qcow2", top])
        self._run(["qemu-io", "-c", "write -P 9 1G 32M", "-f", "qcow2", top])

    def _run(self, command: list[str]) -> None:
        done = self.hosts.a.run(command)
        assert done.returncode == 0, done.stderr

    def there(self) -> list[Path]:
        """What the second host has of them."""
        return [path for name in self.names if (path := self.hosts.b.images / name).exists()]

    def same(self) -> bool:
        """Whether it has both, bit by bit, and what is not used takes no room."""
        for path in self.there():
            here = self.hosts.a.images / path.name
            assert filecmp.cmp(path, here, shallow=False), path
            assert path.stat().st_blocks <= here.stat().st_blocks + 256
        return len(self.there()) == len(self.names)


def test_with_its_disks(hosts: Pair, make_traveller: Make) -> None:
    traveller = make_traveller(boot=False, local=True)
    images = Images(hosts, traveller)
    said = promised(traveller, hosts.a)
    refused = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, "--offline", "-o", "json", code=5)
    assert {row["what"] for row in json.loads(refused.stdout) if row["severity"] == "obstacle"} == {"disk vda"}
    assert not images.there()
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *OFF, "-o", "json")
    assert traveller.defined() == [hosts.b]
    assert promised(traveller, hosts.b) == said
    assert images.same()
    assert 32 << 20 <= json.loads(done.stdout)[0]["sent"] < 128 << 20, "it is sent once, and read back"
    there = traveller.at(hosts.b)
    assert there is not None
    assert there.autostart() == 1
    there.create()
    assert traveller.is_only(hosts.b)
    there.destroy()
    # The way back finds the base, which is the same, and the image that was left.
    hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, *OFF, code=5)
    base = hosts.a.images / images.names[0]
    before = base.stat()
    hosts.b.kvmctl("migrate", traveller.name, hosts.a.tcp, *OFF, "--overwrite")
    assert traveller.defined() == [hosts.a]
    assert images.same()
    assert base.stat().st_ino == before.st_ino
    # Another base of that name would change what the guest reads.
    images.there()[1].unlink()
    with images.there()[0].open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"other")
    failed = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *OFF, code=4)
    assert "another" in failed.stderr
    assert traveller.defined() == [hosts.a]
    assert [path.name for path in images.there()] == [images.names[0]], "what was there stays"


@pytest.mark.parametrize("over", [False, True], ids=["it", "an image over it"])
def test_an_image_that_another_guest_needs_is_not_written_over(hosts: Pair, make_traveller: Make, over: bool) -> None:
    traveller = make_traveller(boot=False, local=True)
    images = Images(hosts, traveller)
    path = f"/var/lib/libvirt/images/{images.names[1]}"
    name, used = f"{traveller.name}-other", path.replace(".qcow2", "-over.qcow2") if over else path
    theirs = hosts.b.images / images.names[1]
    make_image(theirs, 1 << 20)
    if over:
        done = hosts.b.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", used])
        assert done.returncode == 0, done.stderr
    before = theirs.read_bytes()
    with hosts.b.open() as hypervisor:
        hypervisor.connection.storagePoolLookupByName("default").refresh(0)
        other = hypervisor.connection.defineXML(archives.definition(name).replace("/elsewhere/a.qcow2", used))
        try:
            for more in ((), ("--check",)):
                move = ("migrate", traveller.name, hosts.b.tcp, *OFF, "--overwrite", *more)
                done = hosts.a.kvmctl(*move, code=5)
                assert f"guest {name}" in done.stdout + done.stderr or over
                assert f"{images.names[1]} there is needed by" in done.stdout + done.stderr
        finally:
            other.undefine()
    assert theirs.read_bytes() == before
    assert traveller.defined() == [hosts.a]
    assert [one.name for one in images.there()] == [images.names[1]]
    if over:
        (hosts.b.images / used.rpartition("/")[2]).unlink()
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *OFF, "--overwrite")
    assert images.same()


@pytest.fixture
def begun(hosts: Pair, make_traveller: Make) -> Iterator[tuple[Traveller, Images, subprocess.Popen[bytes]]]:
    """A move that copies slowly, and has made the guest's own image at the target."""
    traveller = make_traveller(boot=False, local=True)
    images = Images(hosts, traveller)
    command = [sys.executable, "-m", "kvmctl", "migrate", traveller.name, hosts.b.tcp, *OFF, "--bandwidth", "16MiB/s"]
    process = hosts.a.spawn(command, hosts.a.own(), log="moving.log")
    try:
        until(images.there, lambda found: len(found) == 2, 60, "the copies")
        assert process.poll() is None, (hosts.a.folder / "moving.log").read_text()
        yield traveller, images, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


Begun = tuple[Traveller, Images, subprocess.Popen[bytes]]


def test_killed_itself(hosts: Pair, begun: Begun) -> None:
    traveller, images, process = begun
    process.kill()
    process.wait()
    assert traveller.defined() == [hosts.a]
    assert len(images.there()) == 2
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *OFF, "--check")
    assert "was cut off" in done.stderr
    assert [path.name for path in images.there()] == [images.names[0]], "the half copy goes, the base is whole"
    hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *OFF)
    assert traveller.defined() == [hosts.b]
    assert images.same()


def test_target_daemon_killed(hosts: Pair, begun: Begun) -> None:
    traveller, images, process = begun
    hosts.b.kill_daemon()
    try:
        assert process.wait(60) in (1, 6)
    finally:
        hosts.b.start_daemon()
    assert "it is where it was" in (hosts.a.folder / "moving.log").read_text()
    assert traveller.defined() == [hosts.a]
    done = hosts.a.kvmctl("migrate", traveller.name, hosts.b.tcp, *OFF, "--check")
    assert "was cut off" in done.stderr
    assert [path.name for path in images.there()] == [images.names[0]]


def test_interrupted(hosts: Pair, begun: Begun) -> None:
    traveller, images, process = begun
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert traveller.defined() == [hosts.a]
    assert [path.name for path in images.there()] == [images.names[0]]


def test_started_meanwhile(hosts: Pair, begun: Begun) -> None:
    """A guest that is started at the source while it is copied stays there."""
    traveller, images, process = begun
    here = traveller.at(hosts.a)
    assert here is not None
    here.create()
    assert process.wait(60) == 4
    assert traveller.is_only(hosts.a)
    assert [path.name for path in images.there()] == [images.names[0]]
