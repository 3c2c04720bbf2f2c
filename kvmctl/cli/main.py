"""The `kvmctl` command: global options, lazily loaded commands, and the one place that prints an error
and exits."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from kvmctl import __version__
from kvmctl.cli.app import App
from kvmctl.cli.output import styled
from kvmctl.model.errors import KvmctlError

_COMMANDS = {
    "apply": ("kvmctl.cli.apply:apply", "Make the hypervisor's guests match a guest file"),
    "diff": ("kvmctl.cli.apply:diff", "Show what apply would change"),
    "set": ("kvmctl.cli.apply:set_", "Change fields of one guest, live first"),
    "list": ("kvmctl.cli.list:list_", "List the guests"),
    "show": ("kvmctl.cli.show:show", "Show one guest: its promises, devices and state"),
    "spec": ("kvmctl.cli.show:spec", "Print a guest as a guest file"),
    "xml": ("kvmctl.cli.show:xml", "Print a guest's domain XML"),
    "start": ("kvmctl.cli.lifecycle:start", "Start guests"),
    "stop": ("kvmctl.cli.lifecycle:stop", "Ask guests to power off"),
    "reboot": ("kvmctl.cli.lifecycle:reboot", "Reboot guests"),
    "pause": ("kvmctl.cli.lifecycle:pause", "Pause guests"),
    "resume": ("kvmctl.cli.lifecycle:resume", "Resume paused guests"),
    "autostart": ("kvmctl.cli.lifecycle:autostart", "Start guests with the host, or not"),
    "delete": ("kvmctl.cli.delete:delete", "Delete guests"),
    "console": ("kvmctl.cli.console:console", "Connect this terminal to a guest's serial console"),
    "cpu": ("kvmctl.cli.cpu:cpu", "The CPU ledger: promises, entitlements, weights, use, steal"),
    "memory": ("kvmctl.cli.memory:memory", "The memory ledger: configured, balloon, resident, shared, swapped"),
    "host": ("kvmctl.cli.host:host", "The host: show, metrics, doctor"),
    "ksm": ("kvmctl.cli.ksm:ksm", "Kernel same-page merging: show, enable, disable"),
    "completion": ("kvmctl.cli.completion:completion", "Print a shell completion script"),
}

EPILOG = """\b
Exit codes:
  0 done   1 failed   2 usage   3 not found   4 conflict   5 refused by policy
  6 cannot reach the hypervisor   7 timed out   8 done in part   9 locked
  10 changes are pending (diff, --dry-run)   130 interrupted
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: start-up time is a feature."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of `_COMMANDS`: what a newcomer needs first."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_target, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for a misspelt one."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, 1)
            ctx.fail(f"no such command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c", "--connect", "uri", metavar="URI", help="Hypervisor; else LIBVIRT_DEFAULT_URI, else the first usable."
)
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml", "name"]), default="table", help="Format of results."
)
@click.option("-q", "--quiet", is_flag=True, help="Results and errors only.")
@click.option("-v", "--verbose", count=True, help="Say more about what is done.")
@click.option("--debug", is_flag=True, help="Show the cause of an error, with its traceback.")
@click.option("--yes", is_flag=True, help="Answer yes to every question.")
@click.version_option(__version__, "--version", prog_name="kvmctl")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """CPU limit, shares and reservation, safe memory overcommit and guests in one file, on plain libvirt.

    \b
    Example:
      kvmctl apply -f guests.yaml
      kvmctl cpu
    """
    ctx.obj = App(**options)


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every way out of kvmctl ends here, with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Foreign names may hold what the terminal's encoding does not.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        code = _closed_pipe()
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except KvmctlError as error:
        code = report(error, debug)
    except Exception as error:  # the last resort: a user never sees a traceback unasked
        code = _unexpected(error, debug)
    _leave(code)


def _run(argv: list[str]) -> int:
    try:
        result = cli.main(argv, prog_name="kvmctl", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    return result if isinstance(result, int) else 0


def report(error: KvmctlError, debug: bool = False) -> int:
    """Print one error with what to do next; its exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if error.message:
        click.echo(f"{styled('error:', fg='red', err=True)} {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    return error.exit_code


def _unexpected(error: Exception, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    click.echo(f"error: internal: {type(error).__name__}: {error}", err=True)
    click.echo("  this is a fault of kvmctl; --debug shows where", err=True)
    return 1


def _closed_pipe() -> int:
    # What is still buffered has no reader; without this the interpreter complains at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _closed_pipe()
    sys.exit(code)
