"""`kvmctl host`: what the host is, what it is doing, and what is wrong with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.all_hosts import all_hosts_option, asks_several
from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.duration import seconds
from kvmctl.cli.hosts import baseline
from kvmctl.cli.output import Column, emit, emit_document, emit_names, note, one_line, styled, warn
from kvmctl.cli.partial import hypervisor_or_error
from kvmctl.cli.paths import not_empty
from kvmctl.model.errors import EXIT_PENDING, PartialError, UsageError
from kvmctl.model.wording import argument

if TYPE_CHECKING:
    from kvmctl.control.doctor.check import Check
    from kvmctl.control.metrics import Reading

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "cyan"}
_RESTORED = (
    Column("kind", "KIND"),
    Column("name", "NAME"),
    Column("old", "WAS", right=True),
    Column("wanted", "BEFORE KVMCTL", right=True),
    Column("found", "IS", right=True),
    Column("result", "RESULT"),
    Column("reason", "REASON"),
)


@click.group()
def host() -> None:
    """The host: what it is, what it is doing, what is wrong with it.

    \b
    Example:
      kvmctl host show
      kvmctl host doctor
      kvmctl host restore --dry-run
    """


host.add_command(baseline)


@host.command(short_help="What the host is: processor, memory, versions, pools.")
@all_hosts_option
@pass_app
def show(app: App, all_hosts: bool) -> None:
    """Show what the host is: virtualization, CPU, memory, control groups, policy, versions, guests, pools.

    \b
    Example:
      kvmctl host show
      kvmctl host show -o json
      kvmctl host show --all-hosts
    """
    if asks_several(app, all_hosts):
        from kvmctl.cli.hosts import show_all

        show_all(app)
        return
    from kvmctl.cli.host_lines import facts_lines
    from kvmctl.control.facts import facts

    hypervisor, error = hypervisor_or_error(app)
    found = facts(hypervisor)
    if not found["local"]:
        note(app, f"{found['uri']} is not on this machine: what only its kernel knows is left out")
    if app.output == "name":
        emit_names([found["name"]])
    elif app.output == "table":
        for line in facts_lines(found):
            click.echo(line)
    else:
        emit_document(app, found)
    if error:
        raise error


@host.command(short_help="What host and guests do: CPU, memory, disks, networks.")
@click.option(
    "--interval", callback=seconds, default="1s", show_default=True, metavar="TIME", help="Between two readings."
)
@click.option(
    "--prometheus",
    "target",
    type=click.Path(readable=False),
    metavar="FILE|-",
    help="Write one reading's counters in Prometheus' text format, for node_exporter's textfile collector.",
)
@pass_app
def metrics(app: App, interval: float, target: str | None) -> None:
    """Show what host and guests do: CPU, load, memory, swap, disks, networks, pressure.

    \b
    Example:
      kvmctl host metrics --interval 5s
      kvmctl host metrics --prometheus /var/lib/node_exporter/kvmctl.prom
    """
    from kvmctl.cli.host_lines import metrics_lines
    from kvmctl.control.metrics import document, read

    hypervisor, error = hypervisor_or_error(app)
    before = read(hypervisor)
    if target:
        _expose(before, target)
    else:
        if before.host is None:
            note(app, "the hypervisor is not on this machine: only its guests are shown")
        time.sleep(interval)
        _show(app, document(before, read(hypervisor)), metrics_lines)
    if error:
        raise error


def _show(app: App, found: dict[str, Any], lines: Any) -> None:
    if app.output == "name":
        emit_names(guest["name"] for guest in found["guests"] or ())
    elif app.output == "table":
        for line in lines(found):
            click.echo(line)
    else:
        emit_document(app, found)


def _expose(reading: Reading, target: str) -> None:
    from kvmctl.host.files import write_atomic
    from kvmctl.host.prometheus import exposition

    text = exposition(reading.host, reading.guests)
    if target == "-":
        click.echo(text.decode(), nl=False)
    else:
        # Another user's collector reads it.
        write_atomic(Path(target), text, mode=0o644)


@host.command(short_help="Save what a tick sees, to plan from it anywhere.")
@click.argument("file", type=click.Path(readable=False, dir_okay=False), metavar="FILE|-", callback=not_empty)
@pass_app
def snapshot(app: App, file: str) -> None:
    """Save what a tick sees and remembers, as one JSON document: a bug report, and a test case.

    It holds names, promises, counters and the host's policy, no contents of any guest.

    \b
    Example:
      kvmctl host snapshot today.json
      kvmctl rebalance --from today.json
    """
    from kvmctl.control.snapshot import Saved, dump
    from kvmctl.control.tick import Controller
    from kvmctl.host.files import write_atomic

    controller = Controller(app.hypervisor())
    text = dump(Saved(controller.observe().snapshot, controller.memory, controller.policy))
    if file == "-":
        click.echo(text, nl=False)
    else:
        write_atomic(Path(file), text)
        note(app, f"saved to {file}")


@host.command(short_help="What is wrong, each with cause and next command.")
@click.argument("guest", required=False, metavar="[GUEST]", shell_complete=complete_guests)
@click.option("--isolation", is_flag=True, help="What stands between guests and their host, or of one GUEST.")
@pass_app
def doctor(app: App, guest: str | None, isolation: bool) -> int:
    """Examine the way to the hypervisor, the kernel, pools and leftovers; each with cause and next command.

    Works when libvirt does not. Ends with 1 if any check failed; -o name names those. With --isolation it looks at
    sandbox, user, label, devices, shared memory, page merging and CPU weaknesses instead.

    \b
    Example:
      kvmctl host doctor
      kvmctl host doctor --isolation web1
      kvmctl -c qemu+ssh://host2/system host doctor
    """
    from dataclasses import asdict

    from kvmctl.control.doctor import examine
    from kvmctl.hypervisor.uri import meant

    if guest is not None and not isolation:
        raise UsageError(
            "a guest is examined with --isolation only", f"kvmctl host doctor --isolation {argument(guest)}"
        )
    if isolation:
        from kvmctl.control.doctor.isolation import examine as examine_isolation

        checks = examine_isolation(meant(app.uri), app.hypervisor, guest)
    else:
        checks = examine(meant(app.uri), app.hypervisor)
    if app.output == "table":
        # One by one as they are made: on a broken host some take seconds.
        done = [_printed(check) for check in checks]
    else:
        done = list(checks)
        if app.output == "name":
            emit_names(check.name for check in done if check.result == "fail")
        else:
            emit_document(app, [asdict(check) for check in done])
    return int(any(check.result == "fail" for check in done))


def _printed(check: Check) -> Check:
    result = styled(f"{check.result:<8}", fg=_COLOURS[check.result])
    click.echo(f"{result}{check.name}: {one_line(check.found)}")
    for text in (check.cause, check.next and f"→ {check.next}"):
        if text:
            click.echo(" " * 10 + one_line(text))
    return check


@host.command(short_help="Put back what kvmctl has changed on this machine.")
@click.option("--dry-run", is_flag=True, help="Show what would be put back; exit 10 if anything would.")
@click.option("--force", is_flag=True, help="Also put back what someone else has changed since kvmctl did.")
@pass_app
def restore(app: App, dry_run: bool, force: bool) -> int:
    """Put back what kvmctl has changed in this machine's kernel since it was booted.

    That is the weights of guests, of their threads and of the control group that they are in, and how much the kernel
    leaves to them; their balloons, how often these report, and their OOM scores; KSM; swap that kvmctl made, where what
    is in it fits in memory; and drivers of PCI devices. What someone else has changed since is left as it is, and said.

    \b
    Example:
      kvmctl host restore --dry-run
      kvmctl host restore
    """
    from kvmctl.control.restore import failed
    from kvmctl.control.restore import restore as put_back

    restored, notes = put_back(app.uri, force, dry_run)
    keys = ("name", "kind", "old", "wanted", "found", "result", "reason")
    rows = [{key: getattr(one, key) for key in keys} for one in restored]
    if rows or app.output != "table":
        emit(app, rows, _RESTORED)
    else:
        note(app, "nothing to put back")
    for text in notes:
        warn(text)
    if refused := failed(restored):
        raise PartialError(
            f"{len(refused)} of {len(rows)} values could not be put back", "the reasons stand above; try again then"
        )
    return EXIT_PENDING if any(one.result == "pending" for one in restored) else 0
