"""start, stop, reboot, pause, resume, autostart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.model.errors import KvmctlError, PartialError

if TYPE_CHECKING:
    from kvmctl.control.lifecycle import Deed
    from kvmctl.control.select import Guest
    from kvmctl.hypervisor.connection import Hypervisor
    from kvmctl.model.hostpolicy import MemoryPolicy

F = TypeVar("F", bound=Callable[..., Any])

_COLUMNS = (Column("name", "GUEST"), Column("result", "RESULT"), Column("text", "WHAT"))


def guests_argument(command: F) -> F:
    """The NAME… and -l of a command that acts on several guests."""
    command = click.argument("names", nargs=-1, metavar="[NAME|GLOB]...", shell_complete=complete_guests)(command)
    option = click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Guests with this label.")
    return option(command)


_timeout = click.option(
    "--timeout", callback=seconds, default="90s", show_default=True, metavar="TIME", help="How long to wait."
)


def report_deeds(app: App, deeds: Sequence[Deed]) -> None:
    """Print what became of each guest. Raises the error of the only guest, or PartialError for several."""
    failed = [deed.error for deed in deeds if deed.error]
    if len(deeds) == 1 and failed:
        raise failed[0]
    rows = [{"name": deed.guest, "result": deed.result, "text": deed.text} for deed in deeds]
    emit(app, rows, _COLUMNS)
    for deed in deeds:
        if deed.error and deed.error.hint:
            note(app, f"  {deed.guest}: {deed.error.hint}")
    raise_for_failures(failed, len(deeds))


def raise_for_failures(failed: Sequence[KvmctlError], total: int) -> None:
    """PartialError where some of several failed; the common error class where all did."""
    if not failed:
        return
    text = f"{len(failed)} of {total} guests failed"
    hint = "the reasons stand above"
    kinds = {type(error) for error in failed}
    if len(failed) == total and len(kinds) == 1:
        raise kinds.pop()(text, hint)
    raise PartialError(text, hint)


def _act(
    app: App,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    deed: Callable[[Hypervisor, list[Guest]], list[Deed]],
) -> None:
    """Choose the guests, do the deed under the lock, give every guest its weight again, report."""
    from kvmctl.control.guarded import guarded
    from kvmctl.control.select import chosen

    hypervisor = app.hypervisor()
    with guarded(hypervisor, warn):
        deeds = deed(hypervisor, chosen(hypervisor, names, labels))
    report_deeds(app, deeds)


@click.command()
@guests_argument
@click.option("--paused", is_flag=True, help="Leave the vCPUs standing at their first instruction.")
@click.option("--force", is_flag=True, help="Start even if the host cannot keep what is promised.")
@pass_app
def start(app: App, names: tuple[str, ...], labels: tuple[str, ...], paused: bool, force: bool) -> None:
    """Start guests, if the host can keep what they were promised.

    \b
    Example:
      kvmctl start web1 'db*'
      kvmctl start -l tier=front
    """
    from kvmctl.control import lifecycle, room
    from kvmctl.control.admit import admit_start, check_start
    from kvmctl.control.select import chosen
    from kvmctl.model.sample import ACTIVE

    def beginnings(policy: MemoryPolicy) -> dict[str, room.Beginning]:
        guests = chosen(app.hypervisor(), names, labels)
        return {sample.name: room.beginning(domain, policy) for sample, domain in guests if sample.state not in ACTIVE}

    def check() -> None:
        if not force:
            check_start(app.hypervisor(), chosen(app.hypervisor(), names, labels))

    def deed(hypervisor: Hypervisor, guests: list[Guest]) -> list[Deed]:
        admit_start(hypervisor, guests, force, warn)
        return lifecycle.for_each(guests, lambda guest: lifecycle.start(guest, paused))

    with room.made(app.hypervisor(), beginnings, lambda text: note(app, text), check):
        _act(app, names, labels, deed)


@click.command()
@guests_argument
@_timeout
@click.option("--force", is_flag=True, help="Take the power away from a guest that has not stopped by then.")
@pass_app
def stop(app: App, names: tuple[str, ...], labels: tuple[str, ...], timeout: float, force: bool) -> None:
    """Ask guests to power off, and wait until they have.

    \b
    Example:
      kvmctl stop web1 --timeout 30
      kvmctl stop web1 --force --timeout 0     (at once, like pulling the plug)
    """
    from kvmctl.control import lifecycle

    _act(
        app,
        names,
        labels,
        lambda _hypervisor, guests: lifecycle.for_each(guests, lambda guest: lifecycle.stop(guest, timeout, force)),
    )


@click.command()
@guests_argument
@_timeout
@click.option("--force", is_flag=True, help="Reset instead of asking.")
@pass_app
def reboot(app: App, names: tuple[str, ...], labels: tuple[str, ...], timeout: float, force: bool) -> None:
    """Ask guests to reboot, and wait until they have, one after the other.

    \b
    Example:
      kvmctl reboot web1
    """
    from kvmctl.control import lifecycle
    from kvmctl.control.lifecycle import Deed

    def one(hypervisor: Hypervisor, guest: Guest) -> Deed:
        try:
            return lifecycle.reboot(hypervisor, guest, timeout, force)
        except KvmctlError as error:
            return Deed(guest[0].name, "not applied", error.message, error)

    _act(app, names, labels, lambda hypervisor, guests: [one(hypervisor, guest) for guest in guests])


@click.command()
@guests_argument
@pass_app
def pause(app: App, names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Stop the guests' vCPUs where they stand; their memory stays.

    \b
    Example:
      kvmctl pause web1
    """
    from kvmctl.control import lifecycle

    _act(app, names, labels, lambda _hypervisor, guests: lifecycle.for_each(guests, lifecycle.pause))


@click.command()
@guests_argument
@click.option("--force", is_flag=True, help="Resume even if the host cannot keep what is promised.")
@pass_app
def resume(app: App, names: tuple[str, ...], labels: tuple[str, ...], force: bool) -> None:
    """Let paused guests go on, if the host can keep what they were promised.

    \b
    Example:
      kvmctl resume web1
    """
    from kvmctl.control import lifecycle
    from kvmctl.control.admit import admit_resume

    def deed(hypervisor: Hypervisor, guests: list[Guest]) -> list[Deed]:
        admit_resume(hypervisor, guests, force, warn)
        return lifecycle.for_each(guests, lifecycle.resume)

    _act(app, names, labels, deed)


@click.command()
@guests_argument
@click.option("--off", is_flag=True, help="Do not start with the host.")
@pass_app
def autostart(app: App, names: tuple[str, ...], labels: tuple[str, ...], off: bool) -> None:
    """Start guests with the host, or not.

    \b
    Example:
      kvmctl autostart web1
      kvmctl autostart web1 --off
    """
    from kvmctl.control import lifecycle

    _act(
        app,
        names,
        labels,
        lambda _hypervisor, guests: lifecycle.for_each(guests, lambda guest: lifecycle.set_autostart(guest, not off)),
    )
