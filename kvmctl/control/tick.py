"""One round of the controller: observe, decide, apply, read back, record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmctl.control import ground, history, remember
from kvmctl.control.ground import GroundPlan
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.observe import Observed, Observer
from kvmctl.control.weights import KIND, forget_ended, run_key, set_weight
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError
from kvmctl.model.hostpolicy import HostPolicy
from kvmctl.model.plan import Plan
from kvmctl.policy.tick import decide

LOCK_WAIT = 3.0
"""Seconds that a tick waits for a person's command to finish before it leaves its turn out."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one tick decided, and what became of it; `complaints` are of what could not be recorded."""

    observed: Observed
    ground: GroundPlan
    plan: Plan
    outcomes: tuple[Outcome, ...] = ()
    complaints: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """Everything that is to be changed, in order."""
        return self.ground.changes + self.plan.changes


class Controller:
    """Ticks for one hypervisor, of which it remembers the last."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        """Raises UsageError where the host's policy cannot be read."""
        self.hypervisor = hypervisor
        self.policy = host_policy() if hypervisor.local else HostPolicy()
        self.observer = Observer(hypervisor)
        self.memory, self.note = remember.recall(hypervisor.uri)

    def moved_to(self, hypervisor: Hypervisor) -> Controller:
        """The same controller on another connection to the same hypervisor."""
        moved = Controller(hypervisor)
        moved.memory, moved.note = self.memory, ""
        return moved

    def plan(self) -> Ticked:
        """Observe and decide, and change nothing."""
        observed = self.observer.observe()
        below = ground.plan(observed, self.memory, self.policy)
        return Ticked(observed, below, decide(observed.snapshot, self.memory, self.policy))

    def tick(self) -> Ticked:
        """One whole round, under the hypervisor's lock. Raises LockedError where that is not to be had in time."""
        with lock(self.hypervisor.uri, LOCK_WAIT):
            planned = self.plan()
            outcomes = ground.make(planned.ground)
            outcomes += apply(self.hypervisor, planned.observed.handles, planned.plan.changes)
        self.memory = planned.plan.memory
        return replace(planned, outcomes=outcomes, complaints=tuple(self._record(planned, outcomes)))

    def _record(self, planned: Ticked, outcomes: Sequence[Outcome]) -> list[str]:
        """Record what was changed, and what is to be remembered; a sentence for each that fails."""
        complaints = []
        snapshot = planned.observed.snapshot
        try:
            history.record(snapshot.uri, snapshot.clock, outcomes)
        except KvmctlError as error:
            complaints.append(f"{error.message}: these changes are not in the history")
        try:
            remember.remember(snapshot.uri, planned.plan.memory)
        except KvmctlError as error:
            complaints.append(f"{error.message}: the next run begins without what this one remembers")
        return complaints


def apply(hypervisor: Hypervisor, handles: Mapping[str, Any], changes: Sequence[Change]) -> tuple[Outcome, ...]:
    """Do what the plan says and read each back; one guest that fails does not stop the others.

    Nothing is changed that the journal does not have: raises KvmctlError where it cannot be written.
    """
    journal = Journal()
    forget_ended(hypervisor, journal, {run_key(hypervisor, name, domain.ID()) for name, domain in handles.items()})
    due = [change for change in changes if change.how == "live"]
    keys = {change.guest: run_key(hypervisor, change.guest, handles[change.guest].ID()) for change in due}
    if due:
        journal.record_all(KIND, {keys[change.guest]: (change.old, change.new) for change in due})
    return tuple(
        set_weight(handles[change.guest], change)
        if change.how == "live"
        else Outcome(change, "not applied", change.reason, change.old)
        for change in changes
    )
