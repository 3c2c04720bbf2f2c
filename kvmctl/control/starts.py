"""The starts that new guests are owed: a run that is cut off, or a start that fails, leaves a guest that is defined
and off, which the next apply could not tell from one that somebody stopped."""

from __future__ import annotations

from collections.abc import Mapping

from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import NotFoundError

INTENT = "start"
"""The journal's word for them; one entry for each hypervisor."""
OFF = ("stopped", "crashed")


def owed(hypervisor: Hypervisor, journal: Journal) -> dict[str, str]:
    """`running` or `paused` by the name of each guest that was made and has not been brought to it."""
    found = [intent.data for intent in journal.unfinished(INTENT) if intent.key == hypervisor.uri]
    return dict(found[0]) if found else {}


def owe(hypervisor: Hypervisor, journal: Journal, states: Mapping[str, str]) -> None:
    """Replace what is owed on this hypervisor."""
    if states == owed(hypervisor, journal):
        return
    if states:
        journal.begin(INTENT, hypervisor.uri, dict(states))
    else:
        journal.done(INTENT, hypervisor.uri)


def settle(hypervisor: Hypervisor, journal: Journal) -> None:
    """Drop the guests that are gone, or on by now."""
    states = owed(hypervisor, journal)
    owe(hypervisor, journal, {name: state for name, state in states.items() if _is_off(hypervisor, name)})


def _is_off(hypervisor: Hypervisor, name: str) -> bool:
    try:
        return domains.state(domains.find(hypervisor, name)) in OFF
    except NotFoundError:
        return False
