"""`kvmctl top`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from kvmctl.cli import streams
from kvmctl.cli.app import App, pass_app
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import emit_document, emit_names, moves_cursor
from kvmctl.cli.top_view import SORTS, View
from kvmctl.model.errors import UsageError

if TYPE_CHECKING:
    from kvmctl.control.top import Watch
    from kvmctl.model.top import TopFrame

LEAST_SECONDS = 0.2
"""Between two frames: the kernel's counters say little about less."""
_ONCE = "add --once for one frame as text, and -o json for a document"


@click.command("top", short_help="Host and guests live, with bars.")
@click.option("--once", is_flag=True, help="Print one frame as plain text and end; with -o json a document.")
@click.option(
    "--every",
    callback=seconds,
    default="2s",
    show_default=True,
    metavar="TIME",
    help="Between two frames; with --once, how long to measure, or 0.",
)
@click.option("--sort", type=click.Choice(list(SORTS.values())), default="cpu", show_default=True, help="The order.")
@click.option("--filter", "wanted", default="", metavar="TEXT", help="Guests with this in their name, or a glob.")
@pass_app
def top(app: App, once: bool, every: float, sort: str, wanted: str) -> None:
    """Show host and running guests live: CPU against entitlement, memory in layers, pressure.

    \b
    USED, ENTL  cores that the guest uses, and those it is entitled to now
    ST%         the time its vCPUs waited for a CPU of the host
    RES, SHR    what its process has in memory; what of that KSM merged
    SWP         what of it is in the host's swap
    BALN, MAX   what its balloon leaves it, and what it may grow to
    PSI c/m     per cent of 10 s in which it waited for CPU, for memory

    Keys: c, m, n and s sort by CPU, memory, name and steal; / filters by name; arrows and page keys scroll;
    q ends it.

    \b
    Example:
      kvmctl top
      kvmctl top --sort memory --every 5s
      kvmctl top --once -o json
    """
    from kvmctl.control.top import Watch

    view = View(sort=sort, filter=wanted)
    if once:
        _once(app, Watch(app.hypervisor()), every, view)
        return
    if app.output != "table":
        raise UsageError(f"-o {app.output} is for one frame", "add --once")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", _ONCE)
    if not moves_cursor():
        raise UsageError("this terminal cannot move its cursor (TERM is dumb)", _ONCE)
    if every < LEAST_SECONDS:
        raise UsageError(f"--every has to be {LEAST_SECONDS:g} s or more", "write it as in --every 2s")
    _live(app, every, view)


def _live(app: App, every: float, view: View) -> None:
    from kvmctl.cli import top_screen
    from kvmctl.control.top import Watch
    from kvmctl.hypervisor.connection import open_hypervisor
    from kvmctl.hypervisor.uri import given

    # Not the app's connection: to close one that hangs takes half a minute, and the user has had enough.
    hypervisor = open_hypervisor(app.uri)
    # Not the first usable one again: another than was shown may answer now.
    uri = given(app.uri) or hypervisor.uri
    top_screen.run(Watch(hypervisor), lambda: Watch(open_hypervisor(uri)), every, view)


def _once(app: App, watch: Watch, every: float, view: View) -> None:
    frame = watch.frame()
    if every:
        time.sleep(every)
        frame = watch.frame()
    if app.output == "name":
        emit_names(guest.name for guest in view.arranged(frame.guests))
    elif app.output == "table":
        from kvmctl.cli.top_screen import plain

        click.echo(plain(frame, view, streams.width(), sys.stdout.encoding), nl=False)
    else:
        emit_document(app, _document(frame, view))


def _document(frame: TopFrame, view: View) -> dict[str, object]:
    from dataclasses import asdict, replace

    return asdict(replace(frame, guests=tuple(view.arranged(frame.guests))))
