"""Swap that is full, gone or never was there while a host is short, and what is reserved while there is plenty: read
from the kernel, with the guest's memory as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmctl.host import pageout, process, swap
from kvmctl.host.files import PAGE_SIZE
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl, cannot
from tests.shorthost import Lab
from tests.support import until

pytestmark = pytest.mark.booted

SIZE, RESERVED, FILLED = 384 * MIB, 160 * MIB, 176 * MIB
LOW = 0.1
"""What is available, of what the host is to keep."""


@pytest.fixture
def none() -> None:
    """A machine that swaps to nothing."""
    if areas := swap.areas():
        cannot(f"this machine swaps to {areas[0].name}")


@pytest.fixture
def clean(kvmctl: Kvmctl, none: None) -> Iterator[None]:
    """Nothing that the test swaps to is left."""
    yield
    kvmctl("swap", "disable")
    assert swap.areas() == ()


@pytest.fixture
def digest(lab: Lab, clean: None) -> str:
    """Of memory that the guest has filled and does not use."""
    lab.line.run(f"dd if=/dev/urandom of=/run/cold bs=1M count={FILLED // MIB} 2>/dev/null", 120)
    lab.fresh()
    return content(lab)


def content(lab: Lab) -> str:
    """The digest of that memory as it is now."""
    found = lab.line.run("md5sum /run/cold", 180)
    return next(line for line in found.splitlines() if line.endswith("/run/cold"))


def held(lab: Lab) -> tuple[int, int]:
    """Bytes of the guest's own memory that it reaches at once, and that are in swap, from the kernel's page map. Of a
    huge page that is taken apart the kernel gives back what is zero: that is neither resident nor swapped."""
    pid = lab.guest.pid
    flags = b""
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        for start, length in pageout.guest_memory(pid, SIZE):
            file.seek(start // PAGE_SIZE * 8)
            flags += file.read(length // PAGE_SIZE * 8)[7::8]
    return sum(flag & 0x80 for flag in flags) // 0x80 * PAGE_SIZE, sum(
        flag & 0x40 for flag in flags
    ) // 0x40 * PAGE_SIZE


def swapped(lab: Lab) -> int:
    """Bytes of its process that are in swap."""
    found = process.memory_of(lab.guest.pid)
    return (found.swapped if found else None) or 0


def said(lab: Lab) -> str:
    """What a tick says."""
    return lab.kvmctl("-c", lab.host.uri, "rebalance", env=lab.env).err


def test_no_guest_is_swapped_below_what_is_reserved_for_it(lab: Lab, kvmctl: Kvmctl, digest: str) -> None:
    assert held(lab)[0] > RESERVED + 48 * MIB
    kvmctl("swap", "enable", "--zram", "512MiB")
    lab.short(LOW, ", balloon: leave")
    least = SIZE

    def tick() -> int:
        nonlocal least
        lab.tick()
        least = min(least, held(lab)[0])
        return held(lab)[1]

    until(tick, lambda moved: moved > 32 * MIB, 60, "what was swapped")
    for _ in range(4):
        tick()
    assert least >= RESERVED
    assert content(lab) == digest


def test_swap_that_is_not_there_full_or_taken_away_is_said_and_nothing_is_lost(
    lab: Lab, kvmctl: Kvmctl, digest: str
) -> None:
    lab.short(LOW, ", balloon: leave")
    lab.tick()
    assert "there is no swap: kvmctl swap enable, or stop or move a guest" in said(lab)
    assert swapped(lab) == 0

    kvmctl("swap", "enable", "--zram", "24MiB")
    until(lambda: said(lab), lambda text: "swap is full: kvmctl swap enable --file PATH SIZE" in text, 60)
    assert 16 * MIB < swapped(lab) <= 24 * MIB
    (area,) = kvmctl("-o", "json", "swap", "show").json()["areas"]
    assert area["used"] >= 0.9 * 24 * MIB

    swap.swapoff(Path(area["name"]))  # somebody else
    assert swapped(lab) == 0
    assert "there is no swap" in said(lab)
    assert content(lab) == digest
