"""`kvmctl cpu`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import Column, emit_document, emit_names, note, one_line, table
from kvmctl.model.units import format_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmctl.control.ledger import CpuAccount, CpuLedger
    from kvmctl.policy.explain import Explanation

MOST_TRANSFERS = 12
"""Lines of an account that are one guest's each; the smaller ones are put together."""

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
@click.option(
    "--explain",
    "name",
    metavar="GUEST",
    shell_complete=complete_guests,
    help="Account for what one guest is entitled to: which bound binds, and who pays.",
)
@pass_app
def cpu(app: App, sample: float, name: str | None) -> None:
    """Show what CPU the running guests were promised, what that is worth now, and what they use.

    \b
    SHARES, LIMIT, RESERVED  what the guest was promised, in cores
    ENTITLED                 what it is to get while all want what they do now
    WEIGHT                   what the kernel's cgroup file has
    USED                     what it has used in the sample, in cores
    STEAL%                   the time its vCPUs waited for a CPU of the host
    BOUND                    what decides the entitlement

    What guests want is what they used and waited for in the sample; without one, all that they can use.

    \b
    Example:
      kvmctl cpu
      kvmctl cpu --sample 500ms -o json
      kvmctl cpu --explain web1
    """
    from kvmctl.control.ledger import cpu_account, cpu_ledger

    if name is not None:
        _explain(app, cpu_account(app.hypervisor(), name, sample))
        return
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


def _explain(app: App, account: CpuAccount) -> None:
    if app.output == "name":
        emit_names([account.guest.name])
    elif app.output == "table":
        click.echo(f"{account.uri}: {_host_line(account)}")
        for line in _account(account.guest):
            click.echo(one_line(line))
    else:
        emit_document(app, {"uri": account.uri, "host": _host(account), "guest": asdict(account.guest)})


def _account(guest: Explanation) -> Iterator[str]:
    from kvmctl.policy.explain import in_cores

    yield f"{guest.name} is entitled to {in_cores(guest.cores)}, bound by {guest.bound}: {guest.why}"
    yield _term(format_cores(guest.by_shares), f"by shares alone, {guest.shares} of {guest.all_shares}")
    shown = [move for move in guest.transfers if format_cores(abs(move.cores)) != "0"]
    largest = sorted(shown, key=lambda move: -abs(move.cores))[:MOST_TRANSFERS]
    for move in shown:
        if move in largest:
            way = "from" if move.cores > 0 else "to"
            yield _term(_signed(move.cores), f"{way} {move.guest or 'nobody'}: {move.why}")
    rest = [move for move in guest.transfers if move not in largest]
    if len(shown) > len(largest):
        yield _term(_signed(sum(move.cores for move in rest)), f"from and to {len(rest)} others")
    yield _term(format_cores(guest.cores), "in all")
    yield (
        f"while every guest wants all it can use: {in_cores(guest.hungry)}, bound by {guest.hungry_bound}; "
        f"weight {guest.weight}"
    )
    if guest.note:
        yield f"{guest.name}: {guest.note}"


def _term(amount: str, text: str) -> str:
    return f"{amount:>8}  {text}"


def _signed(cores: float) -> str:
    return f"{'+' if cores >= 0 else '-'}{format_cores(abs(cores))}"


def _host(ledger: CpuLedger | CpuAccount) -> dict[str, float]:
    return {
        "cores": ledger.cores,
        "capacity": ledger.capacity,
        "reserved": ledger.reserved,
        "free": max(0.0, ledger.capacity - ledger.reserved),
        "sampled_seconds": ledger.seconds,
    }


def _host_line(ledger: CpuLedger | CpuAccount) -> str:
    host = _host(ledger)
    amounts = {key: format_cores(host[key]) for key in ("cores", "capacity", "reserved", "free")}
    ours = "" if ledger.capacity == ledger.cores else "{capacity} of them for guests, "
    return ("{cores} cores, " + ours + "{reserved} reserved, {free} free to reserve").format(**amounts)
