"""`kvmctl inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, emit_document, emit_names, one_line, table
from kvmctl.cli.paths import not_empty
from kvmctl.cli.progress import Meter
from kvmctl.model.errors import UsageError
from kvmctl.model.units import human_size

_PARTS = (
    Column("name", "PART"),
    Column("kind", "KIND"),
    Column("size", "SIZE", human_size, right=True),
    Column("capacity", "CAPACITY", human_size, right=True),
    Column("volume", "VOLUME"),
    Column("pool", "POOL"),
)
_BACKUPS = (
    Column("name", "BACKUP"),
    Column("size", "SIZE", human_size, right=True),
    Column("parent", "OVER"),
    Column("restorable", "RESTORABLE", lambda value: "yes" if value else "NO"),
)


@click.command()
@click.argument("file", metavar="FILE|DIR|-", callback=not_empty)
@click.option("--at", metavar="BACKUP", help="Of a folder of backups: which one, or how it begins; else the newest.")
@click.option("--verify", is_flag=True, help="Read all of it and compare every sum.")
@pass_app
def inspect(app: App, file: str, at: str | None, verify: bool) -> None:
    """Show what is in a file that kvmctl export wrote, in a folder of backups, or in an OVA.

    That is the guest, its parts, what it would reach beyond them, and of a folder every backup that is there.

    \b
    Example:
      kvmctl inspect web1.tar.zst
      kvmctl inspect web1.tar.zst --verify
      kvmctl inspect /srv/backup/web1 --at 20261126
    """
    from kvmctl.control import archive, from_backup, ova
    from kvmctl.host.files import is_folder

    path = None if file == "-" else Path(file)
    in_folder = path is not None and is_folder(path)
    if at is not None and not in_folder:
        raise UsageError("--at chooses one of the backups in a folder", "leave it out, or name such a folder")
    if path is not None and ova.is_ova(path):
        _show_ova(app, ova.document(path))
        return
    with Meter(app) as shown:
        if path is not None and in_folder:
            found = from_backup.document(path, at, verify, shown)
        else:
            found = archive.document(path, verify, shown)
    if app.output == "name":
        emit_names([found["guest"]])
    elif app.output == "table":
        _print(found)
    else:
        emit_document(app, found)


def _print(found: dict[str, Any]) -> None:
    for key in ("guest", "uuid", "backup", "state", "consistency", "created", "writer"):
        if key in found:
            click.echo(f"{key + ':':<14}{one_line(str(found[key]))}")
    for key in ("networks", "bridges", "foreign", "faults"):
        if found.get(key):
            click.echo(f"{key + ':':<14}{one_line(', '.join(found[key]))}")
    click.echo(f"{'verified:':<14}{'yes' if found['verified'] else 'no'}\n")
    click.echo(table(found["parts"], _PARTS), nl=False)
    if "backups" in found:
        click.echo("\n" + table(found["backups"], _BACKUPS), nl=False)


def _show_ova(app: App, found: dict[str, Any]) -> None:
    if app.output == "name":
        emit_names([found["guest"]])
    elif app.output != "table":
        emit_document(app, found)
    else:
        for key in ("format", "guest", "cpus", "firmware"):
            click.echo(f"{key + ':':<14}{one_line(str(found[key]))}")
        click.echo(f"{'memory:':<14}{human_size(found['memory'])}")
        for disk in found["disks"]:
            click.echo(f"{'disk:':<14}{one_line(disk['file'])}, {human_size(disk['capacity'])}, {disk['bus']}")
        for card in found["cards"]:
            click.echo(f"{'network card:':<14}{one_line(card['network'])}, {card['model']}")
        for text in found["notes"]:
            click.echo(f"{'note:':<14}{one_line(text)}")
