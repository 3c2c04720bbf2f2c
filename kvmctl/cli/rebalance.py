"""`kvmctl rebalance`: keep the running guests' promises, once or for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import Column, detail, emit, emit_document, note, table, warn
from kvmctl.cli.schedule import install, uninstall
from kvmctl.model.errors import EXIT_PENDING, KvmctlError, LockedError, PartialError, UnreachableError, UsageError
from kvmctl.model.units import human_size
from kvmctl.model.wording import without_amounts

if TYPE_CHECKING:
    from kvmctl.control.history import Record
    from kvmctl.control.tick import Controller, Ticked
    from kvmctl.model.change import Change, Outcome
    from kvmctl.model.plan import Plan

_CHANGES = (
    Column("name", "GUEST"),
    Column("field", "FIELD"),
    Column("old", "OLD", right=True),
    Column("new", "NEW", right=True),
)
_OUTCOMES = (*_CHANGES, Column("result", "RESULT"), Column("reason", "REASON"))
_PLANNED = (*_CHANGES, Column("reason", "REASON"))

_BYTES = ("memory.balloon", "memory.swapped", "memory.protected")
"""The fields whose values are bytes."""

TRIM_SECONDS = 0.25
"""How often weights are trimmed between two ticks. The kernel moves threads between CPUs a few times a second, and a
guest that is alone on one gets all of it whatever it weighs. Largest errors over 25 s beside a busy process, trimmed
each 0.25, 0.5 and 5 s: three guests on two CPUs 1.8, 2.3 and 5.8 %; shares of 8:4:2:1:1 1.8, 3.3 and 4.8 %."""
TRIM_CORES = 0.02
"""The part of a core that this may cost: with many guests it is done less often."""
ALERT_SECONDS = 2.0
"""How often a tick comes while the host is short of memory, or a guest has less than it is to have: such a guest may
need it back at any time."""
ALERT_CORES = 0.01
"""The part of a core that this may cost: with many guests such ticks come later, though never later than the others."""


def _optional(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    return None if text is None else seconds(ctx, param, text)


@click.group(invoke_without_command=True, short_help="Keep the promises: once, or for a while.")
@click.option("--dry-run", is_flag=True, help="Show the plan with its reasons, change nothing; exit 10 if it is any.")
@click.option("--for", "duration", callback=_optional, metavar="TIME", help="Go on for so long, such as 55s.")
@click.option("--every", callback=_optional, metavar="TIME", help="With --for: how long between two looks (5s).")
@click.option(
    "--from",
    "source",
    type=click.Path(readable=False),
    metavar="FILE",
    help="Show the plan for a saved snapshot (kvmctl host snapshot); needs no hypervisor.",
)
@click.pass_context
def rebalance(
    ctx: click.Context, dry_run: bool, duration: float | None, every: float | None, source: str | None
) -> int:
    """Give every running guest what it is entitled to, by what it was promised and what it has used.

    Observes, decides, applies, reads back and records. Where nothing has to be changed it prints nothing on standard
    output; with -q it prints only what could not be done, for cron. A second rebalance of the same hypervisor
    ends at once with exit 9. What was changed, when and why: kvmctl rebalance history.

    \b
    Example:
      kvmctl rebalance --dry-run
      kvmctl rebalance --for 55s --every 5s
    """
    app = ctx.ensure_object(App)
    if ctx.invoked_subcommand:
        return 0
    if every is not None and duration is None:
        raise UsageError("--every says how often within --for", "add --for 55s, or leave out --every")
    if duration is not None and (dry_run or source):
        raise UsageError("--for changes guests, and --dry-run and --from only show a plan", "leave one of them out")
    if every is not None and every < 1:
        raise UsageError("--every has to be a second or more", "the kernel's counters say little about less")
    if source is not None:
        return _replay(app, source)
    if dry_run:
        planned = _controller(app).plan()
        return _show_plan(app, planned.plan, planned.changes, planned.notes, planned.reclaim.state)
    _finish(app)
    return _run(app, duration, every or 5.0)


def _finish(app: App) -> None:
    """Let guests go on that a killed run has left saved: whatever they were promised, they do not get while off."""
    from kvmctl.host.where import is_noted

    if not is_noted("export"):  # cron comes every minute, and hardly ever is anything left
        return
    from kvmctl.control import left

    try:
        for text in left.finish(app.hypervisor(), warn):
            note(app, text)
    except KvmctlError as error:
        warn(error.message)


rebalance.add_command(install)
rebalance.add_command(uninstall)


def _controller(app: App, trimming: bool = False) -> Controller:
    from kvmctl.control.tick import Controller

    controller = Controller(app.hypervisor(), trimming)
    if controller.note:
        warn(controller.note)
    return controller


def _replay(app: App, source: str) -> int:
    from kvmctl.control.snapshot import read
    from kvmctl.policy import memory_tick
    from kvmctl.policy.tick import decide

    saved = read(source)
    plan = decide(saved.snapshot, saved.memory, saved.policy)
    before = saved.memory.reclaim if saved.memory else None
    memory = memory_tick.decide(saved.snapshot, before, saved.policy.memory)
    changes = plan.changes + memory_tick.guest_changes(memory)
    return _show_plan(app, plan, changes, plan.notes + memory.notes, memory.state)


def _show_plan(app: App, plan: Plan, changes: Sequence[Change], notes: Sequence[str], state: str | None) -> int:
    rows = [_row(change) for change in changes]
    _emit(app, rows, _PLANNED)
    for text in notes:
        note(app, text)
    due = [change for change in changes if change.how == "live"]
    note(app, f"{len(due)} change{'' if len(due) == 1 else 's'} pending" if due else _nothing(plan, state))
    return EXIT_PENDING if due else 0


def _nothing(plan: Plan, state: str | None) -> str:
    from kvmctl.model.reclaim import SHORT

    if state in SHORT:
        return f"nothing more to do for now: the host is in the state {state}"
    count = len(plan.memory.guests)
    return f"nothing to do: {count} running guest{'' if count == 1 else 's'} as entitled"


def _row(change: Change) -> dict[str, Any]:
    return {
        "name": change.guest,
        "field": change.field,
        "old": change.old,
        "new": change.new,
        "reason": change.reason or None,
    }


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a table, in which bytes have their unit."""
    if row["field"] not in _BYTES:
        return row
    return row | {key: human_size(row[key]) for key in ("old", "new") if isinstance(row[key], int)}


