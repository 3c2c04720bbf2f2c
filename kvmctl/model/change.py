"""What is to be done, and what became of it."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["create", "set", "add", "remove", "start", "delete"]
How = Literal["live", "restart", "refused"]
Result = Literal["changed", "unchanged", "pending restart", "not applied"]


@dataclass(frozen=True, slots=True)
class Change:
    """One intended change. `old` and `new` are as the guest file writes them; None is absent.

    `how`: `live` is done now (on a guest that is off, that means in its definition), `restart` is
    stored for the next start, `refused` cannot be done for the stated `reason`.
    """

    guest: str
    field: str
    old: object
    new: object
    action: Action = "set"
    how: How = "live"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Change after reading it back; `found` is the value that was read."""

    change: Change
    result: Result
    reason: str = ""
    found: object = None
