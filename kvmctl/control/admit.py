"""Admission: no guest is promised what the host cannot keep for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kvmctl.control import history
from kvmctl.control.capacity import Capacity, capacity
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.plan import GuestPlan
from kvmctl.control.select import Guest
from kvmctl.control.weights import claims
from kvmctl.host import ksm, memory
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.host import node
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import RefusedError
from kvmctl.model.promise import Promise
from kvmctl.model.sample import ACTIVE
from kvmctl.policy.admission import Verdict, admit_cpu, admit_memory, admit_overcommit, admit_state, admit_unshare
from kvmctl.policy.diff import overlay
from kvmctl.policy.ksm import saved
from kvmctl.policy.memory import reserve_of
from kvmctl.policy.promise import promise_of
from kvmctl.policy.reclaim import guests_memory
from kvmctl.xml.metadata import promise


def admit_start(hypervisor: Hypervisor, guests: Sequence[Guest], force: bool, warn: Callable[[str], None]) -> None:
    """Raise RefusedError if the reservations of all guests would not fit once these have been started."""
    candidates = {
        sample.name: promise(domains.definition(domain), sample.vcpus)
        for sample, domain in guests
        if sample.state not in ACTIVE
    }
    _admit(hypervisor, candidates, force, warn)


def admit_plans(hypervisor: Hypervisor, plans: Iterable[GuestPlan], force: bool, warn: Callable[[str], None]) -> None:
    """Raise RefusedError if the reservations of all guests would not fit once these plans are applied."""
    candidates = {}
    for plan in plans:
        after = overlay(plan.current, plan.desired) if plan.current else plan.desired
        if plan.changes and (plan.brings_to or plan.live is not None):
            candidates[plan.name] = promise_of(after)
    _admit(hypervisor, candidates, force, warn)


def _admit(hypervisor: Hypervisor, candidates: Mapping[str, Promise], force: bool, warn: Callable[[str], None]) -> None:
    # First of all, so that a policy that cannot be read is said before anything is changed.
    cores = capacity(hypervisor)
    if not candidates:
        return
    running = {claim.name: claim.promise for claim, _ in claims(domains.samples_with_domains(hypervisor))}
    size = node(hypervisor)
    if size is None:
        return
    refused = [
        f"{what}: {verdict.arithmetic}"
        for what, verdict in _verdicts(hypervisor, running, candidates, cores, size.memory)
        if not verdict.admitted
    ]
    if not refused:
        return
    if not force:
        raise RefusedError(
            "this host cannot keep what would be promised:\n  " + "\n  ".join(refused),
            "lower a reservation, stop a guest, or use --force to break the promise knowingly",
        )
    for line in refused:
        warn(f"forced, so promises will not be kept: {line}")
    forced = [
        Outcome(Change(name, "admission", None, None, reason=f"forced: {line}"), "changed")
        for name in candidates
        for line in refused
    ]
    history.record(hypervisor.uri, time.time(), forced)


def _verdicts(
    hypervisor: Hypervisor,
    running: Mapping[str, Promise],
    candidates: Mapping[str, Promise],
    cores: Capacity,
    total: int,
) -> Iterator[tuple[str, Verdict]]:
    yield "CPU reservations", admit_cpu(running, candidates, cores.cores, cores.reserve)
    if not hypervisor.local:
        yield "memory reservations", admit_memory(running, candidates, total)
        return
    policy, now = host_policy().memory, memory.read()
    room = guests_memory(now.total, policy.reserve, policy.limit, memory.guests_limit())
    yield "memory reservations", admit_memory(running, candidates, now.total, room)
    if set(candidates) - set(running):
        yield "available memory", admit_state(now.available, reserve_of(policy, now.total))
    yield "memory overcommit", admit_overcommit(running, candidates, room, policy.overcommit)
    merged = ksm.sample()
    shared = saved(merged) if merged else 0
    yield (
        "what would be needed back",
        admit_unshare(shared, _ballooned(hypervisor), policy.cover, now.available, now.swap_free),
    )


def _ballooned(hypervisor: Hypervisor) -> int:
    """Bytes that balloons have taken from running guests."""
    samples = [sample.balloon for sample in domains.samples(hypervisor) if sample.state in ACTIVE]
    return sum(max(0, (one.maximum or 0) - (one.current or 0)) for one in samples)