def _emit(app: App, rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> None:
    if rows or app.output != "table":
        emit(app, [_readable(row) for row in rows] if app.output == "table" else rows, columns)


def _run(app: App, duration: float | None, every: float) -> int:
    from kvmctl.host.lock import lock
    from kvmctl.host.urgency import hurry

    hypervisor = app.hypervisor()
    with lock(f"rebalance of {hypervisor.uri}"):
        hurry()
        rounds = _Rounds(app, trimming=duration is not None)
        with rounds.trimming() if duration is not None else nullcontext():
            for _number in _beats(duration, lambda: rounds.pause(every)):
                rounds.one(alone=duration is None)
    return rounds.end()


def _beats(duration: float | None, pause: Callable[[], float]) -> Iterator[int]:
    """One beat at once, then one after each `pause()` seconds as long as `duration` lasts, on the monotonic clock."""
    due = time.monotonic()
    end = due + (duration or 0.0)
    yield 0
    for number in count(1):
        due += pause()
        if due > end:
            return
        # A beat that took longer than it had leaves out those that it missed.
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
            yield number


class _Rounds:
    """The ticks of one run: each told as it is done, and how all of them went."""

    def __init__(self, app: App, trimming: bool = False) -> None:
        self.app = app
        self.controller = _controller(app, trimming)
        self.rows: list[dict[str, Any]] = []
        self.told: set[str] = set()
        self.failed: dict[str, None] = {}
        self.error: KvmctlError | None = None
        self.nothing = ""
        self.alert = False
        self.cost = 0.0
        self.lost = 0
        self.done = 0

    def pause(self, every: float) -> float:
        """Seconds from one tick to the next."""
        return min(every, max(ALERT_SECONDS, self.cost / ALERT_CORES)) if self.alert else every

    def one(self, alone: bool) -> None:
        """One tick. Unless it is `alone`, its failure does not keep the next from trying."""
        begun, worked = time.monotonic(), time.thread_time()
        try:
            ticked = self.controller.tick()
        except (LockedError, UnreachableError) as error:
            if alone:
                raise
            self._lose(error)
            return
        self.error = None
        self.done += 1
        self.cost = time.thread_time() - worked
        self._tell(ticked, time.monotonic() - begun)

    @contextmanager
    def trimming(self) -> Iterator[None]:
        """Trim the weights all the time, beside the ticks: those wait for libvirt, on a busy host for seconds."""
        ended = Event()
        trimmer = Thread(target=self._trim, args=(ended,), daemon=True)
        trimmer.start()
        try:
            yield
        finally:
            ended.set()
            trimmer.join()
            with suppress(KvmctlError):
                self.controller.settle()

    def _trim(self, ended: Event) -> None:
        pause = TRIM_SECONDS
        while not ended.wait(pause):
            begun = time.thread_time()
            # What is wrong is said by the next tick, which meets it too.
            with suppress(KvmctlError):
                self.controller.trim()
            pause = max(TRIM_SECONDS, (time.thread_time() - begun) / TRIM_CORES)

    def _lose(self, error: KvmctlError) -> None:
        self.error = error
        self.lost += 1
        self._once(f"this tick was left out: {error.message}")
        if isinstance(error, UnreachableError):
            self.app.reconnect()
            try:
                self.controller = self.controller.moved_to(self.app.hypervisor())
            except UnreachableError as again:
                self.error = again

    def _tell(self, ticked: Ticked, took: float) -> None:
        detail(
            self.app,
            f"tick: {len(ticked.plan.memory.guests)} guests, {len(ticked.outcomes)} changes, {took:.4f} s",
        )
        self.nothing = _nothing(ticked.plan, ticked.reclaim.state)
        self.alert = ticked.reclaim.alert
        for text in (*ticked.notes, *ticked.complaints):
            self._once(text)
        self.failed |= dict.fromkeys(o.change.guest for o in ticked.outcomes if _failed(o))
        self.failed |= dict.fromkeys(ticked.complaints)
        shown = [one for one in ticked.outcomes if one.result == "not applied" or not self.app.quiet]
        rows = [_outcome_row(outcome) for outcome in shown]
        self.rows += rows
        if rows and self.app.output == "table":
            click.echo(table(map(_readable, rows), _OUTCOMES), nl=False)

    def _once(self, text: str) -> None:
        """Also where only how long or how much it is has changed since."""
        if (kind := without_amounts(text)) not in self.told:
            self.told.add(kind)
            warn(text)

    def end(self) -> int:
        """The exit code, after what a document holds has been printed. Raises what kept the last tick from its work."""
        if self.app.output != "table":
            emit(self.app, self.rows, _OUTCOMES)
        if self.error:
            raise self.error
        if self.failed or self.lost:
            names = ", ".join(self.failed) or f"{self.lost} of {self.lost + self.done} ticks"
            raise PartialError(f"not all could be done: {names}", "the reasons stand above")
        if not self.rows and not self.app.quiet:
            note(self.app, self.nothing)
        return 0


def _failed(outcome: Outcome) -> bool:
    return outcome.result == "not applied" and outcome.change.how != "refused"


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    return _row(outcome.change) | {
        "result": outcome.result,
        "reason": outcome.reason or outcome.change.reason or None,
    }


_HISTORY = (Column("when", "TIME"), *_OUTCOMES)


@rebalance.command(short_help="What was changed, when and why.")
@click.option("--last", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="How many at most.")
@click.argument("guests", nargs=-1, metavar="[NAME]...")
@pass_app
def history(app: App, last: int, guests: tuple[str, ...]) -> None:
    """Show what rebalancing has changed, when and why; the newest stands last.

    \b
    Example:
      kvmctl rebalance history
      kvmctl rebalance history web1 --last 5 -o json
    """
    from kvmctl.control.history import records

    found = [record for record in records() if not guests or record.guest in guests][-last:]
    if not found:
        note(app, "rebalancing has changed nothing so far" + (" of these guests" if guests else ""))
    if app.output in ("json", "yaml"):
        emit_document(app, [_record(record) for record in found])
    elif found:
        emit(app, [_readable(_record(record)) | {"when": _local(record.time)} for record in found], _HISTORY)


def _record(record: Record) -> dict[str, Any]:
    from dataclasses import asdict

    return {"name": record.guest, **asdict(record)}


def _local(clock: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(clock).astimezone().isoformat(sep=" ", timespec="seconds")
