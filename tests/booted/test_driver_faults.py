"""Balloon drivers that are gone, stuck or lie, in real guests: they free nothing, and their guests are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.control.weights import BALLOON
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import live
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl
from tests.hosts import PrivateHost
from tests.shorthost import Lab, booted
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

SIZE, RESERVED = 384 * MIB, 160 * MIB
HELD = 60_000
"""Folders, each of which takes more than a KiB of the kernel's memory."""
DEVICE_CONFIG = 0x2000
"""Where QEMU has a virtio device's own settings in its fifth region: how many pages its balloon is to hold and, four
bytes on, what its driver says that it holds."""


@pytest.fixture
def open_lab(
    host: PrivateHost, kvmctl: Kvmctl, micro: MicroGuest, console: Callable[[Guest], Console], tmp_path: Path
) -> Iterator[Lab]:
    """A guest whose root may write to a device that a driver has."""

    def edit(definition: str) -> str:
        return definition.replace("console=ttyS0 quiet", "console=ttyS0 quiet iomem=relaxed")

    with booted(host, kvmctl, micro, console, tmp_path / "host.yaml", edit) as found:
        yield found


def size_of(lab: Lab) -> int:
    """What its balloon leaves the guest, by its own account."""
    return live.balloon(lab.guest.domain)


def said(lab: Lab) -> str:
    """What a tick says of the guest."""
    return lab.kvmctl("-c", lab.host.uri, "rebalance", env=lab.env).err


def says_that_it_holds(lab: Lab, pages: int) -> None:
    """As a driver that lies about what its balloon holds."""
    found = lab.line.run("sed -n 5p $(readlink -f /sys/bus/virtio/drivers/virtio_balloon/virtio*)/../resource")
    start = next(int(line.split()[0], 16) for line in found.splitlines() if line.startswith("0x"))
    lab.line.run(f"devmem {start + DEVICE_CONFIG + 4:#x} 32 {pages:#x}")


def test_a_balloon_that_says_it_holds_less_than_nothing_is_not_believed(open_lab: Lab, state: Path) -> None:
    lab = open_lab
    lab.fresh()
    says_that_it_holds(lab, 0xFFFFFFFF)
    until(lambda: size_of(lab), lambda size: size > 1 << 50, 30, "the lie")
    lab.short()
    assert "memory.balloon" not in lab.tick()
    assert "squeezed: its memory counts whole, its balloon driver says that it has more memory than" in said(lab)
    ledger = lab.run("memory")
    assert ledger["guests"][0]["balloon"] is None
    assert ledger["total"]["balloon"] is None
    assert Journal(state / "journal.json").entries(BALLOON) == {}, "nothing of the lie is to be put back"
    says_that_it_holds(lab, 0)
    until(lambda: size_of(lab), lambda size: size == SIZE, 30, "the truth")
    told = until(lab.tick, lambda done: "memory.balloon" in done, 60, "the balloon of a guest that is believed again")
    assert RESERVED <= told["memory.balloon"]["new"] < SIZE


def test_a_balloon_that_says_it_holds_everything_is_not_believed(open_lab: Lab) -> None:
    lab = open_lab
    lab.fresh()
    says_that_it_holds(lab, SIZE // 4096)
    until(lambda: size_of(lab), lambda size: size == 0, 30, "the lie")
    lab.short()
    assert "memory.balloon" not in lab.tick()
    assert "squeezed: its memory counts whole, what its balloon driver last said is usable is more than" in said(lab)


def test_a_driver_that_is_taken_out_gives_all_back_and_its_guest_is_named(lab: Lab) -> None:
    lab.fresh()
    lab.short()
    new = lab.tick()["memory.balloon"]["new"]
    until(lambda: size_of(lab), lambda size: size <= new + MIB, 60, "the balloon")
    lab.line.run("rmmod virtio_balloon")
    until(lambda: size_of(lab), lambda size: size == SIZE, 60, "the balloon without a driver")
    until(lambda: said(lab), lambda text: "squeezed: its memory counts whole, what its balloon driver last" in text, 60)
    assert size_of(lab) == SIZE
    assert lab.line.meminfo("MemAvailable") > 100 * MIB
    lab.line.run("insmod /modules/$(grep virtio_balloon /modules/order)")
    until(lambda: said(lab), lambda text: "counts whole" not in text, 60)
    assert size_of(lab) >= RESERVED


def test_a_balloon_that_stands_still_is_named_and_frees_nothing(lab: Lab) -> None:
    # What the kernel keeps of a folder it calls reclaimable, and so usable. It never is where the folder has no other
    # place: of what the driver says is usable, it can give much less.
    lab.line.run("dd if=/dev/zero of=/run/used bs=1M count=64 2>/dev/null; mkdir /held; mount -t ramfs none /held")
    names = f"awk 'BEGIN {{for (n = 0; n < {HELD}; n++) printf \"%0240d\\n\", n}}'"
    lab.line.run(f"cd /held; {names} | xargs -n 200 mkdir", 120)
    lab.fresh()
    lab.short(0.2, ", swap: leave")
    until(lambda: said(lab), lambda text: "squeezed: its balloon does not follow" in text, 90)
    assert size_of(lab) > RESERVED
    assert "memory.balloon" not in lab.tick(), "it is not told again for a while"
    assert str(HELD) in lab.line.run("ls /held | wc -l").split()
