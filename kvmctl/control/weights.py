"""Keeping the kernel's CPU weights at what the running guests are entitled to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvmctl.host.journal import Entry, Journal
from kvmctl.hypervisor import domains, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError
from kvmctl.model.sample import GuestSample
from kvmctl.policy.cpu import CpuClaim, Entitlement, entitlements
from kvmctl.xml.metadata import promise

KIND = "weight"
"""The kind of these entries in the journal. A key names one run of a guest, since each start sets the weight anew."""

ACTIVE = ("running", "paused", "suspended", "stopping")
"""States in which a guest may want the CPU without anybody being told first."""


def renew(hypervisor: Hypervisor) -> tuple[Outcome, ...]:
    """Give every running guest the weight its entitlement is worth, and read it back; one Outcome per guest.

    Nothing is written where nothing differs. Only the running guest is changed: the shares in its definition are
    its owner's. A guest that fails or stops meanwhile does not keep the others from theirs.
    """
    claimed = claims(domains.samples_with_domains(hypervisor))
    if not claimed:
        return ()
    entitled = entitlements([claim for claim, _ in claimed], scheduler.host_cores(hypervisor))
    runs = [f"{hypervisor.uri} {domain.ID()} {claim.name}" for claim, domain in claimed]
    journal = Journal()
    known = journal.entries(KIND)
    outcomes = tuple(
        _renew_one(domain, one, journal, run, known.get(run))
        for (_claim, domain), one, run in zip(claimed, entitled, runs, strict=True)
    )
    if any(outcome.result == "changed" for outcome in outcomes):
        for run in known:
            if run.startswith(f"{hypervisor.uri} ") and run not in runs:
                journal.forget(KIND, run)
    return outcomes


def claims(guests: Iterable[tuple[GuestSample, Any]]) -> list[tuple[CpuClaim, Any]]:
    """What the running ones of these guests were promised, each with its libvirt handle; not those gone meanwhile."""
    found = []
    for sample, domain in guests:
        if sample.state not in ACTIVE:
            continue
        try:
            definition = domains.definition(domain)
        except NotFoundError:
            continue
        found.append((CpuClaim(sample.name, promise(definition, sample.vcpus), sample.vcpus), domain))
    return found


def _renew_one(domain: Any, entitled: Entitlement, journal: Journal, run: str, known: Entry | None) -> Outcome:
    try:
        found = scheduler.weight(domain)
    except KvmctlError as error:
        return Outcome(Change(entitled.name, "cpu.weight", None, entitled.weight), "not applied", _why(error))
    change = Change(entitled.name, "cpu.weight", found, entitled.weight)
    if found is None:
        return Outcome(change, "unchanged", "this hypervisor has no CPU weights")
    if found == entitled.weight:
        return Outcome(change, "unchanged", entitled.note, found)
    try:
        return _set(domain, change, entitled, journal, run, known)
    except KvmctlError as error:
        return Outcome(change, "not applied", _why(error), found)


def _set(
    domain: Any, change: Change, entitled: Entitlement, journal: Journal, run: str, known: Entry | None
) -> Outcome:
    with doing(f"read guest {entitled.name}"):
        transient = not domain.isPersistent()
    if transient:
        return Outcome(change, "not applied", "a transient guest has no other place for its shares", change.old)
    journal.record(KIND, run, change.old, entitled.weight)
    scheduler.set_weight(domain, entitled.weight)
    found = scheduler.weight(domain)
    if found != entitled.weight:
        return Outcome(change, "not applied", f"the kernel has {found} after {entitled.weight} was set", found)
    foreign = f"kvmctl had set {known.new}, and somebody else {change.old}" if known and known.new != change.old else ""
    return Outcome(change, "changed", "; ".join(filter(None, (foreign, entitled.note))), found)


def _why(error: KvmctlError) -> str:
    return "it is being started or stopped" if isinstance(error, NotFoundError | ConflictError) else error.message
