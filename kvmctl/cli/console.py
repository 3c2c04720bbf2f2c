"""`kvmctl console`."""

from __future__ import annotations

import sys
from typing import Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.output import note


@click.command()
@click.argument("name", metavar="NAME", shell_complete=complete_guests)
@click.option("--force", is_flag=True, help="Take the console from whoever has it.")
@pass_app
def console(app: App, name: str, force: bool) -> None:
    """Connect this terminal to a guest's serial console; Ctrl-] leaves.

    \b
    Example:
      kvmctl console web1
    """
    import signal
    import termios
    import tty

    from kvmctl.hypervisor import console as serial
    from kvmctl.hypervisor import domains
    from kvmctl.model.errors import ConflictError, UsageError
    from kvmctl.model.wording import argument

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("a console needs a terminal", "run it from a shell, without pipes")
    hypervisor = app.hypervisor()
    domain = domains.find(hypervisor, name)
    if (found := domains.state(domain)) not in ("running", "paused"):
        raise ConflictError(
            f"guest {name} is {found}, so it has no console", f"start it: kvmctl start {argument(name)}"
        )
    note(app, f"connected to {name}; Ctrl-] leaves")
    source = sys.stdin.fileno()
    before = termios.tcgetattr(source)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # to leave the terminal as it was then, too
    try:
        tty.setraw(source)
        left = serial.attach(hypervisor, domain, source, sys.stdout.fileno(), force)
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
    note(app, f"\nleft the console of {name}" if left else f"\nthe console of {name} was closed: {_why(domain)}")


def _why(domain: Any) -> str:
    from kvmctl.control.wait import until
    from kvmctl.hypervisor import domains
    from kvmctl.model.errors import NotFoundError

    try:
        # The stream of a guest that ends is closed before the guest is stopped: QEMU may take a while to leave.
        found = until(lambda: domains.state(domain), lambda state: state != "running", 2.0)
        found = until(lambda: domains.state(domain), lambda state: state != "stopping", 20.0)
    except NotFoundError:  # it was transient
        found = "stopped"
    return "somebody else has taken it" if found == "running" else f"the guest is {found}"
