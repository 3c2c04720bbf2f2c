"""What every change of guests has around it: the lock before, the weights after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvmctl.control import starts
from kvmctl.control.weights import renew
from kvmctl.host import pci_vf
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import UsageError

LOCK_WAIT = 10.0
"""Seconds that a person's command waits for another kvmctl before it gives up with exit 9."""


@contextmanager
def guarded(hypervisor: Hypervisor, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold the hypervisor's lock; afterwards every running guest gets the weight that its share is now worth, and
    a start that is made up for, or of a guest that is gone, is owed no more."""
    with lock(hypervisor.uri, LOCK_WAIT):
        yield
        journal = Journal()
        starts.settle(hypervisor, journal)
        if journal.entries(pci_vf.KIND):
            from kvmctl.control.passed import settle

            for sentence in settle(hypervisor, journal):
                warn(sentence)
        try:
            outcomes = renew(hypervisor)
        except UsageError as error:
            warn(f"{error.message}; so the guests keep the weights they have")
            return
        for outcome in outcomes:
            if outcome.result == "not applied":
                warn(f"weight of guest {outcome.change.guest}: {outcome.reason}")
