"""`kvmctl swap`: what the host swaps to."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, emit, emit_document, emit_names, note, table, warn
from kvmctl.model.errors import EXIT_PENDING, PartialError, UsageError
from kvmctl.model.units import human_size, parse_size

if TYPE_CHECKING:
    from kvmctl.host.swap_change import Done

_AREAS = (
    Column("name", "NAME"),
    Column("kind", "KIND"),
    Column("size", "SIZE", human_size, right=True),
    Column("used", "USED", human_size, right=True),
    Column("takes", "TAKES", human_size, right=True),
    Column("priority", "PRIORITY", right=True),
    Column("made_by_kvmctl", "BY", lambda value: "kvmctl" if value else "others"),
    Column("at_boot", "AT-BOOT", lambda value: "yes" if value else "no"),
)
_DONE = (
    Column("name", "NAME"),
    Column("kind", "KIND"),
    Column("size", "SIZE", human_size, right=True),
    Column("action", "ACTION"),
    Column("result", "RESULT"),
    Column("reason", "REASON"),
)


@click.group()
def swap() -> None:
    """What the host swaps to: compressed memory (zram), files, and others' areas.

    \b
    Example:
      kvmctl swap enable --zram 4GiB
      kvmctl swap show
    """


@swap.command(short_help="What the host swaps to, and what that takes of its memory.")
@pass_app
def show(app: App) -> None:
    """Show what the host swaps to, how full it is, and what zram and zswap take of its memory.

    \b
    Example:
      kvmctl swap show
      kvmctl swap show -o json
    """
    from kvmctl.control import swap as control

    control.refuse_other_machine(app.uri)
    found = control.document()
    if app.output == "name":
        emit_names(row["name"] for row in found["areas"])
    elif app.output == "table":
        _print(found)
    else:
        emit_document(app, found)
    for name in found["unfinished"]:
        warn(
            f"a run that was interrupted had begun to enable {name}: the next enable or disable finishes or removes it"
        )


def _print(found: Mapping[str, Any]) -> None:
    rows = [row | {"takes": row["zram"]["used"] if row["zram"] else None} for row in found["areas"]]
    used = f"{human_size(found['used'])} of {human_size(found['size'])} used" if rows else "none"
    click.echo(f"swap: {used}; swappiness {found['swappiness']}; zswap {_zswap(found['zswap'])}")
    if rows:
        click.echo(table(rows, _AREAS), nl=False)


def _zswap(pool: Mapping[str, Any] | None) -> str:
    if pool is None:
        return "not in this kernel"
    if not pool["enabled"]:
        return "off"
    return f"on ({pool['compressor']}), {human_size(pool['stored'])} in {human_size(pool['pool'])} of memory"


@swap.command(short_help="Swap to compressed memory, or to a file.")
@click.option("--zram", metavar="SIZE", help="A compressed disk in memory that holds SIZE.")
@click.option("--file", nargs=2, metavar="PATH SIZE", help="A file of SIZE that kvmctl makes; an absolute path.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; exit 10 if anything would.")
@pass_app
def enable(app: App, zram: str | None, file: tuple[str, str] | None, dry_run: bool) -> int:
    """Swap to compressed memory, or to a file that kvmctl makes. Where systemd runs, after a reboot too.

    It is filled before areas of lower priority than 100. Both can be there at once.

    \b
    Example:
      kvmctl swap enable --zram 4GiB
      kvmctl swap enable --file /var/lib/kvmctl/swap 8GiB
    """
    from kvmctl.control import swap as control

    if zram is not None and file is not None:
        raise UsageError("--zram and --file make two areas", "make one after the other: both can be there at once")
    if zram is None and file is None:
        raise UsageError("one of --zram and --file has to be given", "kvmctl swap enable --zram 4GiB, for example")
    control.refuse_other_machine(app.uri)
    if file is not None:
        done, notes = control.enable_file(Path(file[0]), _size(file[1]), sys.argv[0], dry_run)
    else:
        done, notes = control.enable_zram(_size(zram or ""), sys.argv[0], dry_run)
    return _report(app, done, notes)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error), "kvmctl swap enable --help shows how it is written") from error


@swap.command(short_help="Swap to it no more, and remove what kvmctl made.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; exit 10 if anything would.")
@pass_app
def disable(app: App, names: tuple[str, ...], dry_run: bool) -> int:
    """Swap no more to these areas, or to all that kvmctl made. What they hold is read back, if memory suffices.

    zram devices and files that kvmctl made are removed. Others' areas have to be named, and stay, unused.

    \b
    Example:
      kvmctl swap disable
      kvmctl swap disable zram1 /var/lib/kvmctl/swap
    """
    from kvmctl.control import swap as control

    control.refuse_other_machine(app.uri)
    done, notes = control.disable(names, dry_run)
    if not done and app.output == "table":
        note(app, "kvmctl made nothing that this host swaps to")
    return _report(app, done, notes)


def _report(app: App, done: Sequence[Done], notes: Sequence[str]) -> int:
    keys = ("name", "kind", "size", "action", "result", "reason")
    if done or app.output != "table":
        emit(app, [{key: getattr(one, key) for key in keys} for one in done], _DONE)
    for text in notes:
        warn(text)
    failed = [one for one in done if one.result == "not applied"]
    if failed:
        raise PartialError(f"{len(failed)} of {len(done)} areas are still swapped to", "the reasons stand above")
    return EXIT_PENDING if any(one.result == "pending" for one in done) else 0
