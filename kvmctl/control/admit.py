"""Admission: no guest is promised what the host cannot keep for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kvmctl.control import history
from kvmctl.control.capacity import Capacity, capacity
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.plan import GuestPlan
from kvmctl.control.room import first_bytes
from kvmctl.control.select import Guest
from kvmctl.control.weights import claims
from kvmctl.host import ksm, memory
from kvmctl.host.memory import Memory
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.host import node
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import RefusedError
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.promise import Promise
from kvmctl.model.sample import ACTIVE
from kvmctl.model.spec import GuestSpec
from kvmctl.policy.admission import Verdict, admit_cpu, admit_memory, admit_overcommit, admit_state, admit_unshare
from kvmctl.policy.diff import overlay
from kvmctl.policy.ksm import saved
from kvmctl.policy.memory import reserve_of
from kvmctl.policy.promise import promise_of
from kvmctl.policy.reclaim import guests_memory
from kvmctl.xml.metadata import promise
from kvmctl.xml.parse import parse


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to be admitted: promises by name, of guests that run already too."""

    promises: Mapping[str, Promise]
    begin: frozenset[str] = frozenset()
    """Those that are off or stand still, and are to run."""
    taken: int = 0
    """Bytes that those which are off take at once when they start."""
    growth: int = 0
    """Bytes that running guests are to have more at once."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A wish, and what it is held against: what runs beside it, and the host's cores and bytes of memory."""

    wish: _Wish
    running: Mapping[str, Promise]
    cores: Capacity
    total: int
    here: tuple[MemoryPolicy, Memory] | None
    """Of this machine: its policy, and its memory now. None for another."""


def admit_start(hypervisor: Hypervisor, guests: Sequence[Guest], force: bool, warn: Callable[[str], None]) -> None:
    """Raise RefusedError if the reservations of all guests would not fit once these have been started."""
    off = _off(guests)
    taken = first_bytes(hypervisor, [domain for _sample, domain in off])
    _admit(hypervisor, replace(_beginning(off), taken=taken), force, warn)


def check_start(hypervisor: Hypervisor, guests: Iterable[Guest]) -> None:
    """As `check_lasting`, of those that are off."""
    check_lasting(hypervisor, _beginning(_off(guests)).promises)


def _off(guests: Iterable[Guest]) -> list[Guest]:
    return [(sample, domain) for sample, domain in guests if sample.state not in ACTIVE]


def admit_resume(hypervisor: Hypervisor, guests: Sequence[Guest], force: bool, warn: Callable[[str], None]) -> None:
    """Raise RefusedError if the reservations of all guests would not fit once these paused ones go on, or the host is
    too short of memory: a guest that stands still uses no CPU, and has touched and lost to swap what it will."""
    _admit(
        hypervisor, _beginning((sample, domain) for sample, domain in guests if sample.state == "paused"), force, warn
    )


def _beginning(guests: Iterable[Guest]) -> _Wish:
    promises = {sample.name: promise(domains.definition(domain), sample.vcpus) for sample, domain in guests}
    return _Wish(promises, frozenset(promises))


def admit_plans(hypervisor: Hypervisor, plans: Iterable[GuestPlan], force: bool, warn: Callable[[str], None]) -> None:
    """Raise RefusedError if the reservations of all guests would not fit once these plans are applied, or if what
    running guests are given more is not there."""
    due = [plan for plan in plans if plan.changes and (plan.brings_to or plan.live is not None)]
    wish = _Wish(
        {plan.name: promise_of(_becomes(plan)) for plan in due},
        frozenset(plan.name for plan in due if plan.brings_to),
        first_bytes(hypervisor, (), [_becomes(plan) for plan in due if plan.brings_to and plan.live is None]),
        sum(map(_growth, due)),
    )
    _admit(hypervisor, wish, force, warn)


def _becomes(plan: GuestPlan) -> GuestSpec:
    """The guest as it is once the plan has been applied."""
    return overlay(plan.current, plan.desired) if plan.current else plan.desired


def check_lasting(hypervisor: Hypervisor, promises: Mapping[str, Promise]) -> None:
    """Raise RefusedError if what these guests were promised does not fit once they run, however much memory is made
    free for them."""
    wish = _Wish(promises, frozenset(promises))
    if refused := _refused(hypervisor, wish, _lasting):
        raise _refusal(refused)


def admit_revert(
    hypervisor: Hypervisor, name: str, definition: str, begins: bool, force: bool, warn: Callable[[str], None]
) -> None:
    """Raise RefusedError if the reservations would not fit once this guest runs by another definition; `begins` is
    whether it does not run now."""
    _admit(hypervisor, _Wish({name: promise(definition)}, frozenset([name] if begins else [])), force, warn)


