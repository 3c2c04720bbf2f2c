"""apply, diff and set: one path, stopped before anything changes for diff and --dry-run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.changes import show_outcomes, show_pending
from kvmctl.cli.clock import reading
from kvmctl.cli.completion import complete_fields, complete_guests
from kvmctl.cli.output import moves_cursor, note, warn
from kvmctl.model.errors import KvmctlError, NotFoundError, UsageError
from kvmctl.model.wording import quoted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kvmctl.control.apply import Applied
    from kvmctl.control.plan import GuestPlan, Planner
    from kvmctl.hypervisor.connection import Hypervisor
    from kvmctl.model.spec import GuestFile

_files = click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    type=click.Path(readable=False),
    metavar="FILE",
    help="Guest file; - is standard input.",
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
        raise UsageError("--disks says what --prune does with disks", "add --prune, or leave out --disks")
    wanted = _load(app, files)
    if prune and wanted.project is None:
        raise UsageError(
            "--prune needs a project, so that it knows which guests are its own", "add `project: NAME` to the file"
        )
    hypervisor = app.hypervisor()
    with _room(app, hypervisor, wanted, dry_run, force), _locked(hypervisor, dry_run):
        if not dry_run:
            _leftovers(hypervisor)
        plans = _plan(hypervisor, wanted, force)
        gone = prunable(hypervisor, wanted) if prune else []
        if dry_run:
            return show_pending(app, plans, [sample.name for sample, _domain in gone])
        applied = _run(app, hypervisor, plans)
        code = show_outcomes(app, plans, applied)
        if gone:
            from kvmctl.cli.delete import delete_guests
            from kvmctl.control.weights import renew

            delete_guests(app, hypervisor, gone, disks, force)
            renew(hypervisor)
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
    wanted = _load(app, files)
    return show_pending(app, _plan(app.hypervisor(), wanted, force=True, quiet=True), [])


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
    pairs = _pairs(assignments)
    with _locked(hypervisor, dry_run):
        with reading(app, any(value.endswith("Hz") for value in pairs.values())) as context:
            wanted = assigned(hypervisor, name, pairs, context)
        plan = _planner(hypervisor).plan(wanted, must_exist=True)
        _admit(hypervisor, [plan], force)
        if dry_run:
            return show_pending(app, [plan], [])
        return show_outcomes(app, [plan], _run(app, hypervisor, [plan]))


def _room(
    app: App, hypervisor: Hypervisor, wanted: GuestFile, dry_run: bool, force: bool
) -> AbstractContextManager[None]:
    from contextlib import nullcontext

    from kvmctl.control import room
    from kvmctl.control.admit import check_lasting
    from kvmctl.policy.promise import promise_of

    def check() -> None:
        if not force:
            new = room.new(hypervisor, wanted.guests)
            check_lasting(hypervisor, {spec.name: promise_of(spec) for spec in new})

    if dry_run:
        return nullcontext()
    return room.made(
        hypervisor,
        lambda policy: room.of_wanted(hypervisor, wanted.guests, policy),
        lambda text: note(app, text),
        check,
    )


def _locked(hypervisor: Hypervisor, dry_run: bool) -> AbstractContextManager[None]:
    from contextlib import nullcontext

    from kvmctl.control.guarded import LOCK_WAIT
    from kvmctl.host.lock import lock

    return nullcontext() if dry_run else lock(hypervisor.uri, LOCK_WAIT)


def _load(app: App, files: Sequence[str]) -> GuestFile:
    from kvmctl.model.document import MAX_BYTES
    from kvmctl.model.guestfile import load

    sources = [(name, _read(name, MAX_BYTES + 1)) for name in files]
    with reading(app, any(b"Hz" in data for _, data in sources)) as context:
        return load(sources, context)


def _read(name: str, limit: int) -> bytes:
    try:
        with open(0, "rb", closefd=False) if name == "-" else Path(name).open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        kind = NotFoundError if isinstance(error, FileNotFoundError) else UsageError
        raise kind(
            f"cannot read the guest file {name or quoted(name)}: {reason}",
            "name it with -f FILE, or use -f - for standard input",
        ) from error


def _pairs(assignments: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{quoted(text)} is not FIELD=VALUE", "for example: cpu.shares=2000")
        if key in pairs:
            raise UsageError(f"{quoted(key)} is given twice", "say each field once")
        pairs[key] = value
    return pairs


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
    if len(changed) < 2 or app.quiet or not (sys.stderr.isatty() and moves_cursor()):
        return run(hypervisor, changed)
    with click.progressbar(length=len(changed), label=f"{len(changed)} guests", width=0, file=sys.stderr) as bar:
        return run(hypervisor, changed, lambda: bar.update(1))
