"""What killed runs have left of guests that were being copied: put right by the next run, or told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kvmctl.control import freeze
from kvmctl.host.journal import Intent, Journal
from kvmctl.host.lock import lock
from kvmctl.host.staging import PREFIX, sweep
from kvmctl.hypervisor import backups, domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError, LockedError
from kvmctl.model.wording import argument
from kvmctl.xml.tree import read

EXPORT = "export"
"""The journal's word for a guest that is being copied into a file; its key is the guest's UUID."""
_OFF = ("stopped", "crashed")
_MOMENT = 2.0
"""Seconds that looking at what is left may hold an export's lock."""


@contextmanager
def exporting(hypervisor: Hypervisor, domain: Any, memory: bool, folders: list[Path]) -> Iterator[None]:
    """Copies of the guest are made in `folders` in the block. Where we are killed, the next run knows what to do.

    Raises LockedError while another run exports the guest.
    """
    journal, uuid = Journal(), domain.UUIDString()
    memory = memory and domains.state(domain) not in _OFF
    data = {"guest": domain.name(), "uri": hypervisor.uri, "memory": memory, "folders": list(map(str, folders))}
    with lock(_lock_of(uuid), _MOMENT):
        for intent in journal.unfinished(EXPORT):
            if intent.key == uuid and intent.data.get("uri") == hypervisor.uri:
                from kvmctl.control.guarded import guarded

                with guarded(hypervisor, lambda _text: None):
                    _settle(hypervisor, intent, resume=True)
        journal.begin(EXPORT, uuid, data)
        try:
            yield
        finally:
            if not (memory and _is_saved(domain)):
                journal.done(EXPORT, uuid)


def _is_saved(domain: Any) -> bool:
    try:
        return domains.state(domain) in _OFF and domains.has_saved_state(domain)
    except KvmctlError:
        return True  # libvirt does not answer: the next run asks again


def _lock_of(uuid: str) -> str:
    return f"export of guest {uuid}"


def told(hypervisor: Hypervisor) -> list[str]:
    """Put right what needs nobody's consent, such as file systems that are frozen: a sentence for that, and for what
    is left to do. Raises KvmctlError."""
    found = Journal().unfinished()
    said = freeze.thaw_left(hypervisor) if any(one.kind == freeze.INTENT for one in found) else []
    return said + _settled(hypervisor, [one for one in found if one.kind == EXPORT], resume=False)


def finish(hypervisor: Hypervisor, warn: Callable[[str], None]) -> list[str]:
    """Let guests that killed exports have left saved go on, where the host has room for them: a sentence for each."""
    from kvmctl.control.guarded import guarded  # not needed by every command, which this module is

    left = [one for one in Journal().unfinished(EXPORT) if one.data.get("uri") == hypervisor.uri]
    found = [one for one in left if one.data.get("memory")]
    if not found:
        return []
    with guarded(hypervisor, warn):
        return _settled(hypervisor, found, resume=True)


def _settled(hypervisor: Hypervisor, intents: list[Intent], resume: bool) -> list[str]:
    said = []
    for intent in intents:
        if intent.data.get("uri") == hypervisor.uri:
            with suppress(LockedError), lock(_lock_of(intent.key)):  # one that lives is left alone
                said.append(_settle(hypervisor, intent, resume))
    return [text for text in said if text]


def _settle(hypervisor: Hypervisor, intent: Intent, resume: bool) -> str:
    guest, said = str(intent.data.get("guest")), ""
    domain = domains.by_uuid(hypervisor, intent.key)
    if domain is not None:
        if domains.state(domain) not in _OFF:
            if intent.data.get("memory") and backups.progress(domain) is not None:
                return f"the memory of guest {guest} is being saved for an export that was killed"
            _end_copy(domain)
        elif intent.data.get("memory") and domains.has_saved_state(domain):
            if not resume:
                return (
                    f"guest {guest} is off, and saved with its memory: an export of it was killed; "
                    f"kvmctl start {argument(guest)} lets it go on, and so does the next kvmctl rebalance"
                )
            said = _go_on(hypervisor, domain)
    for folder in intent.data.get("folders", ()):
        sweep(Path(folder), "export")
    Journal().done(EXPORT, intent.key)
    return said


def _go_on(hypervisor: Hypervisor, domain: Any) -> str:
    """Raises RefusedError where the host cannot keep what it promises by now."""
    from kvmctl.control.admit import admit_start

    admit_start(hypervisor, [(domains.sample_one(domain), domain)], False, lambda _text: None)
    domains.start(domain)
    return f"guest {domain.name()} goes on from where it was saved: an export of it was killed"


def _end_copy(domain: Any) -> None:
    """End the copy of a running guest's disks, if it is one that goes into such a folder."""
    text = backups.job(domain)
    if text is None:
        return
    targets = [one.get("file", "") for one in read(text, "domainbackup").iterfind("disks/disk/target")]
    if any(f"/{PREFIX}export-" in path for path in targets):
        backups.abort(domain)
