"""`kvmctl rebalance install` and `uninstall`: have cron or systemd run it every minute."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.model.errors import EXIT_PENDING, ConflictError, UsageError

if TYPE_CHECKING:
    from kvmctl.host.schedule import Kind, Step

WINDOW = "55s"
"""How long one run goes on: the next begins a minute after this one did."""
_LEAST, _MOST = 1.0, 30.0

_COLUMNS = (Column("name", "FILE"), Column("result", "RESULT"))
_DONE = {"write": "written", "keep": "unchanged", "remove": "removed"}
_TODO = {"write": "to be written", "keep": "unchanged", "remove": "to be removed"}


def _every(ctx: click.Context, param: click.Parameter, text: str) -> float:
    found = seconds(ctx, param, text)
    if not _LEAST <= found <= _MOST:
        raise click.BadParameter(f"{text} is not between {_LEAST:g}s and {_MOST:g}s")
    return found


@click.command(short_help="Have cron or systemd run it every minute.")
@click.option("--cron", is_flag=True, help="Write /etc/cron.d/kvmctl.")
@click.option("--systemd", is_flag=True, help="Write and enable kvmctl-rebalance.timer and its service.")
@click.option(
    "--every", callback=_every, default="5s", show_default=True, metavar="TIME", help="Between two looks in a minute."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be written; exit 10 if anything would change.")
@pass_app
def install(app: App, cron: bool, systemd: bool, every: float, dry_run: bool) -> int:
    """Have cron or systemd run it every minute, for this hypervisor (-c).

    Without --cron or --systemd, systemd is taken where it runs, else cron. What the other had of kvmctl is
    removed; a file that kvmctl did not write is never touched.

    \b
    Example:
      kvmctl rebalance install
      kvmctl rebalance install --cron --every 10s
      kvmctl -c qemu:///system rebalance install --systemd --dry-run
    """
    from kvmctl.host import schedule

    if cron and systemd:
        raise UsageError("--cron and --systemd exclude each other", "give one of them, or none")
    if not dry_run:
        schedule.check_root()
    kind = schedule.choose("cron" if cron else "systemd" if systemd else None)
    job = schedule.job(sys.argv[0], _arguments(app, every))
    steps = schedule.plan(kind, job)
    idle = kind == "systemd" and not schedule.timer_runs()
    if dry_run:
        return _pending(app, steps, idle)
    schedule.perform(steps)
    _report(app, steps)
    _remark(app, kind, idle)
    if part := schedule.changeable(job):
        warn(f"{part} can be changed by others than root, and root runs it every minute: install kvmctl elsewhere")
    return 0


def _arguments(app: App, every: float) -> tuple[str, ...]:
    from kvmctl.hypervisor.uri import given

    uri = given(app.uri)
    return (*(("-c", uri) if uri else ()), "-q", "rebalance", "--for", WINDOW, "--every", f"{every:g}s")


def _pending(app: App, steps: Sequence[Step], idle: bool) -> int:
    if app.output == "table":
        for step in steps:
            click.echo(f"# {step.path}: {_TODO[step.action]}")
            click.echo(step.text, nl=False)
    else:
        emit(app, [_row(step) | {"result": _TODO[step.action], "text": step.text or None} for step in steps], ())
    if idle:
        note(app, "the timer would be enabled and started")
    return EXIT_PENDING if idle or any(step.action != "keep" for step in steps) else 0


def _row(step: Step) -> dict[str, str | None]:
    return {"name": str(step.path), "result": _DONE[step.action]}


def _report(app: App, steps: Sequence[Step]) -> None:
    emit(app, [_row(step) for step in steps], _COLUMNS)


def _remark(app: App, kind: Kind, idle: bool) -> None:
    from kvmctl.host import schedule

    if kind == "systemd" and idle:
        note(app, "the timer is enabled and started")
    elif kind == "cron" and not schedule.cron_runs():
        warn(f"no cron daemon runs, so nothing will be run: start one with {schedule.start_cron()}")


@click.command(short_help="No longer have cron or systemd run it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed; exit 10 if anything would.")
@pass_app
def uninstall(app: App, dry_run: bool) -> int:
    """No longer have cron or systemd run it. A run that goes on now ends within its minute.

    \b
    Example:
      kvmctl rebalance uninstall
      kvmctl rebalance uninstall --dry-run
    """
    from kvmctl.host import schedule

    if not dry_run:
        schedule.check_root()
    steps, others = schedule.removals(), schedule.foreign()
    if dry_run:
        if steps:
            _pending(app, steps, idle=False)
    else:
        schedule.perform(steps)
        if steps:
            _report(app, steps)
    if others:
        raise ConflictError(
            f"{', '.join(map(str, others))}: not written by kvmctl, so not removed", "if nothing needs it, delete it"
        )
    if not steps:
        note(app, "nothing to remove")
    return EXIT_PENDING if dry_run and steps else 0
