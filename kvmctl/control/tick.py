"""One round of the controller: observe, decide, apply, read back, record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from kvmctl.control import ground, history, reclaim, remember, trend
from kvmctl.control.ground import GroundPlan
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.observe import Observed, Observer, again
from kvmctl.control.weights import (
    BALLOON,
    BETWEEN,
    KIND,
    REPORTS,
    compared,
    follow_runs,
    forget_ended,
    run_key,
    set_weight,
)
from kvmctl.host import cgroup
from kvmctl.host.cold import Pager
from kvmctl.host.counters import Place
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.host.thp import Splitter
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError
from kvmctl.model.hostpolicy import HostPolicy
from kvmctl.model.plan import Memory, Plan
from kvmctl.model.reclaim import ReclaimPlan
from kvmctl.policy import memory_tick
from kvmctl.policy.tick import decide, window

LATE = 100_000_000
"""Nanoseconds after which what was observed is observed again before weights are decided from it."""
LOCK_WAIT = 3.0
"""Seconds that a tick waits for a person's command to finish before it leaves its turn out."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one tick decided, and what became of it; `complaints` are of what could not be recorded."""

    observed: Observed
    ground: GroundPlan
    plan: Plan
    reclaim: ReclaimPlan
    outcomes: tuple[Outcome, ...] = ()
    complaints: tuple[str, ...] = ()

    @property
    def memory(self) -> Memory:
        """What is to be remembered."""
        return replace(self.plan.memory, reclaim=self.reclaim.memory)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Everything that is to be changed, in order."""
        memory = reclaim.changes(self.reclaim, self.observed.snapshot)
        return self.ground.changes + self.plan.changes + memory

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of the guests."""
        return self.plan.notes + self.reclaim.notes


class Controller:
    """Ticks for one hypervisor, of which it remembers the last. `trim` may be called by another thread than `tick`,
    where this was said to be `trimming`."""

    def __init__(self, hypervisor: Hypervisor, trimming: bool = False) -> None:
        """Raises UsageError where the host's policy cannot be read."""
        self.hypervisor = hypervisor
        self.trimming = trimming and hypervisor.local
        self.policy = host_policy() if hypervisor.local else HostPolicy()
        self.observer = Observer(hypervisor)
        self.memory, self.note = remember.recall(hypervisor.uri)
        self._at_tick = self.memory
        """As it was at the last tick: weights above the guests' follow what was used in longer times."""
        self._last: Observed | None = None
        self._weights: dict[str, int] = {}
        """What guests weigh, as far as this controller knows, by name."""
        self._pager, self._splitter = Pager(), Splitter()
        self._deciding = Lock()
        self._ticking = False

    def moved_to(self, hypervisor: Hypervisor) -> Controller:
        """The same controller on another connection to the same hypervisor."""
        moved = Controller(hypervisor, self.trimming)
        moved.memory, moved._at_tick, moved.note = self.memory, self._at_tick, ""
        moved._pager, moved._splitter = self._pager, self._splitter
        return moved

    def observe(self, weights: Mapping[str, int] | None = None) -> Observed:
        """What there is to be decided from; more closely where the host was short of memory at the last tick.
        `weights` as for `Observer.observe`."""
        before = self.memory.reclaim if self.memory else None
        return self.observer.observe(weights, closely=before is not None and before.short > 0)

    def plan(self) -> Ticked:
        """Observe and decide, and change nothing."""
        observed = self.observe()
        return self._decide(observed, ground.plan(observed, self._at_tick, self.policy))

    def _decide(self, observed: Observed, below: GroundPlan) -> Ticked:
        plan = decide(observed.snapshot, self.memory, self.policy)
        before = self.memory.reclaim if self.memory else None
        return Ticked(observed, below, plan, memory_tick.decide(observed.snapshot, before, self.policy.memory))

    def tick(self) -> Ticked:
        """One whole round, under the hypervisor's lock. Raises LockedError where that is not to be had in time."""
        with self._locked():
            observed = self.observe(self._weights)
            below = ground.plan(observed, self._at_tick, self.policy)
            outcomes = ground.make(below)
            if self.trimming:
                self._let_go(observed)
            # Files on a disk are written outside of this: on a busy host that takes seconds.
            with self._deciding:
                late = self.trimming and time.monotonic_ns() - observed.snapshot.taken > LATE
                later = again(observed, self._weights) if late else None
                planned = self._decide(replace(observed, snapshot=later) if later else observed, below)
                weights = apply(self.hypervisor, planned.observed, planned.plan.changes, journaled=self.trimming)
                self.memory = self._at_tick = planned.memory
                self._last, self._weights = planned.observed, _known(planned, weights)
            # Weights are trimmed meanwhile: to tell a guest its balloon's target takes libvirt its time.
            self._forget(observed)
            moved = reclaim.make(planned.reclaim, observed.snapshot, observed.handles, self._pager, self._splitter)
        outcomes += weights + moved
        return replace(planned, outcomes=outcomes, complaints=tuple(self._record(planned, outcomes)))

    def _forget(self, observed: Observed) -> None:
        runs = {run_key(self.hypervisor, guest.name, guest.run) for guest in observed.snapshot.guests}
        follow_runs(self.hypervisor, Journal(), observed.snapshot.guests)
        for kind in (BALLOON, REPORTS, reclaim.SCORE):
            forget_ended(self.hypervisor, Journal(), runs, kind)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with lock(self.hypervisor.uri, LOCK_WAIT):
            self._ticking = True
            try:
                yield
            finally:
                self._ticking = False

    def _let_go(self, observed: Observed) -> None:
        """Record that the guests' weights are going to be moved all the time, so that nothing has to be recorded when
        they are. Not of those that somebody else has set and that are respected. Raises KvmctlError."""
        journal = Journal()
        runs = {run_key(self.hypervisor, guest.name, guest.run) for guest in observed.snapshot.guests}
        forget_ended(self.hypervisor, journal, runs)
        entries = journal.entries(KIND)
        due = {}
        for guest in observed.snapshot.guests:
            key, weight = run_key(self.hypervisor, guest.name, guest.run), guest.process and guest.process.weight
            strange = guest.weight_set not in (None, weight) and self.policy.cpu.foreign == "respect"
            if weight is not None and not strange and (key not in entries or entries[key].new is not None):
                due[key] = (weight, None)
        if due:
            journal.record_all(KIND, due)

    def settle(self) -> None:
        """Record what the guests weigh in the end, so that the next run notices what somebody else changes.

        Raises KvmctlError.
        """
        guests = self._last.snapshot.guests if self._last else ()
        runs = {guest.name: run_key(self.hypervisor, guest.name, guest.run) for guest in guests}
        with self._deciding:
            found = {runs[name]: (weight, weight) for name, weight in self._weights.items() if name in runs}
        if found and self.trimming:
            Journal().record_all(KIND, found)

    def trim(self) -> None:
        """Between two ticks: correct the weights of guests of which more than one wants more than it gets, from the
        kernel's counters alone. Whatever else has to be done or said is left to the next tick.

        Raises KvmctlError.
        """
        with self._deciding:
            drifts = self.memory and any(guest.factor != 1.0 for guest in self.memory.guests.values())
            if not drifts or self._last is None or self.policy.cpu.correct == "off":
                return
            with nullcontext() if self._ticking else lock(self.hypervisor.uri):
                self._trim(self._last)

    def _trim(self, last: Observed) -> None:
        now = again(last, self._weights)
        if now is None or not window(now, self.memory):
            return  # a guest is gone, or it is too soon to say anything
        plan = decide(now, self.memory, self.policy)
        ours = {g.name for g in now.guests if g.process and g.process.weight == self._weights.get(g.name)}
        for change in plan.changes:
            if change.guest in ours:
                place = last.places[change.guest]
                self._weights[change.guest] = cgroup.set_weight(place.directory, place.version, _weight(change))
        self.memory = plan.memory

    def _record(self, planned: Ticked, outcomes: Sequence[Outcome]) -> list[str]:
        """Record what was changed, and what is to be remembered; a sentence for each that fails."""
        complaints = []
        snapshot = planned.observed.snapshot
        try:
            history.record(snapshot.uri, snapshot.clock, outcomes)
        except KvmctlError as error:
            complaints.append(f"{error.message}: these changes are not in the history")
        try:
            if snapshot.host is not None and snapshot.host.memory_total:
                trend.record(snapshot.uri, snapshot.clock, reclaim.point(planned.reclaim.state, snapshot))
        except KvmctlError as error:
            complaints.append(f"{error.message}: what was seen of the memory is not in its history")
        try:
            remember.remember(snapshot.uri, planned.memory)
        except KvmctlError as error:
            complaints.append(f"{error.message}: the next run begins without what this one remembers")
        return complaints


