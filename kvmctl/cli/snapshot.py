"""`kvmctl snapshot`: what a guest was like, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.output import Column, confirm, emit, note, warn
from kvmctl.model.errors import UsageError

if TYPE_CHECKING:
    from kvmctl.control.select import Guest
    from kvmctl.hypervisor.connection import Hypervisor
    from kvmctl.model.guest_disk import Snapshot

F = TypeVar("F", bound=Callable[..., Any])


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


_COLUMNS = (
    Column("tree", "NAME"),
    Column("current", "NOW", lambda value: "*" if value else ""),
    Column("kind", "KIND"),
    Column("memory", "MEMORY", lambda value: "yes" if value else "no"),
    Column("state", "STATE"),
    Column("created", "CREATED", _when),
    Column("description", "DESCRIPTION"),
)


@click.group()
def snapshot() -> None:
    """Snapshots of guests: taken, listed, gone back to, deleted.

    \b
    Example:
      kvmctl snapshot create web1 before-update
      kvmctl snapshot revert web1 before-update --yes
    """


guest_argument = click.argument("guest", metavar="GUEST", shell_complete=complete_guests)


def one_guest(hypervisor: Hypervisor, name: str) -> Guest:
    """The guest of exactly that name: what is done to one is not done to all that a glob fits."""
    from kvmctl.hypervisor import domains

    domain = domains.find(hypervisor, name)
    return domains.sample_one(domain), domain


@snapshot.command(short_help="Take a snapshot of a guest.")
@guest_argument
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--memory", is_flag=True, help="With its memory: the default of a guest that has one.")
@click.option("--disk-only", is_flag=True, help="Without its memory: going back to it is like after a power cut.")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@pass_app
def create(app: App, guest: str, name: str | None, memory: bool, disk_only: bool, description: str) -> None:
    """Take a snapshot of a guest; without a NAME it is named by the time (UTC).

    With its memory, or of a guest that is off, it lies within the qcow2 images (internal). Without the memory of
    a running guest, the guest goes on in new images over the old ones (external); an agent in the guest freezes
    its file systems for that moment.

    \b
    Example:
      kvmctl snapshot create web1
      kvmctl snapshot create web1 before-12.5 --disk-only
    """
    from kvmctl.control import snapshots

    if memory and disk_only:
        raise UsageError("--memory and --disk-only exclude each other", "give one of them, or none")
    if not all(char.isprintable() or char == "\n" for char in description):
        raise UsageError("--description has characters that cannot be printed", "leave them out")
    hypervisor = app.hypervisor()
    wanted = True if memory else False if disk_only else None
    taken = snapshots.create(hypervisor, one_guest(hypervisor, guest), name, wanted, description, warn)
    _print(app, [(taken.snapshot, 0)])
    note(app, f"{guest}: {taken.consistency}")


@snapshot.command("list", short_help="A guest's snapshots, each under the one before it.")
@guest_argument
@pass_app
def list_(app: App, guest: str) -> None:
    """List the snapshots of a guest as a tree.

    \b
    Example:
      kvmctl snapshot list web1
      kvmctl snapshot list web1 -o json
    """
    from kvmctl.control import snapshots
    from kvmctl.policy.snapshots import ordered

    hypervisor = app.hypervisor()
    _sample, domain = one_guest(hypervisor, guest)
    found = ordered(snapshots.existing(domain))
    for text in snapshots.unfinished(hypervisor, domain):
        warn(text)
    if not found:
        note(app, f"guest {guest} has no snapshots")
    if found or app.output != "table":
        _print(app, found)


def _print(app: App, found: list[tuple[Snapshot, int]]) -> None:
    rows = []
    for one, depth in found:
        row: dict[str, object] = {
            "name": one.name,
            "parent": one.parent,
            "current": one.current,
            "kind": one.kind,
            "memory": one.memory,
            "state": one.state,
            "created": one.created,
            "description": one.description or None,
            "overlays": dict(one.overlays),
        }
        rows.append(row | ({"tree": "  " * depth + one.name} if app.output == "table" else {}))
    emit(app, rows, _COLUMNS)


@snapshot.command(short_help="Let a guest be again what it was.")
@guest_argument
@click.argument("name", metavar="NAME")
@click.option("--force", is_flag=True, help="Power it off where that is needed; break promises knowingly.")
@pass_app
def revert(app: App, guest: str, name: str, force: bool) -> None:
    """Go back to a snapshot. Everything since then is lost, unless another snapshot has it.

    An internal one brings back the guest's definition too; an external one brings back the disks of a guest that
    is off.

    \b
    Example:
      kvmctl snapshot revert web1 before-update
    """
    from kvmctl.control import snapshots

    hypervisor = app.hypervisor()
    plan = snapshots.plan_revert(one_guest(hypervisor, guest), name, force)
    confirm(
        app,
        f"Lose what guest {guest} has done since {_when(plan.to.created)}?",
        f"reverting guest {guest} loses its state since {_when(plan.to.created)}, and so needs a yes",
    )
    state = snapshots.revert(hypervisor, plan, force, warn)
    note(app, f"guest {guest} is what it was at {_when(plan.to.created)}, and {state}")


@snapshot.command(short_help="Drop a snapshot; the guest stays as it is now.")
@guest_argument
@click.argument("name", metavar="NAME")
@pass_app
def delete(app: App, guest: str, name: str) -> None:
    """Drop a snapshot: there is no way back to it then. The guest stays as it is now, and runs on.

    The overlays of an external one are merged into what they overlay.

    \b
    Example:
      kvmctl snapshot delete web1 before-update
    """
    from kvmctl.cli.progress import Gauge
    from kvmctl.control import snapshots

    hypervisor = app.hypervisor()
    found = one_guest(hypervisor, guest)
    snapshots.to_delete(found, name)
    confirm(app, f"Delete snapshot {name} of guest {guest}?", f"deleting snapshot {name} needs a yes")
    with Gauge(app) as gauge:
        snapshots.delete(hypervisor, found, name, warn, lambda disk, done: gauge.show(f"merging {disk}", done))
    note(app, f"snapshot {name} of guest {guest} is deleted")
