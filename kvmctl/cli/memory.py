"""`kvmctl memory`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.memory_history import history_options, show_history
from kvmctl.cli.output import Column, emit_document, emit_names, note, table
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.control.memory_ledger import MemoryLedger

_SIZES = (
    ("max", "MAX"),
    ("size", "SIZE"),
    ("balloon", "BALLOON"),
    ("usable", "USABLE"),
    ("cache", "CACHE"),
    ("used", "USED"),
    ("resident", "RESIDENT"),
    ("shared", "SHARED"),
    ("swapped", "SWAPPED"),
    ("page_tables", "TABLES"),
    ("overhead", "QEMU"),
    ("reservation", "RESERVED"),
)
_SUMMED = (*(key for key, _title in _SIZES), "unused", "shares")
_COLUMNS = (
    Column("name", "NAME"),
    *(Column(key, title, human_size, right=True) for key, title in _SIZES),
    Column("shares", "SHARES", right=True),
)


@click.command("memory")
@click.option("--explain", "guest", metavar="NAME", help="Why one guest has what it has.")
@history_options
@pass_app
def memory(app: App, guest: str | None, history: bool, last: float) -> None:
    """Show what memory the running guests were promised, what they have, and what it costs the host.

    \b
    MAX, SIZE            what the guest can grow to, and what it is to have
    BALLOON              what its balloon leaves it now
    USABLE, CACHE, USED  its own figures, while its balloon driver reports them
    RESIDENT             what its process has in the host's memory
    SHARED, SWAPPED      merged by KSM; in the host's swap
    TABLES               the page tables that the host keeps for it
    QEMU                 what of RESIDENT is QEMU's own and not the guest's
    RESERVED, SHARES     what it was promised

    \b
    Example:
      kvmctl memory
      kvmctl memory --explain web1
      kvmctl memory --history --last 12h
      kvmctl memory -o json
    """
    if history:
        show_history(app, last)
        return
    if guest is not None:
        _explain(app, guest)
        return
    from kvmctl.control.memory_ledger import memory_ledger

    ledger = memory_ledger(app.hypervisor())
    rows = [asdict(line) for line in ledger.guests]
    total = _total(rows)
    if app.output == "name":
        emit_names(row["name"] for row in rows)
    elif app.output == "table":
        click.echo(
            f"{ledger.uri}: {_host_line(ledger, total['reservation'])}" + ("" if rows else "; no running guests")
        )
        if rows:
            click.echo(table([*rows, {"name": "total", **total}], _COLUMNS), nl=False)
    else:
        host = {**asdict(ledger.host), "overcommit": ledger.overcommit}
        emit_document(app, {"uri": ledger.uri, "host": host, "guests": rows, "total": total})
    for text in ledger.notes:
        note(app, text)


def _explain(app: App, name: str) -> None:
    from kvmctl.control.memory_ledger import memory_account

    account = memory_account(app.hypervisor(), name)
    if app.output == "name":
        emit_names([name])
    elif app.output == "table":
        click.echo(f"{account.uri}: {name}")
        for reason in account.reasons:
            click.echo(f"  {reason}")
    else:
        emit_document(app, {"uri": account.uri, "guest": asdict(account.guest), "reasons": list(account.reasons)})


def _total(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """The sums over all guests; one unknown makes the sum unknown."""
    columns = {key: [row[key] for row in rows] for key in _SUMMED}
    return {key: None if None in values else sum(values) for key, values in columns.items()}


def _host_line(ledger: MemoryLedger, reserved: int | None) -> str:
    host = ledger.host
    parts = [f"{human_size(host.total)} of memory, {human_size(host.available)} available"]
    parts.append(f"{human_size(reserved)} of {human_size(host.reservable)} reserved")
    if host.swap_total:
        parts.append(f"{human_size(host.swap_used)} of {human_size(host.swap_total)} swap used")
    elif host.swap_total == 0:
        parts.append("no swap")
    parts.append(f"{human_size(host.ksm_saved)} saved by KSM")
    parts.append("overcommit " + ("-" if ledger.overcommit is None else f"{ledger.overcommit:.0%}"))
    if host.state is not None:
        parts.append(f"state {host.state}")
    return ", ".join(parts)
