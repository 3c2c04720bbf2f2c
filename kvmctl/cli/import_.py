"""`kvmctl import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.meter import meter
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.cli.streams import ending_well
from kvmctl.model.errors import UsageError
from kvmctl.model.units import human_size
from kvmctl.model.wording import argument, quoted

_COLUMNS = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("uuid", "UUID"),
    Column("disks", "DISKS", human_size, right=True),
)


@click.command("import", short_help="Make a guest of a file that kvmctl export wrote.")
@click.argument("file", metavar="FILE|-")
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
@pass_app
def import_(
    app: App,
    file: str,
    new_identity: bool,
    name: str | None,
    networks: tuple[str, ...],
    pools: tuple[str, ...],
    leave_out: bool,
    no_memory: bool,
    start: bool,
    force: bool,
) -> None:
    """Make a guest of a file that kvmctl export wrote, or of an OVA from elsewhere.

    The file is not trusted: its manifest, sums, disks and definition are checked in a folder aside, and a guest that
    would reach into this host is refused. Only then anything gets its name; what fails leaves nothing behind. A name,
    UUID, MAC address or file that is taken is a conflict, unless the guest gets a new identity.

    With saved memory in the file the guest goes on from where it was. The memory is the one part that cannot be
    checked: take it from nobody whom you would not give the host.

    Of an OVA the CPUs, memory, firmware, disks and network cards are taken; what is not, is said.

    \b
    Example:
      kvmctl import web1.tar.zst --start
      kvmctl import web1.tar.zst --name web2 --network lan=default
    """
    from kvmctl.control.importing import take_in
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
    )
    shown = meter(app)
    with ending_well():
        try:
            done = take_in(app.hypervisor(), None if file == "-" else Path(file), wishes, shown, warn)
        finally:
            shown.clear()
    for text in done.notes:
        note(app, text)
    row = {
        "name": done.name,
        "state": done.state,
        "uuid": done.uuid,
        "disks": sum(part.size for part in done.manifest.of("disk")),
        "files": list(done.files),
        "notes": list(done.notes),
    }
    emit(app, [row], _COLUMNS)
    if done.state == "stopped" and done.manifest.state != "stopped":
        note(app, f"it starts as after a power failure: kvmctl start {argument(done.name)}")


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not old or not equals or not new:
            raise UsageError(f"{quoted(text)} is not OLD=NEW", f"for example: {option} lan=default")
        found[old] = new
    return found
