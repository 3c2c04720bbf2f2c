"""Help and completion: what they offer works."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from kvmctl.cli.main import cli
from tests.conftest import Kvmctl
from tests.support import Screen

pytestmark = pytest.mark.testdriver


def _commands(command: click.Command, context: click.Context, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    yield path, command.help or ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, click.Context(inner, context, name), *path, name)


COMMANDS = dict(_commands(cli, click.Context(cli)))
EXAMPLES = [
    line.strip() for text in COMMANDS.values() for line in text.partition("Example:")[2].splitlines() if line.strip()
]


def test_every_command_is_listed_once() -> None:
    assert len(COMMANDS) > 25
    assert ("host", "doctor") in COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_shows_an_example_of_its_command(path: tuple[str, ...]) -> None:
    text = COMMANDS[path]
    assert text.split("\n")[0].endswith("."), "a help begins with one sentence"
    examples = text.partition("Example:")[2].split("\n")
    assert any(line.strip().startswith("kvmctl ") and set(path) <= set(line.split()) for line in examples), text


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_parses(line: str) -> None:
    words = shlex.split(re.split(r"  \(|[|>]", line)[0])
    assert words[0] == "kvmctl"
    context = cli.make_context("kvmctl", words[1:])
    while isinstance(context.command, click.Group):
        left = [*context._protected_args, *context.args]
        if not left and context.command.invoke_without_command:
            break
        name, inner, rest = context.command.resolve_command(context, left)
        assert inner is not None
        context = inner.make_context(name, rest, parent=context)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_fits_its_terminal(kvmctl: Kvmctl, path: tuple[str, ...]) -> None:
    ran = kvmctl(*path, "--help", env={"COLUMNS": "80"})
    assert ran.err == ""
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "..." not in ran.out.replace("]...", "").replace("VALUE...", "").replace("[ARGS]...", "")


def test_no_command_at_all_shows_what_there_is(kvmctl: Kvmctl) -> None:
    assert "apply " in kvmctl(code=2).err
    assert "doctor " in kvmctl("host", code=2).err
    assert kvmctl("list", "-h").out == kvmctl("list", "--help").out


# Completion, by the shells themselves


@pytest.fixture
def path(tmp_path: Path) -> dict[str, str]:
    """A PATH that has `kvmctl`, and a hypervisor that needs no -c."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "kvmctl"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kvmctl "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/local/bin:/usr/bin:/bin", "LIBVIRT_DEFAULT_URI": "test:///default"}


_SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
_LOAD = {
    "bash": "eval \"$(kvmctl completion bash)\"; PS1='ready> '",
    "zsh": 'autoload -U compinit; compinit -u -D; eval "$(kvmctl completion zsh)"; PROMPT="ready> "',
    "fish": "kvmctl completion fish | source; function fish_prompt; echo 'ready> '; end",
}
INSTALLED = [shell for shell in _SHELLS if shutil.which(shell)]


@pytest.fixture(params=INSTALLED)
def prompt(request: pytest.FixtureRequest, screen: Screen, path: dict[str, str], tmp_path: Path) -> Screen:
    """An interactive shell that has loaded the script."""
    screen.run(*_SHELLS[request.param], env=path | {"HOME": str(tmp_path), "COLUMNS": "200"})
    screen.type(_LOAD[request.param].encode() + b"\r")
    screen.expect("ready> ")
    screen.expect("\n" if request.param == "bash" else "ready> ")
    return screen


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("kvmctl autos\ttest", "starts with the host"),
        ("kvmctl show te\t", "uuid:"),
        ("kvmctl -c test:///default show te\t", "uuid:"),
        ("kvmctl show -c test:///default te\t", "uuid:"),
        ("kvmctl list -o js\t", '"name": "test"'),
        ("kvmctl set test memory.reserv\t1GiB", "1 guest: 1 change"),
        ("kvmctl host doc\t", "answers"),
    ],
)
def test_completion(prompt: Screen, typed: str, shown: str) -> None:
    prompt.type(typed.encode() + b"\r")
    prompt.expect(shown)


def test_completion_says_nothing_where_no_hypervisor_answers(kvmctl: Kvmctl) -> None:
    env = {"_KVMCTL_COMPLETE": "bash_complete", "COMP_WORDS": "kvmctl -c foo:/// show ", "COMP_CWORD": "4"}
    ran = kvmctl(env=env)
    assert (ran.out.strip(), ran.err) == ("", "")


def test_completion_offers_only_names_that_a_shell_takes_as_they_are(
    kvmctl: Kvmctl, foreign: Callable[..., str]
) -> None:
    uri = foreign("plain", "with space", "*", "-rf", "$(id)", "c1\x9b", "a;b")
    env = {"_KVMCTL_COMPLETE": "bash_complete", "COMP_WORDS": f"kvmctl -c {uri} show ", "COMP_CWORD": "4"}
    assert kvmctl(env=env).out == "plain,plain\n"
