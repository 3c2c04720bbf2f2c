"""Keeping the kernel from paging out what guests have reserved, and the record of it (cgroup v2 only)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmctl.control import grouped
from kvmctl.control.foreign import change
from kvmctl.host import protection
from kvmctl.host.cgroup import Mount
from kvmctl.host.journal import Entry, Journal
from kvmctl.model.change import Change, Outcome
from kvmctl.model.sample import GuestSample
from kvmctl.policy.protect import above, is_due, protected

KIND = "memory-low"
"""The kind of these entries in the journal. A key is the group's directory, which each start of a guest makes anew."""
FIELD = "memory.protected"


@dataclass(frozen=True, slots=True)
class ProtectChange:
    """A change of the protection of one group, whose directory this is."""

    change: Change
    directory: Path


def plan(
    guests: Iterable[tuple[GuestSample, Path]], mount: Mount, journal: Journal, respect: bool = False
) -> list[ProtectChange]:
    """What has to be changed for these guests, each with its own cgroup directory, and for the groups above them;
    nothing where nothing differs, or the kernel cannot.

    With `respect`, what somebody else has changed since kvmctl set it is a refused change.
    """
    if mount.version != 2:
        return []
    known = journal.entries(KIND)
    wanted = {own: (guest.name, _due(guest)) for guest, own in guests}
    inside = {str(own.relative_to(mount.point)): due for own, (_name, due) in wanted.items()}
    groups = {mount.point / path: (Path(path).name, due) for path, due in above(inside).items()}
    # From the top down: until then what is below is protected less, not more.
    return [
        ProtectChange(found, directory)
        for directory, (name, due) in (groups | wanted).items()
        if (found := _change(name, directory, due, known.get(str(directory)), respect))
    ]


def _due(guest: GuestSample) -> int:
    if guest.promise is None or guest.memory_fixed:
        return 0
    return protected(guest.promise.memory_reservation, guest.process.overhead if guest.process else None)


def _change(name: str, directory: Path, due: int, known: Entry | None, respect: bool) -> Change | None:
    present = protection.low(directory)
    if present is None or not is_due(present, due):
        return None
    if due < present and known is None:
        return None  # whoever protects it for more has reasons of his own
    return change(name, FIELD, present, due, known, respect, "the kernel leaves alone what is reserved")


def make(due: Sequence[ProtectChange], journal: Journal) -> tuple[Outcome, ...]:
    """As `grouped.make`."""
    return grouped.make(KIND, due, lambda one, value: protection.set_low(one.directory, value), journal)


def forget_ended(journal: Journal) -> None:
    """As `grouped.forget_ended`."""
    grouped.forget_ended(KIND, journal)
