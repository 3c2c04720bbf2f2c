"""Memory of a real Linux guest that it does not use is swapped, comes back as it was, and what it uses stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.host import pageout
from kvmctl.host.cold import Moved, Pager
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

MIB = 1 << 20
SIZE, COLD, HOT = 256 * MIB, 64 * MIB, 16 * MIB


@pytest.fixture
def zram(kvmctl: Kvmctl) -> Iterator[None]:
    kvmctl("swap", "enable", "--zram", "512MiB")
    yield
    kvmctl("swap", "disable")


@pytest.fixture
def line(
    hypervisor: Hypervisor,
    make_name: Callable[..., str],
    micro: MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
) -> Console:
    """The console of a guest that reads 16 MiB again and again, and has 64 that it reads when it is told to."""
    name = make_name("swap")
    hypervisor.connection.createXML(
        f"<domain type='{'kvm' if accelerator == 'kvm' else 'qemu'}'><name>{name}</name>"
        f"<memory unit='MiB'>{SIZE // MIB}</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{micro.kernel}</kernel>"
        f"<initrd>{micro.initrd}</initrd><cmdline>console=ttyS0 quiet micro.touch={COLD // MIB}</cmdline></os>"
        "<features><acpi/></features><devices><serial type='pty'/><memballoon model='virtio'/></devices></domain>"
    )
    opened = console(Guest(hypervisor, name))
    opened.ready()
    until(
        lambda: opened.run("stat -c %s /run/touch || echo 0"),
        # The guest's own messages come between the lines of a console.
        lambda said: str(COLD) in said.split(),
        120,
        "what it has filled",
    )
    opened.run(f"head -c {HOT} /run/touch >/run/hot", timeout=120)
    opened.run("(while :; do md5sum /run/hot >/run/sum; echo >>/run/rounds; usleep 200000; done) & true")
    return opened


def test_what_a_guest_does_not_use_is_swapped_and_comes_back_as_it_was(zram: None, line: Console) -> None:
    guest = line.guest
    before = line.run("md5sum /run/touch", timeout=120)
    pager = Pager()

    def step(most: int = 32 * MIB) -> Moved:
        return pager.page_out(guest.pid, SIZE, most)

    quiet = 0

    def at_rest(moved: Moved) -> bool:
        nonlocal quiet
        # Canaries wait for some seconds before the rest of their slices follows; then there is nothing left to move.
        quiet = quiet + 1 if pageout.swapped(guest.pid) >= COLD and moved.moved < MIB else 0
        return quiet >= 60

    until(step, at_rest, 180, "what was swapped")
    rounds = int(line.run("wc -l </run/rounds"))
    until(lambda: int(line.run("wc -l </run/rounds")), lambda now: now >= rounds + 10, 120, "rounds of what is hot")
    # What it uses was no more than canaries, so ten rounds over it read hardly anything back.
    assert step(0).returned < HOT / 4
    out = pageout.swapped(guest.pid)
    assert line.run("md5sum /run/touch", timeout=120) == before
    assert out - pageout.swapped(guest.pid) > COLD / 2
