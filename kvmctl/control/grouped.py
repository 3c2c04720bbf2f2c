"""Changes of values that control groups have: recorded before, made, and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from kvmctl.host.files import stamp
from kvmctl.host.journal import Journal
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError


class Grouped(Protocol):
    """A change of one group, whose directory this is."""

    @property
    def change(self) -> Change:
        """What is to be changed."""

    @property
    def directory(self) -> Path:
        """The key in the journal, too: each start of a guest makes its groups anew."""


AChange = TypeVar("AChange", bound=Grouped)


def make(
    kind: str, due: Sequence[AChange], write: Callable[[AChange, int], int], journal: Journal
) -> tuple[Outcome, ...]:
    """Make these changes and read them back, recorded in one write before; one Outcome each. `write` sets a value, and
    tells what the kernel has afterwards.

    A group that is gone meanwhile does not keep the others from theirs. Raises KvmctlError where the journal cannot be
    written.
    """
    live = {str(one.directory): (one.change.old, one.change.new) for one in due if one.change.how == "live"}
    if live:
        journal.record_all(kind, live)
    done = tuple(_make(one, write) for one in due)
    # Else the old value would look like somebody else's change.
    refused = {
        str(one.directory): (one.change.old, one.change.old)
        for one, outcome in zip(due, done, strict=True)
        if outcome.result == "not applied" and str(one.directory) in live and one.directory.is_dir()
    }
    if refused:
        journal.record_all(kind, refused)
    return done


def _make(due: AChange, write: Callable[[AChange, int], int]) -> Outcome:
    change = due.change
    if change.how == "refused":
        return Outcome(change, "not applied", change.reason, change.old)
    assert isinstance(change.new, int)
    try:
        found = write(due, change.new)
    except KvmctlError as error:
        gone = not due.directory.is_dir()
        return Outcome(change, "not applied", "it is being stopped" if gone else error.message, change.old)
    if found != change.new:
        return Outcome(change, "not applied", f"the kernel has {found} after {change.new} was set", found)
    return Outcome(change, "changed", change.reason, found)


def forget_ended(kind: str, journal: Journal) -> None:
    """Drop from the journal what was changed of guests that have ended: nothing of it is left to undo."""
    if ended := [key for key in journal.entries(kind) if stamp(key) is None]:
        journal.forget(kind, *ended)
