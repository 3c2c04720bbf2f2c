"""Commands that ask every host that has a name: a dead one is a line of their output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvmctl.cli.output import warn
from kvmctl.model.errors import PartialError, UsageError

if TYPE_CHECKING:
    from kvmctl.cli.app import App
    from kvmctl.control.hosts import Answer
    from kvmctl.hypervisor.connection import Hypervisor

F = TypeVar("F", bound=Callable[..., Any])
UNREACHABLE = "unreachable"


def all_hosts_option(command: F) -> F:
    """`--all-hosts` of a command."""
    text = "Ask all hosts that /etc/kvmctl/hosts.yaml names, at once."
    return click.option("--all-hosts", is_flag=True, help=text)(command)


def asks_several(app: App, all_hosts: bool) -> bool:
    """Whether a command is to ask several hosts. Raises UsageError where it is said twice which."""
    if all_hosts and app.connect:
        raise UsageError("--all-hosts and -c both say which hosts to ask", "leave one of them out")
    return all_hosts or len(app.connect) > 1


def ask_all(app: App, ask: Callable[[Hypervisor], Any]) -> list[Answer]:
    """What each host answers that `-c` names, or that has a name; why one does not is said. Raises UsageError where
    no host has a name."""
    from kvmctl.control import hosts

    answers = hosts.ask_all([hosts.by_name(one) for one in app.connect] or hosts.all_hosts(), ask)
    for answer in answers:
        if answer.error:
            warn(f"{answer.host.name}: {answer.error.message}")
    return answers


def raise_for_dead(answers: Sequence[Answer]) -> None:
    """Raise the error of the hosts where all are dead, PartialError where some are."""
    dead = [answer.error for answer in answers if answer.error]
    if not dead:
        return
    if len(dead) == len(answers):
        raise type(dead[0])(f"none of {len(answers)} hosts answers", "the reasons stand above")
    raise PartialError(f"{len(dead)} of {len(answers)} hosts did not answer", "the reasons stand above")
