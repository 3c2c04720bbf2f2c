"""Moving one guest: begun in the journal, watched while it runs, then both hosts are asked where the guest is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from kvmctl.control import move_facts, move_record, move_settle
from kvmctl.control.move_copy import Copier
from kvmctl.control.move_record import MoveRecord
from kvmctl.control.move_settle import Begun
from kvmctl.control.wait import interrupted
from kvmctl.control.weights import BALLOON, run_key
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor import domains, live, moving
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, LockedError
from kvmctl.model.migration import Forecast, JobSample, MigrationOptions, MovedDisk, MovedGuest
from kvmctl.model.sample import ACTIVE
from kvmctl.model.wording import argument
from kvmctl.policy.forecast import forecast
from kvmctl.policy.migration import is_copied, is_copied_here

POLL = 0.25
"""Seconds between two questions how far a move is."""
OVERHEAD = 1.5
"""Seconds that a move takes beside the transfer, for a QEMU that starts and one that ends, where none is known yet."""
ASSUMED = 117 << 20
"""Bytes a second of a network of which nothing is known: what a gigabit carries."""

Progress = Callable[[str, JobSample], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """How a move went; without a forecast, a guest that was off."""

    guest: str
    seconds: float
    expected: Forecast | None
    job: JobSample | None
    left_behind: tuple[str, ...]
    """Images that were copied, and are still at the source."""


@dataclass
class _Run:
    """A move that goes on: what the journal has of it, and what was seen."""

    journal: Journal
    begun: Begun
    copied: JobSample | None = None
    """How the copying of images here went."""
    throttled: int = 0
    """Per cent by which the guest was slowed down at most."""

    def makes(self, made: tuple[str, ...]) -> None:
        """These images are at the target, and not whole yet, or of no use without the guest."""
        self.begun = replace(self.begun, made=made)
        move_settle.begin(self.journal, self.begun)

    def asks(self, making: tuple[str, ...]) -> None:
        """libvirt is about to move the guest, and to make these images as well."""
        self.begun = replace(self.begun, made=(*self.begun.made, *making), asked=True)
        move_settle.begin(self.journal, self.begun)


class Mover:
    """Moves guests between two hosts."""

    def __init__(
        self,
        source: Hypervisor,
        target: Hypervisor,
        options: MigrationOptions,
        progress: Progress = lambda _guest, _sample: None,
        say: Callable[[str], None] = lambda _text: None,
        at_once: int = 1,
    ) -> None:
        """`at_once` is how many guests share the way."""
        self.source = source
        self.target = target
        self.options = options
        self._progress = progress
        self._say = say
        self._at_once = at_once
        self._copier = Copier(source, target, options.bandwidth)

    def expect(self, guest: MovedGuest, domain: Any) -> Forecast | None:
        """How long the move will take, and whether it comes to an end, from what `start_dirty_rate` has measured."""
        if guest.state not in ACTIVE:
            return None
        rate = moving.dirty_rate(self.source, domain) if guest.state == "running" else 0
        speed, overhead = move_record.learnt(self.target.uri)
        options, source = self.options, "measured in moves before" if speed else "assumed"
        shared = (speed or ASSUMED) // self._at_once
        if options.bandwidth and (not speed or options.bandwidth < shared):
            shared, source = options.bandwidth, "as given"
        return forecast(
            memory=move_facts.sent(self.source, guest, domain),
            dirty_rate=rate,
            bandwidth=shared,
            max_downtime=options.max_downtime,
            disks=move_facts.disk_bytes(self._copied(guest)),
            overhead=OVERHEAD if overhead is None else overhead,
            source=source,
            auto_converge=options.auto_converge,
            post_copy=options.post_copy,
        )

    def move(self, guest: MovedGuest, expected: Forecast | None) -> Moved:
        """Move a guest that nothing stands in the way of. Raises KvmctlError that says where the guest is."""
        try:
            with lock(move_settle.lock_name(guest.uuid)), self._alone() as mover:
                return mover._move(guest, expected)
        except LockedError as error:
            raise LockedError(f"guest {guest.name} is being moved already: {error.message}", error.hint) from error

    @contextmanager
    def _alone(self) -> Iterator[Mover]:
        """A mover with connections of its own, where several guests move at once: a daemon stops listening to one on
        which five calls are going on, as each of these is all the time, and takes it for dead after half a minute."""
        if self._at_once == 1:
            yield self
            return
        with ExitStack() as opened:
            own = copy(self)
            own.source = opened.enter_context(open_hypervisor(self.source.uri))
            if self.options.direct:
                own.target = opened.enter_context(open_hypervisor(self.target.uri))
            yield own

    def _move(self, guest: MovedGuest, expected: Forecast | None) -> Moved:
        domain = moving.find(self.source, guest.uuid)
        run = _Run(Journal(), self._begun(guest, domain))
        off = guest.state not in ACTIVE
        before = None if off or self.options.max_downtime is None else moving.max_downtime(domain)
        owed = run.journal.entries(BALLOON).get(run_key(self.source, guest.name, domain.ID()))
        started = time.monotonic()
        failure: KvmctlError | None = None
        try:
            self._bring(domain, guest, run)
        except KvmctlError as error:
            failure = error
        seconds = time.monotonic() - started
        place = move_settle.settle(run.journal, run.begun, self.source, self.target)
        if place != "moved":
            if before is not None:
                with suppress(KvmctlError):
                    moving.set_max_downtime(moving.find(self.source, guest.uuid), before)
            raise _failed(guest, failure, self._where(guest))
        if owed is not None and isinstance(owed.old, int):
            # The target does not know that this was taken from it here.
            with suppress(KvmctlError):
                live.set_balloon(moving.find(self.target, guest.uuid), owed.old)
        job = run.copied if off else self._job_of(guest, run.throttled)
        copied = self._copied(guest)
        self._record(guest, expected, job, seconds, move_facts.disk_bytes(copied))
        return Moved(guest.name, seconds, expected, job, tuple(str(disk.path) for disk in copied if not disk.read_only))

    def _begun(self, guest: MovedGuest, domain: Any) -> Begun:
        return Begun(
            guest=guest.name,
            uuid=guest.uuid,
            source=self.source.uri,
            target=self.target.uri,
            autostart=domains.autostart(domain),
            offline=guest.state not in ACTIVE,
            asked=False,
        )

    def _bring(self, domain: Any, guest: MovedGuest, run: _Run) -> None:
        """Copy what is to be copied here, then have libvirt do the rest. Raises KvmctlError."""
        options = self.options.of(guest.state)
        copied = self._copied(guest)
        ours = [disk for disk in copied if is_copied_here(disk, options)]
        rest = [disk for disk in copied if disk not in ours]
        if ours:
            run.copied = self._copier.copy(ours, run.makes, lambda sample: self._progress(guest.name, sample))
        run.asks(self._copier.making(rest, options.overwrite))
        if not options.offline:
            self._carry(domain, guest, rest, run)
            return
        if (state := domains.state(domain)) != guest.state:
            raise ConflictError(f"guest {guest.name} is {state} now", "move it again: one that runs moves live")
        moving.migrate(domain, self.target, options)

    def _copied(self, guest: MovedGuest) -> tuple[MovedDisk, ...]:
        return tuple(disk for disk in guest.disks if is_copied(disk, self.options.of(guest.state)))

    def _carry(self, domain: Any, guest: MovedGuest, copied: Sequence[MovedDisk], run: _Run) -> None:
        """Have libvirt move it live, and watch. Raises KvmctlError; on an interrupt the move is given up first."""
        if self.options.max_downtime is not None:
            moving.set_max_downtime(domain, self.options.max_downtime)
        failed: list[KvmctlError] = []
        # What libvirt would refuse of the others has been looked at before.
        unsafe = any(disk not in copied and disk.kind != "network" for disk in guest.disks)

        def carrying() -> None:
            try:
                moving.migrate(
                    domain, self.target, self.options.of(guest.state), [disk.target for disk in copied], unsafe
                )
            except KvmctlError as error:
                failed.append(error)

        thread = threading.Thread(target=carrying, name=f"move {guest.name}")
        thread.start()
        aborted = switched = False
        while thread.is_alive():
            thread.join(POLL)
            sample = self._watch(domain)
            if sample:
                run.throttled = max(run.throttled, sample.throttled)
                self._progress(guest.name, sample)
            if interrupted.is_set() and not aborted:
                # A job that is about to begin cannot be given up yet: it is tried again then.
                with suppress(KvmctlError):
                    moving.abort(domain)
                    aborted = True
            if self.options.post_copy and sample and sample.rounds > 1 and not switched:
                with suppress(KvmctlError):
                    moving.switch_to_post_copy(domain)
                    switched = True
        if aborted:
            raise KvmctlError("the move was given up", f"kvmctl migrate {argument(guest.name)} … tries again")
        if failed:
            raise failed[0]

    def _watch(self, domain: Any) -> JobSample | None:
        try:
            return moving.job(domain)
        except KvmctlError:
            # The daemon is gone; the thread gets to know that too.
            return None

    def _where(self, guest: MovedGuest) -> str:
        """Where a guest is that has not moved, in words."""
        try:
            state = domains.state(moving.find(self.source, guest.uuid))
        except KvmctlError:
            return "it is where it was"
        off = guest.state in ACTIVE and state not in ACTIVE
        return f"it is where it was, but {state} now" if off else "it is where it was"

    def _job_of(self, guest: MovedGuest, throttled: int) -> JobSample | None:
        if guest.state not in ACTIVE:
            return None
        with suppress(KvmctlError):
            job = moving.completed(moving.find(self.target, guest.uuid))
            # Once it is over, nothing is slowed down any more.
            return job and replace(job, throttled=throttled)
        return None

    def _record(
        self, guest: MovedGuest, expected: Forecast | None, job: JobSample | None, seconds: float, disks: int
    ) -> None:
        if guest.state not in ACTIVE:
            return
        done = MoveRecord(
            time=round(time.time(), 3),
            guest=guest.name,
            source=self.source.uri,
            target=self.target.uri,
            seconds=round(seconds, 3),
            expected=round(expected.seconds, 3) if expected else None,
            transfer=job.elapsed if job else None,
            downtime=job.downtime if job else None,
            expected_downtime=round(expected.downtime, 3) if expected else None,
            sent=job.memory_sent if job else 0,
            disks=disks,
            speed=round(job.memory_sent / job.elapsed) if job and job.elapsed else 0,
            limited=self.options.bandwidth is not None or self._at_once > 1,
            dirty_rate=expected.dirty_rate if expected else None,
            rounds=job.rounds if job else 0,
            throttled=job.throttled if job else 0,
        )
        try:
            move_record.record(done)
        except KvmctlError as error:
            self._say(f"the move of guest {guest.name} is not recorded: {error.message}")


def _failed(guest: MovedGuest, failure: KvmctlError | None, where: str) -> KvmctlError:
    """The failure, with where the guest is now."""
    if failure is None:
        return KvmctlError(f"guest {guest.name} was not moved: {where}", "libvirt's log on both hosts may have more")
    kind = type(failure)
    return kind(f"{failure.message}; {where}", failure.hint)