def _growth(plan: GuestPlan) -> int:
    """Bytes by which the balloon of a running guest is going to be let go."""
    if plan.live is None or not any(change.field == "memory.size" for change in plan.changes):
        return 0
    now, wanted = plan.live.memory, plan.desired.memory.size or 0
    # The running guest cannot have more than it was started with.
    reachable = min(wanted, now.max or now.size or wanted)
    return max(0, reachable - (now.size or reachable))


def admit_definition(
    hypervisor: Hypervisor, name: str, definition: str, force: bool, warn: Callable[[str], None]
) -> None:
    """Raise RefusedError if the reservations of all guests would not fit once one with this definition runs too."""
    spec = parse(definition).spec
    taken = first_bytes(hypervisor, (), [spec])
    _admit(hypervisor, _Wish({name: promise(definition)}, frozenset({name}), taken), force, warn)


def _admit(hypervisor: Hypervisor, wish: _Wish, force: bool, warn: Callable[[str], None]) -> None:
    refused = _refused(hypervisor, wish, _verdicts)
    if not refused:
        return
    if not force:
        raise _refusal(refused)
    for line in refused:
        warn(f"forced, so promises will not be kept: {line}")
    forced = [
        Outcome(Change(name, "admission", None, None, reason=f"forced: {line}"), "changed")
        for name in wish.promises
        for line in refused
    ]
    history.record(hypervisor.uri, time.time(), forced)


def _refusal(lines: Sequence[str]) -> RefusedError:
    return RefusedError(
        "this host cannot keep what would be promised:\n  " + "\n  ".join(lines),
        "lower a reservation, stop a guest, or use --force to break the promise knowingly",
    )


def _refused(
    hypervisor: Hypervisor, wish: _Wish, verdicts: Callable[[Hypervisor, _Asked], Iterator[tuple[str, Verdict]]]
) -> list[str]:
    """The arithmetic of all that is not admitted."""
    # First of all, so that a policy that cannot be read is said before anything is changed.
    cores = capacity(hypervisor)
    if not wish.promises:
        return []
    found = claims(domains.samples_with_domains(hypervisor))
    running = {claim.name: claim.promise for claim, _ in found if claim.name not in wish.begin}
    size = node(hypervisor)
    if size is None:
        return []
    here = (host_policy().memory, memory.read()) if hypervisor.local else None
    asked = _Asked(wish, running, cores, size.memory, here)
    return [f"{what}: {verdict.arithmetic}" for what, verdict in verdicts(hypervisor, asked) if not verdict.admitted]


def _lasting(_hypervisor: Hypervisor, asked: _Asked) -> Iterator[tuple[str, Verdict]]:
    """What holds for as long as the guests run, whatever is free."""
    running, wanted, cores = asked.running, asked.wish.promises, asked.cores
    yield "CPU reservations", admit_cpu(running, wanted, cores.cores, cores.reserve)
    if asked.here is None:
        yield "memory reservations", admit_memory(running, wanted, asked.total)
        return
    policy, now = asked.here
    room = guests_memory(now.total, policy.reserve, policy.limit, memory.guests_limit())
    yield "memory reservations", admit_memory(running, wanted, now.total, room)
    yield "memory overcommit", admit_overcommit(running, wanted, room, policy.overcommit)


def _verdicts(hypervisor: Hypervisor, asked: _Asked) -> Iterator[tuple[str, Verdict]]:
    yield from _lasting(hypervisor, asked)
    wish = asked.wish
    if asked.here is None or (not wish.begin and not wish.growth):
        return  # what takes no memory makes nothing worse
    policy, now = asked.here
    available = memory.left_for_guests(now)
    swap = now.swap_free if policy.swap == "manage" else 0
    yield "available memory", admit_state(available, reserve_of(policy, now.total), wish.taken, swap)
    merged = ksm.sample()
    shared, ballooned = saved(merged) if merged else 0, _ballooned(hypervisor)
    yield (
        "what would be needed back",
        admit_unshare(shared, ballooned, policy.cover, available, now.swap_free, wish.growth),
    )


def _ballooned(hypervisor: Hypervisor) -> int:
    """Bytes that balloons have taken from running guests."""
    samples = [sample.balloon for sample in domains.samples(hypervisor) if sample.state in ACTIVE]
    return sum(max(0, (one.maximum or 0) - (one.current or 0)) for one in samples)
