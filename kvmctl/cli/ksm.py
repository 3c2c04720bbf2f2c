"""`kvmctl ksm`: kernel same-page merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, emit, emit_document, note, table, warn
from kvmctl.cli.partial import hypervisor_or_error
from kvmctl.model.errors import PartialError
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.host.ksm import Setting

_RUN = {0: "off", 1: "merging", 2: "off, all pages unmerged"}
_GUESTS = (
    Column("name", "GUEST"),
    Column("sharing", "SHARING", lambda value: "yes" if value else "no"),
    Column("resident", "RESIDENT", human_size, right=True),
    Column("merging_pages", "MERGING-PAGES", right=True),
    Column("merged", "MERGED", human_size, right=True),
    Column("profit", "PROFIT", human_size, right=True),
)
_SETTINGS = (
    Column("file", "SETTING"),
    Column("old", "WAS"),
    Column("found", "IS"),
    Column("result", "RESULT"),
    Column("reason", "REASON"),
)


@click.group()
def ksm() -> None:
    """Kernel same-page merging: memory that is equal in several guests is kept once.

    \b
    Example:
      kvmctl ksm enable
      kvmctl ksm show
    """


@ksm.command(short_help="What merging saves, and why it saves no more.")
@pass_app
def show(app: App) -> None:
    """Show what merging saves, for each guest too, and why it saves no more.

    \b
    Example:
      kvmctl ksm show
      kvmctl ksm show -o json
    """
    from kvmctl.control.ksm_report import remote_report, report

    hypervisor, error = hypervisor_or_error(app)
    if hypervisor and not hypervisor.local:
        note(app, f"{hypervisor.uri} is not on this machine: only what libvirt tells is shown")
        emit_document(app, remote_report(hypervisor))
        return
    found = report(hypervisor)
    if app.output in ("table", "name"):
        _print(app, found)
    else:
        emit_document(app, found)
    if error:
        raise error


def _print(app: App, found: Mapping[str, Any]) -> None:
    if app.output == "name":
        emit(app, found["guests"] or (), ())
        return
    rate = f"{found['pages_to_scan']} pages every {found['sleep_millisecs']} ms"
    advisor = f", advisor {found['advisor_mode']}" if found["advisor_mode"] else ""
    lines = {
        "KSM": f"{_RUN.get(found['run'], found['run'])} (run {found['run']}), {rate}{advisor}",
        "saved": f"{human_size(found['saved'])} ({found['pages_sharing']} pages kept as {found['pages_shared']})",
        "profit": f"{human_size(found['profit'])} after the kernel's bookkeeping",
        "full scans": str(found["full_scans"]),
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':<12}{value}")
    for name, change in found["changed_by_kvmctl"].items():
        click.echo(f"{'changed:':<12}{name} was {change['old']} before kvmctl")
    for index, sentence in enumerate(found["explanation"]):
        click.echo(f"{'why:' if not index else '':<12}{sentence}")
    for name in found["managers"]:
        warn(f"{name} is active, and changes the same settings")
    if found["guests"]:
        click.echo()
        click.echo(table(found["guests"], _GUESTS), nl=False)


@ksm.command(short_help="Merge equal pages.")
@click.option(
    "--pages-to-scan",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Pages a round; turns the kernel's advisor off, which would choose by itself.",
)
@click.option(
    "--sleep-millisecs", type=click.IntRange(1, 60_000), metavar="MS", help="Milliseconds between rounds (20)."
)
@click.option(
    "--merge-across-nodes/--no-merge-across-nodes",
    "across",
    default=None,
    help="Merge pages of different NUMA nodes or not; to change it, all that is merged is taken apart first.",
)
@click.option("--force", is_flag=True, help="Also overwrite what someone else has changed since kvmctl did.")
@pass_app
def enable(app: App, pages_to_scan: int | None, sleep_millisecs: int | None, across: bool | None, force: bool) -> None:
    """Merge equal pages. What was set before is remembered, and `disable` puts it back.

    Where the kernel has an advisor it chooses the pace, else 1000 pages every 20 ms. Guests with
    memory.sharing false are left alone.

    \b
    Example:
      kvmctl ksm enable
      kvmctl ksm enable --pages-to-scan 2000 --sleep-millisecs 10
      kvmctl ksm enable --no-merge-across-nodes
    """
    from kvmctl.control import ksm as control
    from kvmctl.host.ksm import KsmSettings

    control.refuse_other_machine(app.uri)
    _report(app, *control.enable(KsmSettings(pages_to_scan, sleep_millisecs, across), force))


@ksm.command(short_help="Stop merging, and put back what was set before.")
@click.option("--unmerge", is_flag=True, help="Give every guest its own pages again, if there is memory for it.")
@click.option("--force", is_flag=True, help="Also put back what someone else has changed since kvmctl did.")
@pass_app
def disable(app: App, unmerge: bool, force: bool) -> None:
    """Stop merging, and put back what was set before kvmctl.

    \b
    Example:
      kvmctl ksm disable
      kvmctl ksm disable --unmerge
    """
    from kvmctl.control import ksm as control

    control.refuse_other_machine(app.uri)
    _report(app, *control.disable(unmerge, force))


def _report(app: App, settled: Sequence[Setting], notes: Sequence[str]) -> None:
    from kvmctl.control.ksm import failed

    names = ("file", "old", "wanted", "found", "result", "reason")
    rows = [{"name": setting.file, **{name: getattr(setting, name) for name in names}} for setting in settled]
    emit(app, rows, _SETTINGS)
    for text in notes:
        warn(text)
    if refused := failed(settled):
        raise PartialError(
            f"the kernel did not take {', '.join(setting.file for setting in refused)}", "the reasons stand above"
        )
