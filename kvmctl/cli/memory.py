"""`kvmctl memory`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.memory_history import history_options, show_history
from kvmctl.cli.output import Column, emit_document, emit_names, note, table
from kvmctl.model.errors import UsageError
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
_NAME, _SHARES = Column("name", "NAME"), Column("shares", "SHARES", right=True)
_COLUMNS = (_NAME, *(Column(key, title, human_size, right=True) for key, title in _SIZES), _SHARES)
_COST = ("resident", "shared", "swapped", "page_tables", "overhead")
"""What the guests cost the host: a table of its own where the terminal is too narrow for one."""


@click.command("memory")
@click.option("--explain", "guest", metavar="NAME", help="Why one guest has what it has.")
@history_options
@pass_app
def memory(app: App, guest: str | None, history: bool, last: float) -> None:
    """Show what memory the running guests were promised, what they have, and what it costs the host.

    \b
    MAX, SIZE            what the guest can grow to, and what it is to have
    BALLOON              what its balloon leaves it now: USED and USABLE together
    USABLE, CACHE, USED  as its balloon driver reports; most of CACHE is usable
    RESIDENT             what its process has in the host's memory
    SHARED, SWAPPED      merged by KSM, of RESIDENT; in the host's swap
    TABLES               the page tables that the host keeps for it
    QEMU                 what of RESIDENT is QEMU's own and not the guest's
    RESERVED, SHARES     what it was promised
    overcommit           the sum of MAX, of the memory for guests
    state                how short the host is: high, clear (merges), soft (fills
                         balloons), hard (swaps in haste), low (starts nothing)

    \b
    Example:
      kvmctl memory
      kvmctl memory --explain web1
      kvmctl memory --history --last 12h
      kvmctl memory -o json
    """
    ctx = click.get_current_context()
    if not history and ctx.get_parameter_source("last") is not ParameterSource.DEFAULT:
        raise UsageError("--last says how far back --history looks", "add --history")
    if history and guest is not None:
        raise UsageError("--history is of the host, and --explain of one guest now", "leave one of them out")
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
        line = f"{ledger.uri}: {_host_line(ledger, total['reservation'])}" + ("" if rows else "; no running guests")
        width = _width()
        click.echo(textwrap.fill(line, width, subsequent_indent="  ") if width else line)
        if rows:
            click.echo(_tables([*rows, {"name": "total", **total}], width), nl=False)
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


def _width() -> int:
    """Columns of the terminal; 0 where the output is no terminal's, and is not to be broken."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _tables(rows: Sequence[dict[str, Any]], width: int) -> str:
    """One table, or two where the terminal is too narrow for it."""
    whole = table(rows, _COLUMNS)
    if not width or whole.index("\n") <= width:
        return whole
    given = table(rows, [column for column in _COLUMNS if column.key not in _COST])
    return given + "\n" + table(rows, [_NAME, *(column for column in _COLUMNS if column.key in _COST)])


def _host_line(ledger: MemoryLedger, reserved: int | None) -> str:
    host = ledger.host
    parts = [f"{human_size(host.total)} of memory, {human_size(host.reservable)} for guests"]
    parts.append(f"{human_size(reserved)} of that reserved")
    parts.append("overcommit " + ("-" if ledger.overcommit is None else f"{ledger.overcommit:.0%}"))
    if host.available is not None:
        parts.append(f"{human_size(host.available)} available")
    if host.swap_total:
        takes = f" (zram takes {human_size(host.zram_used)} of memory for it)" if host.zram_used else ""
        parts.append(f"{human_size(host.swap_used)} of {human_size(host.swap_total)} swap used{takes}")
    elif host.swap_total == 0:
        parts.append("no swap")
    if host.ksm_saved is not None:
        parts.append(f"{human_size(host.ksm_saved)} saved by KSM")
    if host.state is not None:
        parts.append(f"state {host.state}")
    return ", ".join(parts)
