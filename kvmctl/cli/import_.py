"""`kvmctl import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.cli.paths import not_empty
from kvmctl.cli.progress import Meter
from kvmctl.cli.streams import ending_well
from kvmctl.model.errors import EXIT_PENDING, UsageError
from kvmctl.model.units import human_size
from kvmctl.model.wording import argument, quoted

if TYPE_CHECKING:
    from kvmctl.control.importing import Imported

_COLUMNS = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("uuid", "UUID"),
    Column("disks", "DISKS", human_size, right=True),
)


@click.command("import", short_help="Make a guest of a file that kvmctl export wrote, or of a backup.")
@click.argument("file", metavar="FILE|DIR|-", callback=not_empty)
@click.option("--at", metavar="BACKUP", help="Of a folder of backups: which one, or how it begins; else the newest.")
@click.option("--new-identity", is_flag=True, help="Another UUID, MACs, NVRAM, and a new cloud-init instance.")
@click.option("--name", metavar="NAME", help="Another name, and so another identity.")
@click.option(
    "--network", "networks", multiple=True, metavar="OLD=NEW", help="What a network or bridge is called here."
)
@click.option("--pool", "pools", multiple=True, metavar="OLD=NEW", help="What a storage pool is called here.")
@click.option("--leave-out", is_flag=True, help="Leave out devices that reach into the host, rather than refuse.")
@click.option("--no-memory", is_flag=True, help="Leave the saved memory aside: the guest is off.")
@click.option("--start", is_flag=True, help="Start the guest, where there is no memory to go on from.")
@click.option("--force", is_flag=True, help="Start it though promises will not be kept.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, and say what would be made.")
@pass_app
def import_(
    app: App,
    file: str,
    at: str | None,
    new_identity: bool,
    name: str | None,
    networks: tuple[str, ...],
    pools: tuple[str, ...],
    leave_out: bool,
    no_memory: bool,
    start: bool,
    force: bool,
    dry_run: bool,
) -> int:
    """Make a guest of a file that kvmctl export wrote, of a folder that kvmctl backup wrote to, or of an OVA.

    The file is not trusted: its manifest, sums, disks and definition are checked in a folder aside, and a guest that
    would reach into this host is refused. Only then anything gets its name; what fails leaves nothing behind. A name,
    UUID, MAC address or file that is taken is a conflict, unless the guest gets a new identity.

    With saved memory in the file the guest goes on from where it was. The memory is the one part that cannot be
    checked: take it from nobody whom you would not give the host.

    Of backups the newest is taken, or the one that --at names, with all that it is over, as disks that need no other.

    Of an OVA the CPUs, memory, firmware, disks and network cards are taken; what is not, is said.

    \b
    Example:
      kvmctl import web1.tar.zst --start
      kvmctl import web1.tar.zst --name web2 --network lan=default
      kvmctl import /srv/backup/web1 --at 20261126 --new-identity --name web1-then
    """
    from kvmctl.control.importing import Tell, take_in
    from kvmctl.control.place import Wishes

    wishes = Wishes(
        new_identity=new_identity,
        name=name,
        networks=_pairs(networks, "--network"),
        pools=_pairs(pools, "--pool"),
        leave_out=leave_out,
        memory=not no_memory,
        start=start,
        force=force,
        dry_run=dry_run,
    )
    with ending_well(), Meter(app) as shown:
        path = None if file == "-" else Path(file)
        done = take_in(app.hypervisor(), path, wishes, shown, Tell(warn, lambda text: note(app, text)), at)
    return _report(app, done, dry_run)


def _report(app: App, done: Imported, dry_run: bool) -> int:
    for text in done.notes:
        note(app, text)
    row = {
        "name": done.name,
        "state": done.state,
        "uuid": done.uuid,
        "disks": sum(part.size for part in done.manifest.parts if part.is_qcow2),
        "files": list(done.files),
        "notes": list(done.notes),
    }
    emit(app, [row], _COLUMNS)
    if dry_run:
        note(app, "everything was checked, and nothing was made")
        return EXIT_PENDING
    if done.state == "stopped" and done.manifest.state != "stopped":
        note(app, f"it starts as after a power failure: kvmctl start {argument(done.name)}")
    return 0


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not old or not equals or not new:
            raise UsageError(f"{quoted(text)} is not OLD=NEW", f"for example: {option} lan=default")
        found[old] = new
    return found
