"""Guests moved to another host: everything that stands in the way is found first, then they go, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kvmctl.control import move_settle
from kvmctl.control.guarded import guarded
from kvmctl.control.hosts import resolve
from kvmctl.control.move import Moved, Mover
from kvmctl.control.move_facts import Facts
from kvmctl.control.parallel import each
from kvmctl.control.select import Guest
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import moving
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.errors import KvmctlError
from kvmctl.model.migration import Finding, Forecast, MigrationOptions, MovedGuest
from kvmctl.policy import migration as policy

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A guest that is to move, and what is said of that."""

    guest: MovedGuest
    domain: Any
    found: tuple[Finding, ...]


def open_target(text: str) -> tuple[Hypervisor, Any]:
    """The host that a user named, by name or URI. Raises UnreachableError, NotFoundError, UsageError."""
    named = resolve(text)
    return open_hypervisor(named.uri), named


def recover(source: Hypervisor, target: Hypervisor | None, say: Say) -> None:
    """Settle what runs before this one have left."""
    move_settle.recover(Journal(), source, target, say)


def check(
    source: Hypervisor, target: Hypervisor, named: Any, guests: Sequence[Guest], options: MigrationOptions
) -> list[Candidate]:
    """What stands in the way of each guest, once those before it have arrived. Nothing is changed."""
    facts = Facts(source, target, named)
    candidates: list[Candidate] = []
    for guest in guests:
        moved, host = facts.guest(guest)
        host = policy.arrived(host, [one.guest for one in candidates], options)
        candidates.append(Candidate(moved, guest[1], policy.findings(moved, host, options)))
    return candidates


def portability(source: Hypervisor, target: Hypervisor, named: Any, guests: Sequence[Guest]) -> list[Finding]:
    """What would have to change before the guests could be started on the target as they are."""
    facts = Facts(source, target, named)
    found: list[Finding] = []
    for guest in guests:
        found += policy.portability(*facts.guest(guest))
    return found


def measure(guests: Sequence[Guest]) -> None:
    """Begin to measure what running guests change: it takes a second, in which other things can be done."""
    for sample, domain in guests:
        if sample.state == "running":
            moving.start_dirty_rate(domain)


def expect(mover: Mover, candidates: Sequence[Candidate]) -> list[Forecast | None]:
    """How long each move will take, from what has been measured."""
    results = each(lambda one: mover.expect(one.guest, one.domain), candidates)
    return [None if isinstance(one, KvmctlError) else one for one in results]


def move_all(
    mover: Mover, candidates: Sequence[Candidate], expected: Sequence[Forecast | None], jobs: int
) -> list[Moved | KvmctlError]:
    """Move the guests in their order, `jobs` at a time; one that fails does not stop the others."""
    pairs = list(zip(candidates, expected, strict=True))
    return each(lambda pair: mover.move(pair[0].guest, pair[1]), pairs, workers=jobs)


def renew_weights(source: Hypervisor, target: Hypervisor, warn: Say) -> None:
    """Give the guests of both hosts the weights that their shares are worth now."""
    for hypervisor in (source, target):
        try:
            with guarded(hypervisor, warn):
                pass
        except KvmctlError as error:
            with suppress(KvmctlError):
                warn(f"the weights on {hypervisor.uri} are not renewed: {error.message}")
