"""Completion for bash, zsh and fish, with guest names."""

from __future__ import annotations

import click

from kvmctl.cli.app import App
from kvmctl.model.errors import KvmctlError


def complete_guests(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The guests whose name begins so; nothing where no hypervisor answers, since a shell has no use for errors."""
    from kvmctl.hypervisor.connection import open_hypervisor
    from kvmctl.hypervisor.domains import names

    try:
        with open_hypervisor(ctx.ensure_object(App).uri) as hypervisor:
            return [name for name in names(hypervisor) if name.startswith(incomplete)]
    except KvmctlError:
        return []


def complete_fields(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The fields of a guest file whose key begins so, each with its `=`."""
    from kvmctl.model.fields import FIELDS

    given = {text.partition("=")[0] for text in ctx.params.get("assignments") or ()}
    return [f"{key}=" for key in FIELDS if key.startswith(incomplete) and key not in given]


_WHERE = {
    "bash": "/etc/bash_completion.d/kvmctl",
    "zsh": "/usr/local/share/zsh/site-functions/_kvmctl",
    "fish": "/etc/fish/completions/kvmctl.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_WHERE)))
def completion(shell: str) -> None:
    """Print a completion script for SHELL.

    \b
    Example:
      kvmctl completion bash > /etc/bash_completion.d/kvmctl
    """
    from click.shell_completion import get_completion_class

    from kvmctl.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "kvmctl", "_KVMCTL_COMPLETE").source())
