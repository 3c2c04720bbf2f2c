"""The global options. They work before the command and after it: nobody remembers where they belong."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from kvmctl.cli.app import App

_AFTER = "The global options (-c, -o, -q, -v, --yes, --debug) can stand here too: see kvmctl --help."
_AFTER_OWN = _AFTER.replace("-o,", "--output,")


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    app = ctx.ensure_object(App)
    assert param.name is not None
    if ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT:
        if isinstance(value, tuple):
            value = tuple(dict.fromkeys(value))
        # What stands after the command replaces what stands before it, where an alias may have put it.
        setattr(app, param.name, value)


def _hosts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from kvmctl.cli.completion import complete_hosts

    return complete_hosts(ctx, param, incomplete)


def global_options(hidden: bool = False) -> list[click.Parameter]:
    """The options whose values are kept in the App of the invocation; `hidden` ones are not in the help."""

    def option(*names: str, **more: Any) -> click.Option:
        return click.Option(names, callback=_keep, expose_value=False, hidden=hidden, **more)

    return [
        option(
            "-c",
            "--connect",
            multiple=True,
            metavar="URI|HOST",
            shell_complete=_hosts,
            help="Hypervisor; else LIBVIRT_DEFAULT_URI, else the first usable. Several for list and host show.",
        ),
        option("-o", "--output", type=click.Choice(["table", "json", "yaml", "name"]), help="Format of results."),
        option("-q", "--quiet", is_flag=True, help="Results and errors only."),
        option("-v", "--verbose", count=True, help="Also say what is done on the way."),
        option("--debug", is_flag=True, help="Show the cause of an error, with its traceback."),
        option("--yes", is_flag=True, help="Answer yes to every question."),
    ]


def accept_after(command: click.Command) -> None:
    """Let `command`, and what it has below it, take the global options as well."""
    if command.epilog in (_AFTER, _AFTER_OWN):
        return
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for option in global_options(hidden=True):
        # What a command means by `-o` is a file in some, as everywhere else; there --output says the format.
        option.opts = [name for name in option.opts if name not in own]
        command.params.append(option)
    command.epilog = _AFTER_OWN if "-o" in own else _AFTER
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            accept_after(inner)
