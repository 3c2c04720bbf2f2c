"""What a tick does about memory: KSM steered, balloons moved, cold memory swapped; each recorded and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvmctl.control.weights import BALLOON, BETWEEN, REPORTS, run_key_of
from kvmctl.host import ksm, ksm_steer, process
from kvmctl.host.cold import Pager
from kvmctl.host.journal import Journal
from kvmctl.host.thp import Splitter
from kvmctl.hypervisor import live, moving
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError
from kvmctl.model.host_sample import Snapshot
from kvmctl.model.reclaim import KsmAim, PageOut, ReclaimPlan
from kvmctl.model.sample import GuestSample
from kvmctl.model.trend import TrendPoint
from kvmctl.model.units import MIB
from kvmctl.policy.ksm import PAGE, saved, scan_rate
from kvmctl.policy.memory import due_size
from kvmctl.policy.memory_tick import guest_changes, swap_change

WATCH_SECONDS = 2
"""Between two reports of the balloon driver of a guest that has less memory than it is to have."""
SCORE = "oom-score"
"""The kind of these entries in the journal. A key names one run of a guest, as of its weight."""
HOST = "host"
"""What stands for the guest in a change of the host itself."""


def changes(plan: ReclaimPlan, now: Snapshot) -> tuple[Change, ...]:
    """Everything that `make` would change, in its order."""
    return (*_ksm_changes(plan.ksm, now), *guest_changes(plan))


def _ksm_changes(aim: KsmAim | None, now: Snapshot) -> Iterator[Change]:
    if aim is None:
        return
    for name, wanted in ksm_steer.wanted_values(aim, _rate(aim, now)).items():
        present = ksm.value(name)
        if present not in ("", wanted):
            yield Change(HOST, f"ksm.{name}", present, wanted, reason=aim.reason)


def _rate(aim: KsmAim, now: Snapshot) -> int:
    present = now.host.ksm.pages_to_scan if now.host and now.host.ksm else 0
    return scan_rate(present, mergeable(now), aim.scan_seconds, ksm.SLEEP_MILLISECS, aim.cores, at_once=aim.hurry)


def mergeable(now: Snapshot) -> int:
    """Bytes that KSM looks at: what the guests that share have resident."""
    return sum(
        (guest.process.rss if guest.process else None) or guest.balloon.rss or 0
        for guest in now.guests
        if guest.promise is not None and guest.promise.sharing and not guest.memory_fixed
    )


def make(
    plan: ReclaimPlan, now: Snapshot, handles: Mapping[str, Any], pager: Pager, splitter: Splitter
) -> tuple[Outcome, ...]:
    """Do what the plan says. One guest that fails does not stop the others. A balloon follows over seconds: that it
    was told counts as done here, and what has come of it the next tick sees. `pager` and `splitter` remember from tick
    to tick what they know of guests' memory.

    Raises KvmctlError where the journal cannot be written.
    """
    keys = {guest.name: run_key_of(now.uri, guest.name, guest.run) for guest in now.guests}
    journal = Journal()
    _journal(journal, REPORTS, {keys[change.guest]: change.old for change in plan.reports})
    _journal(journal, BALLOON, {keys[change.guest]: change.old for change in plan.balloons})
    _journal(journal, SCORE, {keys[change.guest]: change.old for change in plan.scores})
    pids = {guest.name: guest.process.pid for guest in now.guests if guest.process}
    guests = {guest.name: guest for guest in now.guests}
    told = (_report(handles[change.guest], change, journal, keys[change.guest]) for change in plan.reports)
    moved = (_move(handles[change.guest], change, guests[change.guest]) for change in plan.balloons)
    scored = (_score(pids[change.guest], change) for change in plan.scores)
    swapped = (outcome for one in plan.pageouts if (outcome := _swap(one, pager)))
    done = (*_steer(plan.ksm, now, journal), *told, *moved, *scored, *swapped)
    # What balloons have given back so far is there for nobody before.
    splitter.split(dict(plan.splits))
    return done


def _journal(journal: Journal, kind: str, olds: Mapping[str, object]) -> None:
    """Record what was before the first change of each; later ones add nothing."""
    known = journal.entries(kind) if olds else {}
    if new := {key: (old, None) for key, old in olds.items() if key not in known}:
        journal.record_all(kind, new)


def _score(pid: int, change: Change) -> Outcome:
    assert isinstance(change.new, int)
    try:
        found = process.set_oom_score_adj(pid, change.new)
    except KvmctlError as error:
        return Outcome(change, "not applied", error.message, change.old)
    return Outcome(change, "changed" if found == change.new else "not applied", change.reason, found)


def _steer(aim: KsmAim | None, now: Snapshot, journal: Journal) -> Iterator[Outcome]:
    if aim is None:
        return
    for one in ksm_steer.steer(aim, _rate(aim, now), journal):
        change = Change(HOST, f"ksm.{one.file}", one.old, one.wanted, reason=aim.reason)
        if one.respected:
            change = Change(HOST, change.field, one.old, one.wanted, how="refused", reason=one.reason)
        yield Outcome(change, one.result, one.reason, one.found)


def _report(domain: Any, change: Change, journal: Journal, key: str) -> Outcome:
    """Have the guest's balloon driver report; where that fails, the next tick tries it again."""
    assert isinstance(change.new, int)
    try:
        live.set_stats_period(domain, change.new)
    except KvmctlError as error:
        journal.forget(REPORTS, key)
        between = isinstance(error, NotFoundError | ConflictError)
        return Outcome(change, "not applied", BETWEEN if between else error.message, change.old)
    return Outcome(change, "changed", change.reason, change.new)


