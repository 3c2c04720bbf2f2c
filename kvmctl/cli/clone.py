"""`kvmctl clone`."""

from __future__ import annotations

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.cli.progress import Gauge
from kvmctl.cli.snapshot import guest_argument, one_guest
from kvmctl.model.errors import UsageError

_COLUMNS = (
    Column("name", "GUEST"),
    Column("uuid", "UUID"),
    Column("kind", "KIND"),
    Column("images", "IMAGES", lambda images: ", ".join(images.values())),
)


@click.command()
@guest_argument
@click.argument("new", metavar="NEW")
@click.option("--linked", is_flag=True, help="Let its images overlay the ones that the original has now.")
@click.option("--snapshot", metavar="NAME", help="With --linked: overlay what this external snapshot keeps.")
@pass_app
def clone(app: App, guest: str, new: str, linked: bool, snapshot: str | None) -> None:
    """Make a guest that is a copy of another: off, with its own UUID, MACs, NVRAM and cloud-init instance.

    A guest that runs is copied as it is at one moment, as by a backup. A linked clone takes no time and no room;
    the original's images stay as they are below both of them, and it goes on in overlays, as by a snapshot.

    \b
    Example:
      kvmctl clone web1 web2
      kvmctl clone template web3 --linked
    """
    from kvmctl.control import clone as control

    if snapshot is not None and not linked:
        raise UsageError("--snapshot needs --linked", "a full copy is made of what the guest is now")
    hypervisor = app.hypervisor()
    with Gauge(app) as gauge:
        made = control.clone(hypervisor, one_guest(hypervisor, guest), new, linked, snapshot, warn, gauge.show)
    row = {
        "name": made.name,
        "uuid": made.uuid,
        "kind": "linked" if made.over else "full",
        "images": {target: path for target, (path, _form) in made.images.items()},
        "over": list(made.over),
        "consistency": made.consistency,
    }
    emit(app, [row], _COLUMNS)
    note(app, f"{guest}: {made.consistency}")
    for text in made.notes:
        warn(f"guest {made.name}: {text}")
