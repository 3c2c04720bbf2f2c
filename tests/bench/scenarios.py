"""What the guests of the CPU bench are promised and what they do, and what each of them ought to get of the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvmctl.policy.waterfill import Claim, waterfill
from tests.bench.cli import NAME


@dataclass(frozen=True, slots=True)
class BenchGuest:
    """One guest: limit and reservation in cores. Without `nap`, which is milliseconds of work and of sleep in turn,
    each of its vCPUs is busy all the time."""

    name: str = ""
    shares: int = 1000
    vcpus: int = 1
    limit: float = math.inf
    reservation: float = 0.0
    nap: tuple[int, int] | None = None

    @property
    def ceiling(self) -> float:
        """Cores that it can use at most."""
        return min(self.limit, self.vcpus)

    @property
    def duty(self) -> float:
        """The part of the time that it is at work."""
        return 1.0 if self.nap is None else self.nap[0] / sum(self.nap)


SCENARIOS: Mapping[str, Sequence[BenchGuest]] = {
    "equal": [BenchGuest()] * 4,
    "three": [BenchGuest()] * 3,
    "8:4:2:1:1": [BenchGuest(shares=shares) for shares in (8000, 4000, 2000, 1000, 1000)],
    "reservation": [BenchGuest(reservation=0.8)] + [BenchGuest()] * 3,
    "limits": [BenchGuest(limit=0.25), BenchGuest(limit=0.4), BenchGuest(), BenchGuest()],
    "mix": [
        BenchGuest(shares=2000, vcpus=2),
        *[BenchGuest()] * 2,
        BenchGuest(nap=(200, 800)),
        BenchGuest(nap=(3000, 7000)),
    ],
}
"""For each two cores of the host. In none of them does it change who is at a bound whether a sleeper is awake, so the
proportions of the others are the same all the time."""


def scenario(name: str, cores: int) -> tuple[BenchGuest, ...]:
    """The guests of a scenario on a host of so many cores."""
    guests = list(SCENARIOS[name]) * max(1, cores // 2)
    return tuple(replace(guest, name=f"{NAME}{number}") for number, guest in enumerate(guests))


def guest_file(guests: Sequence[BenchGuest], kernel: Path, initrd: Path, accelerator: str, after: int) -> str:
    """The guest file that promises it, as JSON, which is YAML too. The guests begin to work after so many seconds."""
    return json.dumps({"guests": [_guest(guest, kernel, initrd, accelerator, after) for guest in guests]}, indent=1)


def _guest(guest: BenchGuest, kernel: Path, initrd: Path, accelerator: str, after: int) -> dict[str, Any]:
    cpu: dict[str, Any] = {"count": guest.vcpus, "shares": guest.shares, "reservation": guest.reservation}
    if math.isfinite(guest.limit):
        cpu["limit"] = guest.limit
    nap = f" micro.nap={guest.nap[0]}:{guest.nap[1]}" if guest.nap else ""
    cmdline = f"console=ttyS0 quiet micro.spin={guest.vcpus} micro.after={after}{nap}"
    return {
        "name": guest.name,
        "accelerator": accelerator,
        "cpu": cpu,
        "memory": {"size": "256MiB"},
        "boot": {"kernel": str(kernel), "initrd": str(initrd), "cmdline": cmdline},
    }


def expected(guests: Sequence[BenchGuest], used: Mapping[str, float]) -> dict[str, float]:
    """Cores each guest ought to have had of those that all of them together had: one that sleeps now and then
    what it took, the others their entitlement of the rest."""
    ceilings = {guest.name: min(guest.ceiling, used[guest.name]) if guest.nap else guest.ceiling for guest in guests}
    return _divided(guests, ceilings, math.fsum(used.values()))


def entitled(guests: Sequence[BenchGuest], cores: float) -> dict[str, float]:
    """Cores that each guest is entitled to of so many while all of them want all they can get."""
    return _divided(guests, {guest.name: guest.ceiling for guest in guests}, cores)


def _divided(guests: Sequence[BenchGuest], ceilings: Mapping[str, float], cores: float) -> dict[str, float]:
    claims = [
        Claim(guest.name, guest.shares, min(guest.reservation, ceilings[guest.name]), ceilings[guest.name])
        for guest in guests
    ]
    return waterfill(claims, cores)
