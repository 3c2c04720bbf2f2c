"""How changes are shown: those that are pending, and what became of those that were made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App
from kvmctl.cli.lifecycle import raise_for_failures
from kvmctl.cli.output import Column, detail, emit, note, one_line, table_lines
from kvmctl.model.errors import EXIT_PENDING

if TYPE_CHECKING:
    from kvmctl.control.apply import Applied
    from kvmctl.control.plan import GuestPlan
    from kvmctl.model.change import Change, Outcome

_LONGEST = 32
"""Characters of a value that has room in the table; a longer one stands below its line."""
_BELOW = "…"


def _value(value: object) -> str:
    text = _written(value)
    return text if len(text) <= _LONGEST else _BELOW


def _written(value: object) -> str:
    """A value as the guest file writes it, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return one_line(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)) or '""'


_FIELDS = (
    Column("name", "GUEST"),
    Column("field", "FIELD"),
    Column("old", "OLD", _value),
    Column("new", "NEW", _value),
)
_CHANGES = (*_FIELDS, Column("how", "HOW"))
_OUTCOMES = (*_FIELDS, Column("result", "RESULT"))


def show_pending(app: App, plans: Sequence[GuestPlan], gone: Sequence[str]) -> int:
    """Show what would be done, and which guests would be deleted; the exit code."""
    rows = [
        _row(change) | {"how": change.how, "reason": change.reason or None} for plan in plans for change in plan.changes
    ]
    rows += [
        {"name": name, "field": "guest", "old": "defined", "new": None, "how": "delete", "reason": None}
        for name in gone
    ]
    _emit(app, rows, _CHANGES)
    note(
        app,
        f"{_count(len(rows), 'change')} pending" if rows else f"0 changes: {_count(len(plans), 'guest')} as declared",
    )
    return EXIT_PENDING if rows else 0


def show_outcomes(app: App, plans: Sequence[GuestPlan], applied: Sequence[Applied]) -> int:
    """Show what became of each change and each guest; the exit code. Raises where guests failed."""
    outcomes = [outcome for guest in applied for outcome in guest.outcomes]
    for plan in plans:
        if not plan.changes:
            detail(app, f"guest {plan.name} is as declared")
    rows = [_row(o.change) | {"result": o.result, "reason": o.reason or None} for o in outcomes]
    _emit(app, rows, _OUTCOMES, said_after={guest.error.message for guest in applied if guest.error})
    for guest in applied:
        if guest.error:
            from kvmctl.cli.main import report

            report(guest.error, app.debug)
    total = len(plans)
    note(app, _summary(outcomes, total))
    if total == 1 and applied and applied[0].error:
        return applied[0].error.exit_code
    raise_for_failures([guest.error for guest in applied if guest.error], total)
    return _exit_code(outcomes)


def _row(change: Change) -> dict[str, Any]:
    return {"name": change.guest, "field": change.field, "old": change.old, "new": change.new}


def _emit(
    app: App, rows: Sequence[dict[str, Any]], columns: Sequence[Column], said_after: Collection[str] = ()
) -> None:
    if app.output != "table":
        emit(app, rows, columns)
    elif rows:
        title, *lines = table_lines(rows, columns)
        click.echo(title)
        for row, line in zip(rows, lines, strict=True):
            click.echo(line)
            for text in _below(row, said_after):
                click.echo(f"    {text}")


def _below(row: Mapping[str, Any], said_after: Collection[str]) -> Iterator[str]:
    """What has no room in a row's line: long values, and the reason, unless the guest's error says the same."""
    for key in ("old", "new"):
        if row[key] is not None and _value(row[key]) == _BELOW:
            yield f"{key}: {_written(row[key])}"
    if row["reason"] and row["reason"] not in said_after:
        yield one_line(row["reason"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _summary(outcomes: Sequence[Outcome], total: int) -> str:
    counts = {
        result: sum(outcome.result == result for outcome in outcomes)
        for result in ("changed", "pending restart", "not applied")
    }
    parts = [f"{_count(counts['changed'], 'change')}"]
    parts += [f"{counts[result]} {result}" for result in ("pending restart", "not applied") if counts[result]]
    return f"{_count(total, 'guest')}: " + ", ".join(parts)


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    """A refused field is exit 5, what the guest did not give in time exit 7, and some of several fields exit 8."""
    missed = [outcome for outcome in outcomes if outcome.result == "not applied"]
    if not missed:
        return 0
    if len(missed) < len(outcomes):
        return 8
    if all(outcome.change.how == "refused" for outcome in missed):
        return 5
    return 7 if all(outcome.change.field in ("memory.size", "cpu.count") for outcome in missed) else 1
