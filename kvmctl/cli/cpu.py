"""`kvmctl cpu`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import Column, emit_document, emit_names, note, table
from kvmctl.model.units import format_cores

if TYPE_CHECKING:
    from kvmctl.control.ledger import CpuLedger

_COLUMNS = (
    Column("name", "NAME"),
    Column("shares", "SHARES", right=True),
    Column("limit", "LIMIT", format_cores, right=True),
    Column("reservation", "RESERVED", format_cores, right=True),
    Column("entitlement", "ENTITLED", format_cores, right=True),
    Column("weight", "WEIGHT", right=True),
    Column("used", "USED", format_cores, right=True),
    Column("steal", "STEAL%", "{:.1f}".format, right=True),
    Column("bound", "BOUND"),
)


@click.command("cpu")
@click.option(
    "--sample", callback=seconds, default="1s", show_default=True, metavar="TIME", help="How long to measure, or 0."
)
@pass_app
def cpu(app: App, sample: float) -> None:
    """Show what CPU the running guests were promised, what that is worth now, and what they use.

    \b
    SHARES, LIMIT, RESERVED  what the guest was promised, in cores
    ENTITLED                 what it gets while every guest is hungry
    WEIGHT                   what the kernel's cgroup file has
    USED                     what it has used in the sample, in cores
    STEAL%                   the time its vCPUs waited for a CPU of the host
    BOUND                    what decides the entitlement

    \b
    Example:
      kvmctl cpu
      kvmctl cpu --sample 500ms -o json
    """
    from kvmctl.control.ledger import cpu_ledger

    ledger = cpu_ledger(app.hypervisor(), sample)
    rows = [asdict(line) for line in ledger.guests]
    if app.output == "name":
        emit_names(row["name"] for row in rows)
    elif app.output == "table":
        click.echo(f"{ledger.uri}: {_host_line(ledger)}" + ("" if rows else "; no running guests"))
        if rows:
            click.echo(table(rows, _COLUMNS), nl=False)
    else:
        emit_document(app, {"uri": ledger.uri, "host": _host(ledger), "guests": rows})
    for text in ledger.notes:
        note(app, text)


def _host(ledger: CpuLedger) -> dict[str, float]:
    return {
        "capacity": ledger.capacity,
        "reserved": ledger.reserved,
        "free": max(0.0, ledger.capacity - ledger.reserved),
        "sampled_seconds": ledger.seconds,
    }


def _host_line(ledger: CpuLedger) -> str:
    host = _host(ledger)
    amounts = {key: format_cores(host[key]) for key in ("capacity", "reserved", "free")}
    return "{capacity} cores, {reserved} reserved, {free} free to reserve".format(**amounts)
