"""The `kvmctl` command: global options, lazily loaded commands, and the one place that prints an error
and exits."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from kvmctl import __version__
from kvmctl.cli import streams
from kvmctl.cli.options import accept_after, global_options
from kvmctl.cli.output import printable, styled, warn
from kvmctl.model.errors import KvmctlError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

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
    "clone": ("kvmctl.cli.clone:clone", "Make a guest that is a copy of another"),
    "snapshot": ("kvmctl.cli.snapshot:snapshot", "Snapshots: create, list, revert, delete"),
    "backup": ("kvmctl.cli.backup:backup", "Back a guest up into a folder, in full or what changed since"),
    "migrate": ("kvmctl.cli.migrate:migrate", "Move guests to another host while they run"),
    "doctor": ("kvmctl.cli.hosts:doctor", "Whether guests would run on another host as they are"),
    "attach": ("kvmctl.cli.attach:attach", "Give a guest a disk, a nic or another medium, live first"),
    "detach": ("kvmctl.cli.attach:detach", "Take a disk, a nic or a medium from a guest, live first"),
    "console": ("kvmctl.cli.console:console", "Connect this terminal to a guest's serial console"),
    "export": ("kvmctl.cli.export:export", "Write a guest to one file: disks, definition, firmware, memory"),
    "import": ("kvmctl.cli.import_:import_", "Make a guest of such a file, on this host or another"),
    "inspect": ("kvmctl.cli.inspect:inspect", "Show what is in a guest's file"),
    "cpu": ("kvmctl.cli.cpu:cpu", "The CPU ledger: promises, entitlements, weights, use, steal"),
    "memory": ("kvmctl.cli.memory:memory", "The memory ledger: configured, balloon, resident, shared, swapped"),
    "top": ("kvmctl.cli.top:top", "Host and guests live: CPU, memory layers, KSM, swap, steal, pressure"),
    "rebalance": ("kvmctl.cli.rebalance:rebalance", "Keep the promises: once, for a while, or by cron"),
    "events": ("kvmctl.cli.events:events", "Follow what happens to the guests: starts, stops, balloons"),
    "host": ("kvmctl.cli.host:host", "The host: show, metrics, doctor"),
    "ksm": ("kvmctl.cli.ksm:ksm", "Kernel same-page merging: show, enable, disable"),
    "swap": ("kvmctl.cli.swap:swap", "What the host swaps to: show, enable, disable"),
    "pci": ("kvmctl.cli.pci:pci", "PCI devices: list, bind and release for guests, virtual functions"),
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
        accept_after(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_target, text) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the commands' names without importing them."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text) for name, (_, text) in _COMMANDS.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for a misspelt one."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, 1)
            ctx.fail(f"no such command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    params=global_options(),
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": streams.help_width()},
)
@click.version_option(__version__, "--version", prog_name="kvmctl")
def cli() -> None:
    """CPU limit, shares and reservation, safe memory overcommit and guests in one file, on plain libvirt.

    \b
    Example:
      kvmctl apply -f guests.yaml
      kvmctl cpu
    """


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every way out of kvmctl ends here, with its exit code."""
    streams.prepare()
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    try:
        code = _run(argv)
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = _said("interrupted", 130)
    except KvmctlError as error:
        code = report(error, debug)
    except Exception as error:  # the last resort: a user never sees a traceback unasked
        code = _unexpected(error, debug)
    _tell_of_journals()
    _leave(code)


def _run(argv: list[str]) -> int:
    try:
        result = cli.main(argv, prog_name="kvmctl", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        raise _usage(error) from error
    return result if isinstance(result, int) else 0


def _tell_of_journals() -> None:
    """Whichever command met an unusable journal says that it moved it aside."""
    journal = sys.modules.get("kvmctl.host.journal")
    for sentence in journal.moved_aside if journal else ():
        warn(sentence)


def _usage(error: click.UsageError) -> UsageError:
    """Click's complaint in our words: what is wrong, and where to look."""
    said = error.format_message().rstrip(".").replace("is not a valid integer range", "is not a whole number")
    hint = f"{error.ctx.command_path if error.ctx else 'kvmctl'} --help shows how it is written"
    if isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--"):
        hint += "; before a name that begins with a dash put --"
    return UsageError(said[:1].lower() + said[1:], hint)


def report(error: KvmctlError, debug: bool = False) -> int:
    """Print one error with what to do next; its exit code."""
    hint = f"\n  {error.hint}" if error.hint else ""
    return _said(_error(error.message + hint), error.exit_code, error if debug else None)


def _unexpected(error: Exception, debug: bool) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        text = f"cannot write: {error.strerror}\n  make room where the output goes"
    else:
        text = f"internal: {type(error).__name__}: {error}\n  this is a fault of kvmctl; --debug shows where"
    return _said(_error(text), 1, error if debug else None)


def _error(text: str) -> str:
    return f"{styled('error:', fg='red', err=True)} {printable(text)}"


def _said(text: str, code: int, cause: Exception | None = None) -> int:
    if cause:
        import traceback

        traceback.print_exception(cause)
    click.echo(text, err=True)
    return code


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            streams.drop(stream.fileno())
    sys.exit(code)
