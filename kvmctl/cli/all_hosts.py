"""Commands that ask every host that has a name: a dead one is a line of their output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvmctl.cli.output import warn
from kvmctl.model.errors import PartialError

if TYPE_CHECKING:
    from kvmctl.control.hosts import Answer
    from kvmctl.hypervisor.connection import Hypervisor

F = TypeVar("F", bound=Callable[..., Any])
UNREACHABLE = "unreachable"


def all_hosts_option(command: F) -> F:
    """`--all-hosts` of a command."""
    text = "Ask all hosts that /etc/kvmctl/hosts.yaml names, at once."
    return click.option("--all-hosts", is_flag=True, help=text)(command)


def ask_all(ask: Callable[[Hypervisor], Any]) -> list[Answer]:
    """What each host answers; why one does not is said. Raises UsageError where no host has a name."""
    from kvmctl.control import hosts

    answers = hosts.ask_all(hosts.all_hosts(), ask)
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
