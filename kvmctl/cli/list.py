"""`kvmctl list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.all_hosts import UNREACHABLE, all_hosts_option, ask_all, asks_several, raise_for_dead
from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.output import Column, emit, emit_names, note
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.hypervisor.connection import Hypervisor

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
@all_hosts_option
@pass_app
def list_(app: App, labels: tuple[str, ...], state: str | None, patterns: tuple[str, ...], all_hosts: bool) -> None:
    """List the guests, from one bulk call.

    \b
    Example:
      kvmctl list --state running
      kvmctl list 'web*' -o json
      kvmctl list --all-hosts
      kvmctl list -c node1 -c qemu+ssh://node2/system
    """
    if asks_several(app, all_hosts):
        _list_all(app, patterns, labels, state)
        return
    hypervisor = app.hypervisor()
    rows = _rows(hypervisor, patterns, labels, state)
    if not rows:
        note(app, f"no guests on {hypervisor.uri}" + (" match" if patterns or labels or state else ""))
    if rows or app.output != "table":
        emit(app, rows, _COLUMNS)


def _rows(
    hypervisor: Hypervisor, patterns: tuple[str, ...], labels: tuple[str, ...], state: str | None
) -> list[dict[str, Any]]:
    from kvmctl.control.select import matching

    samples = [sample for sample, _ in matching(hypervisor, patterns, labels) if state in (None, sample.state)]
    return [
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


def _list_all(app: App, patterns: tuple[str, ...], labels: tuple[str, ...], state: str | None) -> None:
    """The guests of every host; a host that does not answer is a row without a guest."""
    answers = ask_all(app, lambda hypervisor: _rows(hypervisor, patterns, labels, state))
    rows: list[dict[str, Any]] = []
    for answer in answers:
        said = {"host": answer.host.name, "uri": answer.host.uri}
        if answer.error:
            rows.append(said | {"name": None, "state": UNREACHABLE, "error": answer.error.message})
        else:
            rows += [said | row for row in answer.value]
    if app.output == "name":
        emit_names(row["name"] for row in rows if row["name"])
    elif rows or app.output != "table":
        emit(app, rows, (Column("host", "HOST"), *_COLUMNS))
    raise_for_dead(answers)
