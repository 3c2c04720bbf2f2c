"""What somebody else has changed of what kvmctl had set."""

from __future__ import annotations

from kvmctl.host.journal import Entry
from kvmctl.model.change import Change, How


def foreign(known: Entry | None, present: object) -> str:
    """The sentence where `present` is not what kvmctl wrote last; else nothing. None is what the kernel chooses."""
    if known is None or known.new in (None, present):
        return ""
    return f"kvmctl had set {known.new}, and somebody else {present}"


def change(guest: str, field: str, old: int, new: int, known: Entry | None, respect: bool, why: str = "") -> Change:
    """The change from `old` to `new`; refused where it would undo what somebody else did and that is respected."""
    said = foreign(known, old)
    how: How = "refused" if said and respect else "live"
    return Change(guest, field, old, new, how=how, reason="; ".join(filter(None, (said, "" if said else why))))
