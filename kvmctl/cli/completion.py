"""Completion for bash, zsh and fish, with guest names."""

from __future__ import annotations

import click

from kvmctl.cli.app import App
from kvmctl.model.errors import KvmctlError
from kvmctl.model.wording import argument


def complete_guests(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The guests whose name begins so, of those whose name a shell takes as it is; nothing where no hypervisor
    answers, since a shell has no use for errors."""
    from kvmctl.hypervisor.connection import open_hypervisor
    from kvmctl.hypervisor.domains import names

    try:
        with open_hypervisor(ctx.ensure_object(App).uri) as hypervisor:
            return [name for name in names(hypervisor) if name.startswith(incomplete) and argument(name) == name]
    except KvmctlError:
        return []


def complete_hosts(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The hosts whose name here begins so."""
    from kvmctl.control.hosts import named

    try:
        return [host.name for host in named() if host.name.startswith(incomplete) and argument(host.name) == host.name]
    except KvmctlError:
        return []


def complete_fields(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The fields of a guest file whose key begins so, each with its `=`."""
    from kvmctl.model.fields import FIELDS

    if "=" in incomplete:
        return []
    given = {text.partition("=")[0] for text in ctx.params.get("assignments") or ()}
    return [f"{key}=" for key in FIELDS if key.startswith(incomplete) and key not in given]


_BASH = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} type value
    local -a words
    read -ra words <<< "$line"
    [[ $line != *' ' ]] || words+=('')
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                [[ $value != *= ]] || compopt -o nospace
                ;;
        esac
    done < <(COMP_WORDS=$line COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
"""Unlike click's own it leaves the cursor behind `cpu.shares=`, and takes a URI for one word: bash breaks at `:`."""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a response plain fields described
    local type key about
    (( $+commands[%(prog_name)s] )) || return 1
    local -x COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1))
    response=("${(@f)$(%(complete_var)s=zsh_complete %(prog_name)s)}")
    for type key about in ${response}; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ $key == *= ]]; then
                    fields+=("$key")
                elif [[ $about == _ ]]; then
                    plain+=("$key")
                else
                    described+=("$key:$about")
                fi
                ;;
        esac
    done
    (( ! $#described )) || _describe -V unsorted described -U
    (( ! $#fields )) || compadd -U -V unsorted -S '' -a fields
    (( ! $#plain )) || compadd -U -V unsorted -a plain
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
"""Click's own, but for the cursor that stays behind `cpu.shares=`."""
_OURS = {"bash": _BASH, "zsh": _ZSH}


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    Example:
      kvmctl completion bash > /etc/bash_completion.d/kvmctl
      kvmctl completion zsh > /usr/local/share/zsh/site-functions/_kvmctl
      kvmctl completion fish > /etc/fish/completions/kvmctl.fish
    """
    from click.shell_completion import get_completion_class

    from kvmctl.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "kvmctl", "_KVMCTL_COMPLETE")
    click.echo(_OURS[shell] % script.source_vars() if shell in _OURS else script.source(), nl=False)
