"""Keeping the kernel's CPU weights at what the running guests are entitled to."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from typing import Any

from kvmctl.control.capacity import capacity, cpus
from kvmctl.control.foreign import foreign
from kvmctl.host.journal import Entry, Journal
from kvmctl.hypervisor import domains, moving, scheduler
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError
from kvmctl.model.sample import ACTIVE, GuestSample
from kvmctl.policy.cpu import CpuClaim, Entitlement, entitlements
from kvmctl.policy.memory import due_size
from kvmctl.xml import resources, tree
from kvmctl.xml.metadata import promise_in

BALLOON = "balloon"
"""The kind of what was changed of guests' balloons."""
REPORTS = "balloon-reports"
"""The kind of what was changed of how often their balloon drivers report."""
KIND = "weight"
"""The kind of these entries in the journal. A key names one run of a guest, since each start sets the weight anew."""

BETWEEN = "it is being started or stopped"


def renew(hypervisor: Hypervisor) -> tuple[Outcome, ...]:
    """Give every running guest the weight its entitlement is worth, and read it back; one Outcome per guest.

    Nothing is written where nothing differs. Only the running guest is changed: the shares in its definition are
    its owner's. A guest that fails or stops meanwhile does not keep the others from theirs. Raises UsageError where
    the host's policy cannot be read.
    """
    claimed = claims(domains.samples_with_domains(hypervisor))
    plain = [claim for claim, _domain in claimed]
    entitled = entitlements(plain, capacity(hypervisor).guests, cpus(hypervisor, plain)) if claimed else ()
    runs = [run_key(hypervisor, claim.name, domain.ID()) for claim, domain in claimed]
    journal = Journal()
    known = journal.entries(KIND)
    forget_ended(hypervisor, journal, set(runs))
    handles = [domain for _claim, domain in claimed]
    found = [_compare(domain, one) for domain, one in zip(handles, entitled, strict=True)]
    due = {run: one.change for run, one in zip(runs, found, strict=True) if one.result == "changed"}
    if due:
        journal.record_all(KIND, {run: (change.old, change.new) for run, change in due.items()})
    return tuple(
        _set(domain, outcome, known.get(run)) if run in due else outcome
        for domain, outcome, run in zip(handles, found, runs, strict=True)
    )


def run_key(hypervisor: Hypervisor, guest: str, run: int | None) -> str:
    """The journal's key for the weight of one run of a guest."""
    return run_key_of(hypervisor.uri, guest, run)


def run_key_of(uri: str, guest: str, run: int | None) -> str:
    """The journal's key for one run of a guest of the hypervisor with this URI."""
    return f"{uri} {run} {guest}"


def forget_ended(hypervisor: Hypervisor, journal: Journal, runs: Set[str], kind: str = KIND) -> None:
    """Drop from the journal what was changed of runs that have ended: nothing of it is left to undo."""
    of_this = f"{hypervisor.uri} "
    if ended := [run for run in journal.entries(kind) if run.startswith(of_this) and run not in runs]:
        journal.forget(kind, *ended)


def follow_runs(hypervisor: Hypervisor, journal: Journal, guests: Iterable[GuestSample]) -> None:
    """Keep in the journal what was taken by balloon from guests that go on in another run, as one does that was saved
    and resumed, with its balloon as it was: it is owed to them still."""
    entries, of_this = journal.entries(BALLOON), f"{hypervisor.uri} "
    former = {run[len(of_this) :].partition(" ")[2]: one for run, one in entries.items() if run.startswith(of_this)}
    for guest in guests:
        key = run_key(hypervisor, guest.name, guest.run)
        actual = guest.balloon.current
        if key not in entries and guest.name in former and actual is not None and actual < due_size(guest):
            journal.record(BALLOON, key, former[guest.name].old, None)


def claims(guests: Iterable[tuple[GuestSample, Any]]) -> list[tuple[CpuClaim, Any]]:
    """What the running ones of these guests were promised, each with its libvirt handle; not those gone meanwhile.

    Where a definition pins its guest, the running guest is asked where it may run: that costs a call.
    """
    found = []
    for sample, domain in guests:
        if sample.state not in ACTIVE:
            continue
        try:
            root = tree.read(domains.definition(domain))
            places = scheduler.cpus(domain) if resources.allowed(root) else frozenset[int]()
        except NotFoundError:
            continue
        promise = promise_in(root, sample.vcpus)
        found.append((CpuClaim(sample.name, promise, sample.vcpus, cpus=places), domain))
    return found


def _compare(domain: Any, entitled: Entitlement) -> Outcome:
    """The weight the guest has and the one it is due, as `changed` where that is still to be done."""
    try:
        found = scheduler.weight(domain)
        change = Change(entitled.name, "cpu.weight", found, entitled.weight)
        if found is None:
            return Outcome(change, "unchanged", "this hypervisor has no CPU weights")
        if found == entitled.weight:
            return Outcome(change, "unchanged", entitled.note, found)
        if not domains.is_persistent(domain):
            return Outcome(change, "not applied", "a transient guest has no other place for its shares", found)
    except KvmctlError as error:
        return Outcome(Change(entitled.name, "cpu.weight", None, entitled.weight), "not applied", _why(error))
    return Outcome(change, "changed", entitled.note)


def _set(domain: Any, due: Outcome, known: Entry | None) -> Outcome:
    done = set_weight(domain, due.change)
    if done.result != "changed":
        return done
    return replace(done, reason="; ".join(filter(None, (foreign(known, due.change.old), due.reason))))


def set_weight(domain: Any, change: Change) -> Outcome:
    """Set the weight and read it back."""
    assert isinstance(change.new, int)
    if busy := moving.blocked_by(domain):
        return Outcome(change, "not applied", busy, change.old)
    try:
        scheduler.set_weight(domain, change.new)
        found = scheduler.weight(domain)
    except KvmctlError as error:
        return Outcome(change, "not applied", _why(error), change.old)
    return compared(change, found)


def compared(change: Change, found: int | None) -> Outcome:
    """What became of a change after which the kernel has this weight."""
    if found != change.new:
        return Outcome(change, "not applied", f"the kernel has {found} after {change.new} was set", found)
    return Outcome(change, "changed", found=found)


def _why(error: KvmctlError) -> str:
    return BETWEEN if isinstance(error, NotFoundError | ConflictError) else error.message
