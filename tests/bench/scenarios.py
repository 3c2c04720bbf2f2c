"""What the guests of the CPU bench are promised and what they do, and what each of them ought to get of the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


def guest_file(guests: Sequence[BenchGuest], keys: Callable[[BenchGuest], dict[str, Any]]) -> str:
    """The guest file that promises it, as JSON, which is YAML too; `keys` says what else it has of a guest."""
    return json.dumps({"guests": [{"name": guest.name, "cpu": _cpu(guest)} | keys(guest) for guest in guests]})


def _cpu(guest: BenchGuest) -> dict[str, Any]:
    cpu: dict[str, Any] = {"count": guest.vcpus, "shares": guest.shares, "reservation": guest.reservation}
    return cpu | ({"limit": guest.limit} if math.isfinite(guest.limit) else {})


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