def _move(domain: Any, change: Change, guest: GuestSample) -> Outcome:
    assert isinstance(change.new, int)
    if busy := moving.blocked_by(domain):
        return Outcome(replace(change, how="refused"), "not applied", busy, change.old)
    whole = change.new >= due_size(guest)
    try:
        live.set_balloon(domain, change.new)
        # Who has less than it is to have tells more often how it fares.
        live.set_stats_period(domain, guest.stats_period if whole else min(WATCH_SECONDS, guest.stats_period))
    except (NotFoundError, ConflictError):
        return Outcome(change, "not applied", BETWEEN, change.old)
    except KvmctlError as error:
        return Outcome(change, "not applied", error.message, change.old)
    return Outcome(change, "changed", change.reason, change.new)


def _swap(one: PageOut, pager: Pager) -> Outcome | None:
    """None where next to nothing went: what is cold is found out in one tick, and goes in a later one."""
    change = swap_change(one)
    try:
        moved = pager.page_out(one.pid, one.size, one.amount, one.haste, one.merged)
    except NotFoundError:
        return Outcome(change, "not applied", BETWEEN, one.swapped)
    except KvmctlError as error:
        return Outcome(change, "not applied", error.message, one.swapped)
    if moved.moved < MIB:
        return None
    return Outcome(replace(change, new=one.swapped + moved.moved), "changed", change.reason, one.swapped + moved.moved)


def point(state: str | None, now: Snapshot) -> TrendPoint:
    """What the history of memory keeps of one tick."""
    host = now.host
    balloons = [guest.balloon for guest in now.guests]
    kernel = [guest.process for guest in now.guests if guest.process]
    merging = [one.ksm_merging_pages for one in kernel]
    return TrendPoint(
        total=host.memory_total if host else None,
        available=host.memory_available if host else None,
        state=state,
        size=_sum([one.maximum for one in balloons]),
        balloon=_sum([one.current for one in balloons]),
        resident=_sum([one.rss for one in kernel]),
        shared=None if (pages := _sum(merging)) is None else pages * PAGE,
        swapped=_sum([one.swapped for one in kernel]),
        ksm_saved=saved(host.ksm) if host and host.ksm else None,
    )


def _sum(values: Sequence[int | None]) -> int | None:
    """One unknown makes the sum unknown."""
    return None if None in values else sum(value for value in values if value is not None)
