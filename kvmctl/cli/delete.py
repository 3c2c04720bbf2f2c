"""`kvmctl delete`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.lifecycle import guests_argument, report_deeds
from kvmctl.cli.output import confirm, note, one_line, warn
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.control.delete import Removal
    from kvmctl.control.select import Guest
    from kvmctl.hypervisor.connection import Hypervisor


@click.command()
@guests_argument
@click.option("--disks", is_flag=True, help="Delete their disks as well, where nothing else needs them.")
@click.option("--force", is_flag=True, help="Power off guests that run.")
@pass_app
def delete(app: App, names: tuple[str, ...], labels: tuple[str, ...], disks: bool, force: bool) -> None:
    """Delete guests, after showing which disks go and which stay.

    The definition goes with its NVRAM, managed save and snapshot metadata. ISO images, base images and disks
    that another guest uses stay, whatever is asked.

    \b
    Example:
      kvmctl delete web1
      kvmctl delete 'test-*' --disks --yes
    """
    from kvmctl.control.guarded import guarded
    from kvmctl.control.select import chosen

    hypervisor = app.hypervisor()
    with guarded(hypervisor, warn):
        delete_guests(app, hypervisor, chosen(hypervisor, names, labels), disks, force)


def delete_guests(app: App, hypervisor: Hypervisor, guests: Sequence[Guest], disks: bool, force: bool) -> None:
    """Show what deleting would do, ask, do it, report. Raises RefusedError, ConflictError, PartialError."""
    from kvmctl.control.delete import plan, refuse_running, remove
    from kvmctl.control.lifecycle import Deed, for_each

    if not force:
        refuse_running(guests)
    removals = {removal.name: removal for removal in plan(hypervisor, guests, disks)}
    for removal in removals.values():
        _show(app, removal)
    count = len(removals)
    confirm(
        app,
        f"Delete {'this guest' if count == 1 else f'these {count} guests'}?",
        f"deleting {'a guest' if count == 1 else f'{count} guests'} needs a yes",
    )

    def act(guest: Guest) -> Deed:
        return remove(hypervisor, removals[guest[0].name], force)

    report_deeds(app, for_each(guests, act))


def _show(app: App, removal: Removal) -> None:
    note(app, f"{one_line(removal.name)} ({removal.guest[0].state})")
    for fate in removal.fates:
        what = "DELETE" if fate.delete else "keep"
        reason = f"  ({fate.reason})" if fate.reason else ""
        note(app, f"  {what:6}  {human_size(fate.size):>8}  {one_line(fate.path)}{reason}")
