"""How short of memory a host is, and what that calls for: sharing first, then balloons, then swapping."""

from __future__ import annotations

from typing import Literal

from kvmctl.model.units import MIB
from kvmctl.policy.memory import host_reserve

State = Literal["high", "clear", "soft", "hard", "low"]
"""ESXi's words. From `clear` on memory is shared, from `soft` on balloons are filled, from `hard` on it is swapped with
haste, and at `low` nothing more is started."""

THRESHOLDS: tuple[tuple[State, float], ...] = (("high", 4.0), ("clear", 1.0), ("soft", 0.64), ("hard", 0.32))
"""Available memory, as a multiple of what the host keeps, from which it is in each state; `low` is below all. ESXi's
Mem.MinFree thresholds (VMware, vSphere Resource Management)."""
LEAST_PART = dict(THRESHOLDS)["hard"]
"""The part of what the host keeps below which it is in the state `low`."""
_ORDER: tuple[State, ...] = (*(name for name, _part in THRESHOLDS), "low")
HYSTERESIS = 1.1
"""A state is left for a better one where the threshold is exceeded by so much: else it would flap at each."""
LEAST_SCORE, NORMAL_SCORE, MOST_SCORE, NORMAL_SHARES = 100, 500, 900, 10
GOAL = 1.25
"""The multiple of what the host keeps that is to be available after memory was taken."""
ROOM = 2.0
"""The multiple that has to be left where memory is given back to guests that do not need it."""


def guests_memory(total: int, reserve: int | None = None, limit: int | None = None, parent: int | None = None) -> int:
    """Bytes that guests may have of a host's `total`: less the host's reserve (`policy.memory.host_reserve` where None
    is given), no more than the policy's `limit` and the limit of the guests' common control group `parent`."""
    kept = host_reserve(total) if reserve is None else reserve
    bounds = [bound for bound in (limit, parent) if bound is not None]
    return max(0, min([total - kept, *bounds]))


def state(available: int, reserve: int, before: State | None = None) -> State:
    """The state of a host with so many bytes available, of which it wants to keep `reserve`.

    A worse state than the one before is entered at once, a better one only where its threshold is exceeded by
    `HYSTERESIS`.
    """
    plain = _of(available, reserve, 1.0)
    if before is None or _ORDER.index(plain) >= _ORDER.index(before):
        return plain
    careful = _of(available, reserve, HYSTERESIS)
    return min(careful, before, key=_ORDER.index)


def with_room(found: State, available: int, asked: int, reserve: int) -> State:
    """The state to act by in a host that is in the state `found` and on which guests that are about to start will take
    `asked` bytes: as short as it will be then, but in no haste before it is."""
    if not asked:
        return found
    ahead = min(_of(available - asked, reserve, 1.0), "hard", key=_ORDER.index)
    return max(found, ahead, key=_ORDER.index)


def state_named(name: str | None) -> State | None:
    """The state of that name; None where it is none."""
    return next((known for known in _ORDER if known == name), None)


def _of(available: int, reserve: int, factor: float) -> State:
    for name, part in THRESHOLDS:
        if available >= part * factor * reserve:
            return name
    return "low"


def least_available(reserve: int) -> int:
    """Bytes below which a host is in the state `low`."""
    return round(LEAST_PART * reserve)


def deficit(available: int, reserve: int) -> int:
    """Bytes that are to be taken from guests in a host that is short of memory, so that `GOAL` is met."""
    return max(0, round(GOAL * reserve) - available)


def surplus(available: int, reserve: int) -> int:
    """Bytes that may be given back to guests."""
    return max(0, available - round(ROOM * reserve))


def oom_score(shares: int, size: int) -> int:
    """What the kernel is to add to the badness of a guest's process (`oom_score_adj`): the more, the fewer shares it
    has for each MiB. 500 with the ten shares a MiB that `normal` is; above 0, so that guests go before the host's own.
    """
    each = shares / max(1.0, size / MIB)
    return max(LEAST_SCORE, min(MOST_SCORE, round(NORMAL_SCORE * NORMAL_SHARES / max(each, 1e-9))))


def next_step(found: State) -> str:
    """What the tick does about it, for the user."""
    return {
        "high": "gives guests all they are to have",
        "clear": "merges equal pages",
        "soft": "fills balloons of the guests with the lowest claim, then swaps what they do not use",
        "hard": "fills balloons, and swaps with haste",
        "low": "fills balloons, swaps with haste, and refuses to start guests",
    }[found]
