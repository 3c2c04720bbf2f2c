"""Keeping emulator and I/O threads from eating a vCPU's part, and the record of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmctl.control.foreign import change
from kvmctl.host import cgroup, threads
from kvmctl.host.files import stamp
from kvmctl.host.journal import Entry, Journal
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError
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
    """Make these changes and read them back, recorded in one write before; one Outcome each.

    A group that is gone meanwhile does not keep the others from theirs.
    """
    live = {str(one.directory): (one.change.old, one.change.new) for one in due if one.change.how == "live"}
    if live:
        journal.record_all(KIND, live)
    done = tuple(_make(one) for one in due)
    # Else the old weight would look like somebody else's change.
    refused = {
        str(one.directory): (one.change.old, one.change.old)
        for one, outcome in zip(due, done, strict=True)
        if outcome.result == "not applied" and str(one.directory) in live and one.directory.is_dir()
    }
    if refused:
        journal.record_all(KIND, refused)
    return done


def _make(due: ThreadChange) -> Outcome:
    change = due.change
    if change.how == "refused":
        return Outcome(change, "not applied", change.reason, change.old)
    assert isinstance(change.new, int)
    try:
        found = cgroup.set_weight(due.directory, due.version, change.new)
    except KvmctlError as error:
        gone = not due.directory.is_dir()
        return Outcome(change, "not applied", "it is being stopped" if gone else error.message, change.old)
    if found != change.new:
        return Outcome(change, "not applied", f"the kernel has {found} after {change.new} was set", found)
    return Outcome(change, "changed", change.reason, found)


def forget_ended(journal: Journal) -> None:
    """Drop from the journal what was changed of guests that have ended: nothing of it is left to undo."""
    if ended := [key for key in journal.entries(KIND) if stamp(key) is None]:
        journal.forget(KIND, *ended)
