"""`kvmctl events`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import Column, as_yaml, detail, emit_names, note, table_lines, warn
from kvmctl.model.event import KINDS
from kvmctl.model.wording import nearest, quoted

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor
    from kvmctl.model.event import Event


def _local(moment: float) -> str:
    """Seconds since 1970 as ISO 8601, in the time zone of whoever reads it."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, UTC).astimezone().isoformat(timespec="milliseconds")


# The titles are not shown: what comes is not known in advance, so they only say how wide a column is.
_COLUMNS = (
    Column("time", "", _local),
    Column("guest", " " * 20),
    Column("event", " " * 18),
    Column("detail", ""),
)


def _span(context: click.Context, param: click.Parameter, text: str | None) -> float | None:
    return None if text is None else seconds(context, param, text)


def _kinds(_context: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Kinds of events, separated by commas or each in an option of its own, in the order of `KINDS`."""
    wanted = [kind for text in texts for kind in text.split(",")]
    for kind in wanted:
        if kind not in KINDS:
            raise click.BadParameter(f"{quoted(kind)} is no kind of event: {nearest(kind, KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)


@click.command()
@click.option("--for", "span", callback=_span, metavar="TIME", help="End after this time; else Ctrl-C ends it.")
@click.option("--kind", "kinds", callback=_kinds, multiple=True, metavar="KINDS", help="Only these, as in a,b,c.")
@click.argument("patterns", nargs=-1, metavar="[NAME|GLOB]...", shell_complete=complete_guests)
@pass_app
def events(app: App, span: float | None, kinds: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    """Follow what happens to the guests: a line for each event, from now on.

    With -o json each line is one JSON object; `balloon` and the like are in it as numbers.

    \b
    lifecycle       defined, started, paused, resumed, stopping, stopped,
                    suspended, crashed, undefined, and why
    balloon         the memory that its balloon leaves the guest has changed
    reboot          the guest was reset, by itself or by somebody
    watchdog, io-error, control-error, memory-failure
    device          device-added, device-removed, device-kept (not let go)
    agent           agent-connected, agent-disconnected
    metadata        its title, description or metadata was changed
    tuning          its weights, quotas, pinning or disk limits were changed
    migration, job  a pass over its memory; a migration, save or dump ended

    \b
    Example:
      kvmctl events
      kvmctl events 'web*' --kind lifecycle,balloon -o json
      kvmctl events --for 10s
    """
    from kvmctl.hypervisor.events import Feed

    hypervisor = app.hypervisor()
    chosen = _choice(app, hypervisor, patterns)
    with Feed(hypervisor, kinds or KINDS, sys.stdout.fileno()) as feed:
        for kind in feed.missing:
            _say_missing(app, f"{hypervisor.uri} tells nothing of the kind {kind}", asked=bool(kinds))
        note(app, f"following the guests of {hypervisor.uri}" + ("; Ctrl-C ends it" if span is None else ""))
        for event in feed.events(span):
            if chosen(event.guest):
                _print(app, event)
            if lost := feed.take_lost():
                warn(f"{lost} events were lost: they came faster than they were read")


def _say_missing(app: App, text: str, asked: bool) -> None:
    if asked:
        warn(text)
    else:
        detail(app, text)


def _choice(app: App, hypervisor: Hypervisor, patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Which guests are followed. As everywhere, what is some guest's whole name is no glob; a guest may come later."""
    if not patterns:
        return lambda _name: True
    from fnmatch import fnmatchcase

    from kvmctl.hypervisor import domains

    present = domains.names(hypervisor)
    globs = set(patterns) - set(present)
    for pattern in sorted(globs):
        if not any(fnmatchcase(name, pattern) for name in present):
            note(app, f"no guest on {hypervisor.uri} is named {quoted(pattern)} yet")
    return lambda name: name in patterns or any(fnmatchcase(name, pattern) for pattern in globs)


def _print(app: App, event: Event) -> None:
    row = {
        "time": round(event.time, 6),
        "guest": event.guest,
        "uuid": event.uuid,
        "event": event.event,
        "detail": event.detail,
        **event.values,
    }
    if app.output == "name":
        emit_names([event.guest])
    elif app.output == "json":
        import json

        # In ASCII, so that what would move a cursor or break the line is escaped, whatever it is.
        click.echo(json.dumps(row))
    elif app.output == "yaml":
        click.echo(f"---\n{as_yaml(row)}", nl=False)
    else:
        click.echo(table_lines([row], _COLUMNS)[1])