def apply(
    hypervisor: Hypervisor, observed: Observed, changes: Sequence[Change], journaled: bool = False
) -> tuple[Outcome, ...]:
    """Do what the plan says and read each back; one guest that fails does not stop the others.

    Nothing is changed that the journal does not have, unless it is `journaled` already: raises KvmctlError where it
    cannot be written.
    """
    handles = observed.handles
    if not journaled:
        journal = Journal()
        runs = {name: run_key(hypervisor, name, domain.ID()) for name, domain in handles.items()}
        forget_ended(hypervisor, journal, set(runs.values()))
        due = {runs[one.guest]: (one.old, one.new) for one in changes if one.how == "live"}
        if due:
            journal.record_all(KIND, due)
    return tuple(
        _set(observed.places.get(change.guest), handles[change.guest], change)
        if change.how == "live"
        else Outcome(change, "not applied", change.reason, change.old)
        for change in changes
    )


def _set(place: Place | None, domain: Any, change: Change) -> Outcome:
    """Set a weight and read it back: in the kernel itself where it is to be seen, since libvirt takes seconds for it
    on a busy host."""
    if place is None:
        return set_weight(domain, change)
    try:
        found = cgroup.set_weight(place.directory, place.version, _weight(change))
    except KvmctlError as error:
        reason = error.message if place.directory.exists() else BETWEEN
        return Outcome(change, "not applied", reason, change.old)
    return compared(change, found)


def _known(planned: Ticked, weights: Sequence[Outcome]) -> dict[str, int]:
    """What the guests weigh after a tick; not those that somebody else has set and that are respected."""
    found = {g.name: g.process.weight for g in planned.observed.snapshot.guests if g.process}
    found |= {one.change.guest: _weight(one.change) for one in weights if one.result == "changed"}
    refused = {one.change.guest for one in weights if one.change.how == "refused"}
    return {name: weight for name, weight in found.items() if weight is not None and name not in refused}


def _weight(change: Change) -> int:
    assert isinstance(change.new, int)
    return change.new
