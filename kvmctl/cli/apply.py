"""apply, diff and set: one path, stopped before anything changes for diff and --dry-run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_fields, complete_guests
from kvmctl.cli.lifecycle import raise_for_failures
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.model.errors import EXIT_PENDING, KvmctlError, NotFoundError, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kvmctl.control.apply import Applied
    from kvmctl.control.plan import GuestPlan, Planner
    from kvmctl.hypervisor.connection import Hypervisor
    from kvmctl.model.change import Change, Outcome
    from kvmctl.model.fields import Context
    from kvmctl.model.spec import GuestFile

_CHANGES = (
    Column("name", "GUEST"),
    Column("field", "FIELD"),
    Column("old", "OLD"),
    Column("new", "NEW"),
    Column("how", "HOW"),
    Column("reason", "REASON"),
)
_OUTCOMES = (*_CHANGES[:4], Column("result", "RESULT"), Column("reason", "REASON"))
_files = click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="Guest file; - is standard input."
)


@click.command()
@_files
@click.option("--dry-run", is_flag=True, help="Show the changes, make none; exit 10 if there are any.")
@click.option("--prune", is_flag=True, help="Also delete this project's guests that the file no longer has.")
@click.option("--disks", is_flag=True, help="With --prune: delete their disks as well.")
@click.option("--force", is_flag=True, help="Apply even if the reservations do not fit; prune running guests too.")
@pass_app
def apply(app: App, files: tuple[str, ...], dry_run: bool, prune: bool, disks: bool, force: bool) -> int:
    """Make the hypervisor's guests match a guest file, without stopping anything.

    New guests are made and started. What a running guest can take is changed at once, the rest is stored for
    its next start, and each field says which. Keys the file does not mention are left as they are.

    \b
    Example:
      kvmctl apply -f guests.yaml --dry-run
      kvmctl apply -f guests.yaml
    """
    from kvmctl.control.prune import prunable

    if disks and not prune:
        raise UsageError("--disks goes with --prune")
    wanted = _load(files)
    if prune and wanted.project is None:
        raise UsageError("--prune needs a `project:` in the file, so that it knows which guests are its own")
    hypervisor = app.hypervisor()
    with _locked(hypervisor, dry_run):
        _leftovers(hypervisor)
        plans = _plan(hypervisor, wanted, force)
        gone = prunable(hypervisor, wanted) if prune else []
        if dry_run:
            return _show_changes(app, plans, [sample.name for sample, _domain in gone])
        applied = _run(app, hypervisor, plans)
        code = _report(app, applied, len(plans))
        if gone:
            from kvmctl.cli.delete import delete_guests

            delete_guests(app, hypervisor, gone, disks, force)
    return code


@click.command()
@_files
@pass_app
def diff(app: App, files: tuple[str, ...]) -> int:
    """Show what apply would change; exit 10 if that is anything.

    \b
    Example:
      kvmctl diff -f guests.yaml
    """
    return _show_changes(app, _plan(app.hypervisor(), _load(files), force=True, quiet=True), [])


@click.command("set")
@click.argument("name", metavar="NAME", shell_complete=complete_guests)
@click.argument("assignments", nargs=-1, required=True, metavar="FIELD=VALUE...", shell_complete=complete_fields)
@click.option("--dry-run", is_flag=True, help="Show the changes, make none; exit 10 if there are any.")
@click.option("--force", is_flag=True, help="Change even if the reservations do not fit.")
@pass_app
def set_(app: App, name: str, assignments: tuple[str, ...], dry_run: bool, force: bool) -> int:
    """Change fields of one guest, live where a running guest can take it.

    \b
    Example:
      kvmctl set web1 cpu.shares=2000 cpu.limit=150% memory.reservation=1GiB
      kvmctl set web1 memory.size=2GiB labels.tier=front
    """
    from kvmctl.control.assign import assigned

    hypervisor = app.hypervisor()
    with _locked(hypervisor, dry_run):
        planner = _planner(hypervisor)
        plan = planner.plan(assigned(hypervisor, name, _pairs(assignments), _context()), must_exist=True)
        _admit(hypervisor, [plan], force)
        if dry_run:
            return _show_changes(app, [plan], [])
        return _report(app, _run(app, hypervisor, [plan]), 1)


def _locked(hypervisor: Hypervisor, dry_run: bool) -> AbstractContextManager[None]:
    from contextlib import nullcontext

    from kvmctl.control.guarded import LOCK_WAIT
    from kvmctl.host.lock import lock

    return nullcontext() if dry_run else lock(hypervisor.uri, LOCK_WAIT)


def _load(files: Sequence[str]) -> GuestFile:
    from kvmctl.model.document import MAX_BYTES
    from kvmctl.model.guestfile import load

    return load([(name, _read(name, MAX_BYTES + 1)) for name in files], _context())


def _read(name: str, limit: int) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with Path(name).open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        kind = NotFoundError if isinstance(error, FileNotFoundError) else UsageError
        raise kind(
            f"cannot read the guest file {name}: {reason}", "name it with -f FILE, or use -f - for standard input"
        ) from error


def _pairs(assignments: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not FIELD=VALUE", "for example: cpu.shares=2000")
        if key in pairs:
            raise UsageError(f"{key} is given twice")
        pairs[key] = value
    return pairs


def _context() -> Context:
    from kvmctl.host.cpu import base_mhz
    from kvmctl.model.fields import Context

    return Context(base_mhz())


def _planner(hypervisor: Hypervisor) -> Planner:
    from kvmctl.control.accelerate import chooser
    from kvmctl.control.plan import Planner

    return Planner(hypervisor, chooser(hypervisor, warn))


def _plan(hypervisor: Hypervisor, wanted: GuestFile, force: bool, quiet: bool = False) -> list[GuestPlan]:
    from kvmctl.control.plan import raise_together

    planner = _planner(hypervisor)
    plans: list[GuestPlan] = []
    found: list[KvmctlError] = []
    for spec in wanted.guests:
        try:
            plans.append(planner.plan(spec))
        except KvmctlError as error:
            found.append(error)
    if found:
        raise_together(found)
    if not quiet:
        _admit(hypervisor, plans, force)
    return plans


def _admit(hypervisor: Hypervisor, plans: Sequence[GuestPlan], force: bool) -> None:
    from kvmctl.control.admit import admit_plans

    admit_plans(hypervisor, plans, force, warn)


def _leftovers(hypervisor: Hypervisor) -> None:
    from kvmctl.control.apply import unfinished
    from kvmctl.host.journal import Journal

    for sentence in unfinished(hypervisor, Journal()):
        warn(sentence)


def _run(app: App, hypervisor: Hypervisor, plans: Sequence[GuestPlan]) -> list[Applied]:
    from kvmctl.control.apply import run

    changed = [plan for plan in plans if plan.changes]
    if not changed:
        return []
    if len(changed) == 1 or app.quiet or not sys.stderr.isatty():
        return run(hypervisor, changed)
    with click.progressbar(length=len(changed), label=f"{len(changed)} guests", file=sys.stderr) as bar:
        return run(hypervisor, changed, lambda: bar.update(1))


def _row(change: Change) -> dict[str, object]:
    return {"name": change.guest, "field": change.field, "old": change.old, "new": change.new}


def _show_changes(app: App, plans: Sequence[GuestPlan], gone: Sequence[str]) -> int:
    rows = [
        _row(change) | {"how": change.how, "reason": change.reason or None} for plan in plans for change in plan.changes
    ]
    rows += [
        {"name": name, "field": "guest", "old": "defined", "new": None, "how": "delete", "reason": None}
        for name in gone
    ]
    if rows or app.output != "table":
        emit(app, rows, _CHANGES)
    note(
        app,
        f"{_count(len(rows), 'change')} pending" if rows else f"0 changes: {_count(len(plans), 'guest')} as declared",
    )
    return EXIT_PENDING if rows else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _report(app: App, applied: Sequence[Applied], total: int) -> int:
    outcomes = [outcome for guest in applied for outcome in guest.outcomes]
    if outcomes or app.output != "table":
        emit(app, [_outcome_row(outcome) for outcome in outcomes], _OUTCOMES)
    for guest in applied:
        if guest.error:
            from kvmctl.cli.main import report

            report(guest.error, app.debug)
    note(app, _summary(outcomes, total))
    if total == 1 and applied and applied[0].error:
        return applied[0].error.exit_code
    raise_for_failures([guest.error for guest in applied if guest.error], total)
    return _outcome_code(outcomes)


def _outcome_row(outcome: Outcome) -> dict[str, object]:
    return _row(outcome.change) | {"result": outcome.result, "reason": outcome.reason or None}


def _summary(outcomes: Sequence[Outcome], total: int) -> str:
    counts = {
        result: sum(outcome.result == result for outcome in outcomes)
        for result in ("changed", "pending restart", "not applied")
    }
    parts = [f"{_count(counts['changed'], 'change')}"]
    parts += [f"{counts[result]} {result}" for result in ("pending restart", "not applied") if counts[result]]
    return f"{_count(total, 'guest')}: " + ", ".join(parts)


def _outcome_code(outcomes: Sequence[Outcome]) -> int:
    """A refused field is exit 5, a balloon that did not move is exit 7, and some of several fields is exit 8."""
    missed = [outcome for outcome in outcomes if outcome.result == "not applied"]
    if not missed:
        return 0
    if len(missed) < len(outcomes):
        return 8
    if all(outcome.change.how == "refused" for outcome in missed):
        return 5
    return 7 if all(outcome.change.field == "memory.size" for outcome in missed) else 1
