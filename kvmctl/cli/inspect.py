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
    """Show what is in a file that kvmctl export wrote: the guest, its parts, and what reaches beyond it.

    \b
    Example:
      kvmctl inspect web1.tar.zst
      kvmctl inspect web1.tar.zst --verify
    """
    from kvmctl.control import archive

    path = None if file == "-" else Path(file)
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
