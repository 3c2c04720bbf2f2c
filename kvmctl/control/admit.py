"""Admission: no guest is promised what the host cannot keep for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from kvmctl.control.capacity import capacity
from kvmctl.control.plan import GuestPlan
from kvmctl.control.select import Guest
from kvmctl.control.weights import claims
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.host import node
from kvmctl.model.errors import RefusedError
from kvmctl.model.promise import Promise
from kvmctl.model.sample import ACTIVE
from kvmctl.policy.admission import admit_cpu, admit_memory
from kvmctl.policy.diff import overlay
from kvmctl.policy.promise import promise_of
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
    if not any(c.cpu_reservation or c.memory_reservation for c in candidates.values()):
        return
    running = {claim.name: claim.promise for claim, _ in claims(domains.samples_with_domains(hypervisor))}
    size = node(hypervisor)
    if size is None:
        return
    verdicts = {
        "CPU": admit_cpu(running, candidates, cores.cores, cores.reserve),
        "memory": admit_memory(running, candidates, size.memory),
    }
    refused = [f"{what} reservations: {v.arithmetic}" for what, v in verdicts.items() if not v.admitted]
    if not refused:
        return
    if not force:
        raise RefusedError(
            "this host cannot keep what would be promised:\n  " + "\n  ".join(refused),
            "lower a reservation, stop a guest, or use --force to break the promise knowingly",
        )
    for line in refused:
        warn(f"forced, so promises will not be kept: {line}")
