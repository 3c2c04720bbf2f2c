"""Keeping emulator and I/O threads from eating a vCPU's part, and the record of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmctl.control import grouped
from kvmctl.control.foreign import change
from kvmctl.host import cgroup, threads
from kvmctl.host.journal import Entry, Journal
from kvmctl.model.change import Change, Outcome
from kvmctl.policy.threads import thread_weights

KIND = "thread-weight"
"""The kind of these entries in the journal. A key is the group's directory, which each start of a guest makes anew."""
FIELD = "cpu.weight"
"""The field of these changes, with the group's name after a dot."""


@dataclass(frozen=True, slots=True)
class ThreadChange:
    """A change of the weight of one group of threads, whose directory this is."""

    change: Change
    directory: Path
    version: int


def plan(
    guests: Iterable[tuple[str, Path]], version: int, journal: Journal, respect: bool = False
) -> list[ThreadChange]:
    """What has to be changed for these guests, each with its own cgroup directory; nothing where nothing differs.

    With `respect`, a weight that somebody else has changed since kvmctl set it is a refused change.
    """
    known = journal.entries(KIND)
    return [due for guest, own in guests for due in _guest(guest, own, version, known, respect)]


def _guest(guest: str, own: Path, version: int, known: Mapping[str, Entry], respect: bool) -> Iterator[ThreadChange]:
    found = threads.read(own, version)
    vcpu = threads.weight(found.directory / found.vcpus[0], version) if found else None
    if found is None or vcpu is None:
        return
    wanted = thread_weights(version, vcpu, len(found.helpers))
    due = {name: (weight, wanted.helper) for name, weight in found.helpers.items()}
    if wanted.raised:
        due |= {name: (threads.weight(found.directory / name, version), wanted.vcpu) for name in found.vcpus}
    for name, (old, new) in due.items():
        if old not in (None, new):
            directory = found.directory / name
            entry = known.get(str(directory))
            yield ThreadChange(change(guest, f"{FIELD}.{name}", old, new, entry, respect), directory, version)


def make(due: Sequence[ThreadChange], journal: Journal) -> tuple[Outcome, ...]:
    """As `grouped.make`."""
    return grouped.make(KIND, due, lambda one, value: cgroup.set_weight(one.directory, one.version, value), journal)


def forget_ended(journal: Journal) -> None:
    """As `grouped.forget_ended`."""
    grouped.forget_ended(KIND, journal)
