"""`kvmctl inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.meter import meter
from kvmctl.cli.output import Column, emit_document, emit_names, one_line, table
from kvmctl.model.units import human_size

_PARTS = (
    Column("name", "PART"),
    Column("kind", "KIND"),
    Column("size", "SIZE", human_size, right=True),
    Column("capacity", "CAPACITY", human_size, right=True),
    Column("volume", "VOLUME"),
    Column("pool", "POOL"),
)


@click.command()
@click.argument("file", metavar="FILE|-")
@click.option("--verify", is_flag=True, help="Read the whole file and compare every sum.")
@pass_app
def inspect(app: App, file: str, verify: bool) -> None:
    """Show what is in a file that kvmctl export wrote: the guest, its parts, and what reaches beyond it; or in an OVA.

    \b
    Example:
      kvmctl inspect web1.tar.zst
      kvmctl inspect web1.tar.zst --verify
    """
    from kvmctl.control import archive, ova

    path = None if file == "-" else Path(file)
    if path is not None and ova.is_ova(path):
        _show_ova(app, ova.document(path))
        return
    shown = meter(app)
    try:
        found = archive.document(path, verify, shown)
    finally:
        shown.clear()
    if app.output == "name":
        emit_names([found["guest"]])
    elif app.output == "table":
        _print(found)
    else:
        emit_document(app, found)


def _print(found: dict[str, Any]) -> None:
    for key in ("guest", "uuid", "state", "consistency", "created", "writer"):
        click.echo(f"{key + ':':<14}{one_line(str(found[key]))}")
    for key in ("networks", "bridges", "foreign"):
        if found[key]:
            click.echo(f"{key + ':':<14}{one_line(', '.join(found[key]))}")
    click.echo(f"{'verified:':<14}{'yes' if found['verified'] else 'no'}\n")
    click.echo(table(found["parts"], _PARTS), nl=False)


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
