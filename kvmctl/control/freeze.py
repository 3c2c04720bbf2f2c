"""A guest's file systems, frozen for a moment by the agent in it, and thawed whatever becomes of us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kvmctl.host.journal import Intent, Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor import backups, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError, LockedError
from kvmctl.model.wording import argument

INTENT = "freeze"
"""The journal's word for file systems that are frozen; its key is the guest's UUID."""
_ANSWER = 10.0
"""Seconds that a run which thaws what is left may hold the lock: the agent has five to answer."""


@contextmanager
def noted(hypervisor: Hypervisor, domain: Any) -> Iterator[None]:
    """Where we are killed within the block, the next run thaws the guest. Raises KvmctlError, LockedError."""
    journal, uuid = Journal(), domain.UUIDString()
    with lock(_lock_of(uuid), _ANSWER):
        journal.begin(INTENT, uuid, {"guest": domain.name(), "uri": hypervisor.uri})
        try:
            yield
        finally:
            journal.done(INTENT, uuid)


@contextmanager
def frozen(hypervisor: Hypervisor, domain: Any) -> Iterator[None]:
    """The guest's file systems are frozen for the block. Raises KvmctlError where they cannot be."""
    with noted(hypervisor, domain):
        try:
            backups.freeze(domain)
            yield
        finally:
            # Also where freezing failed: an agent that answers too late has frozen them all the same.
            with suppress(KvmctlError):
                backups.thaw(domain)


def thaw_left(hypervisor: Hypervisor) -> list[str]:
    """Thaw the guests that killed runs have left frozen: a sentence for each. One that is frozen just now by a run
    that lives is left to it."""
    told = []
    for intent in Journal().unfinished(INTENT):
        if intent.data.get("uri") == hypervisor.uri:
            with suppress(LockedError), lock(_lock_of(intent.key)):
                told.append(_thaw(hypervisor, intent))
    return [text for text in told if text]


def _lock_of(uuid: str) -> str:
    return f"freeze-{uuid}"


def _thaw(hypervisor: Hypervisor, intent: Intent) -> str:
    guest, said = str(intent.data.get("guest")), ""
    domain = domains.by_uuid(hypervisor, intent.key)
    if domain is not None and domains.state(domain) not in ("stopped", "crashed"):
        try:
            backups.thaw(domain)
        except KvmctlError as error:
            return (
                f"a run that was killed may have left the file systems of guest {guest} frozen: {error.message}; "
                f"every kvmctl tries again, and virsh domfsthaw {argument(guest)} does"
            )
        said = f"the file systems of guest {guest} are thawed: a run that was killed had them frozen"
    Journal().done(INTENT, intent.key)
    return said
