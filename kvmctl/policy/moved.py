"""What became of a move that may have been cut off: told from what both hosts have of the guest now."""

from dataclasses import dataclass
from typing import Literal

from kvmctl.model.migration import Presence

Place = Literal["moved", "stayed", "gone", "unclear"]
"""`gone` is on neither host any more."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Where the guest is. `text` explains what is unclear; the flags say what is still to be done about it."""

    place: Place
    text: str = ""
    define_at_target: bool = False
    """It runs there, without a definition that outlives it."""
    undefine_source: bool = False
    undefine_target: bool = False


UNKNOWN = "unknown"
"""What a host has that does not answer."""
Seen = Presence | str | None
"""What a host has of a guest: None is nothing."""


def settle(source: Seen, target: Seen, offline: bool) -> Settlement:
    """A guest that is on in one place, and is not on its way there, is there; nothing else is certain."""
    unclear = Settlement("unclear", f"{_words('source', source)}; {_words('target', target)}")
    if isinstance(source, Presence) and _is_on(source) and source.state == "running":
        # It goes on at the source only where the move has failed, or has not ended.
        leftover = isinstance(target, Presence) and target.defined and not target.active
        on_both = isinstance(target, Presence) and _is_on(target)
        return unclear if on_both else Settlement("stayed", undefine_target=leftover)
    if source is None and target is None:
        return Settlement("gone", unclear.text)
    if isinstance(source, str) or isinstance(target, str):
        return unclear
    if target is not None and _is_on(target):
        left = source is not None and source.defined
        on_both = source is not None and source.active
        return unclear if on_both else Settlement("moved", "", not target.defined, left)
    return _off(source, target, offline)


def _off(source: Presence | None, target: Presence | None, offline: bool) -> Settlement:
    """Where a guest is that runs at neither, of which one has something."""
    if source is None:
        return Settlement("moved")
    if offline and target is not None and target.defined and not source.active:
        return Settlement("moved", undefine_source=True)
    return Settlement("stayed", undefine_target=target is not None and target.defined and not target.active)


def _is_on(presence: Presence) -> bool:
    return presence.active and not presence.moving_in


def _words(side: str, presence: Seen) -> str:
    if isinstance(presence, str):
        return f"the {side} does not answer"
    if presence is None:
        return f"the {side} has nothing of it"
    if presence.moving_in:
        return f"at the {side} it is on its way"
    return f"at the {side} it is {presence.state}" + ("" if presence.defined else ", and not defined")
