"""What `kvmctl host` says of several hosts, and whether a guest would run on another one."""

from __future__ import annotations

from typing import Any

import click

from kvmctl.cli.all_hosts import UNREACHABLE, ask_all, raise_for_dead
from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests, complete_hosts
from kvmctl.cli.output import Column, emit, emit_document, emit_names, note, one_line
from kvmctl.model.errors import EXIT_PENDING
from kvmctl.model.units import human_size

_HOSTS = (
    Column("host", "HOST"),
    Column("state", "STATE"),
    Column("cpus", "CPUS", right=True),
    Column("memory", "MEMORY", human_size, right=True),
    Column("running", "RUNNING", right=True),
    Column("defined", "DEFINED", right=True),
    Column("libvirt", "LIBVIRT"),
    Column("hypervisor", "HYPERVISOR"),
)
_FINDINGS = (
    Column("name", "GUEST"),
    Column("severity", "SEVERITY"),
    Column("what", "WHAT"),
    Column("text", "FOUND"),
    Column("next", "NEXT"),
)


def show_all(app: App) -> None:
    """A line for each host that has a name; JSON and YAML hold all that `host show` tells of each."""
    from kvmctl.control.facts import facts

    answers = ask_all(app, facts)
    documents: list[dict[str, Any]] = [
        {"host": answer.host.name, "uri": answer.host.uri}
        | ({"state": UNREACHABLE, "error": answer.error.message} if answer.error else {"state": "up"} | answer.value)
        for answer in answers
    ]
    if app.output == "name":
        emit_names(one["host"] for one in documents if one["state"] == "up")
    elif app.output == "table":
        emit(app, [_line(one) for one in documents], _HOSTS)
    else:
        emit_document(app, documents)
    raise_for_dead(answers)


def _line(found: dict[str, Any]) -> dict[str, Any]:
    cpu, memory, guests, versions = (found.get(key) or {} for key in ("cpu", "memory", "guests", "versions"))
    return {
        "host": found["host"],
        "state": found["state"],
        "cpus": cpu.get("threads"),
        "memory": memory.get("total"),
        "running": guests.get("running"),
        "defined": guests.get("defined"),
        "libvirt": versions.get("libvirt"),
        "hypervisor": versions.get("hypervisor"),
    }


@click.command(short_help="The CPU model that all of several hosts can run.")
@click.argument("hosts", nargs=-1, required=True, metavar="[URI|HOST]...", shell_complete=complete_hosts)
@click.option(
    "--guest", "guests", multiple=True, metavar="NAME", shell_complete=complete_guests, help="Give it to this guest."
)
@click.option("--dry-run", is_flag=True, help="Only say which guests it would change; exit 10 if any.")
@pass_app
def baseline(app: App, hosts: tuple[str, ...], guests: tuple[str, ...], dry_run: bool) -> int:
    """Compute the CPU model that all of these hosts can run; guests that have it can move between them.

    With --guest it becomes the CPU of that guest, of the hypervisor that -c names, from its next start on.

    \b
    Example:
      kvmctl host baseline node1 node2
      kvmctl host baseline qemu:///system qemu+ssh://node2/system --guest web1
    """
    from kvmctl.control import baseline as control
    from kvmctl.control.hosts import resolve

    kind = control.kind_of(app.hypervisor(), guests) if guests else None
    found = control.baseline([resolve(host) for host in hosts], kind)
    if app.output == "name":
        emit_names([found.model])
    elif app.output == "table":
        click.echo(f"model:     {one_line(found.model)} ({found.arch}, {found.virt_type})")
        click.echo(f"with:      {' '.join(found.features) or '-'}")
        click.echo(f"without:   {' '.join(found.without) or '-'}")
    else:
        keys = ("model", "features", "without", "virt_type", "arch", "xml")
        emit_document(app, {key: getattr(found, key) for key in keys} | {"hosts": list(hosts)})
    changed = control.give_all(app.hypervisor(), guests, found, dry_run) if guests else []
    for name in guests:
        would = "would get" if dry_run else "gets"
        note(app, f"guest {name} {would} it at its next start" if name in changed else f"guest {name} has it already")
    return EXIT_PENDING if dry_run and changed else 0


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="[NAME|GLOB]...", shell_complete=complete_guests)
@click.option(
    "--on", "host", required=True, metavar="URI|HOST", shell_complete=complete_hosts, help="The host it is about."
)
@pass_app
def doctor(app: App, names: tuple[str, ...], host: str) -> None:
    """Say whether guests would run on another host as they are, and what would have to change before.

    Exit 5 if something has to. `kvmctl host doctor` examines a host.

    \b
    Example:
      kvmctl doctor web1 --on qemu+ssh://node2/system
      kvmctl doctor '*' --on node2 -o json
    """
    from kvmctl.control import migrate as control
    from kvmctl.control.select import chosen
    from kvmctl.model.errors import RefusedError
    from kvmctl.policy.migration import blocks

    source = app.hypervisor()
    target, named = control.open_target(host)
    with target:
        found = control.portability(source, target, named, chosen(source, names, ()))
    keys = ("severity", "what", "side", "text", "next")
    rows = [{"name": one.guest} | {key: getattr(one, key) for key in keys} for one in found]
    if rows or app.output != "table":
        emit(app, rows, _FINDINGS)
    if blocks(found):
        raise RefusedError("not every guest would run there as it is", "change what stands above")
    note(app, f"would run on {named.uri}, unmodified")
