"""`kvmctl list`."""

from __future__ import annotations

from typing import Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.output import Column, emit, note
from kvmctl.model.units import human_size

_COLUMNS = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("vcpus", "VCPUS", right=True),
    Column("balloon", "MEMORY", human_size, right=True),
    Column("max", "MAX", human_size, right=True),
    Column("resident", "RESIDENT", human_size, right=True),
)


@click.command("list")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only guests that bear this label.")
@click.option(
    "--state", type=click.Choice(["running", "paused", "stopped", "crashed"]), help="Only guests in this state."
)
@click.argument("patterns", nargs=-1, metavar="[NAME|GLOB]...", shell_complete=complete_guests)
@pass_app
def list_(app: App, labels: tuple[str, ...], state: str | None, patterns: tuple[str, ...]) -> None:
    """List the guests, from one bulk call.

    \b
    Example:
      kvmctl list --state running
      kvmctl list 'web*' -o json
    """
    from kvmctl.control.select import matching

    hypervisor = app.hypervisor()
    samples = [sample for sample, _ in matching(hypervisor, patterns, labels) if state in (None, sample.state)]
    rows: list[dict[str, Any]] = [
        {
            "name": sample.name,
            "uuid": sample.uuid,
            "state": sample.state,
            "vcpus": sample.vcpus,
            "balloon": sample.balloon.current,
            "max": sample.balloon.maximum,
            "resident": sample.balloon.rss,
        }
        for sample in samples
    ]
    if not rows:
        note(app, f"no guests on {hypervisor.uri}" + (" match" if patterns or labels or state else ""))
    if rows or app.output != "table":
        emit(app, rows, _COLUMNS)
