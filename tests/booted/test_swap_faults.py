"""Swap that is full, gone or never was there while a host is short, and what is reserved while there is plenty: read
from the kernel, with the guest's memory as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmctl.host import pageout, process, swap
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
    """Bytes of the guest's own memory that are in the host's, and in swap, as the kernel counts them."""
    pid = lab.guest.pid
    starts = [f"{start:x}-" for start, _length in pageout.guest_memory(pid, SIZE)]
    found = {"Rss": 0, "Swap": 0}
    own = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key.split(" ")[0]:
            own = any(line.startswith(start) for start in starts)
        elif own and key in found:
            found[key] += int(value.split()[0]) * 1024
    return found["Rss"], found["Swap"]


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
    # Meanwhile a guest gives back what it has freed by itself, two blocks of 2 MiB at most here.
    assert least >= RESERVED - 4 * MIB
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
