"""Correction of what the kernel's weights miss.

Weights divide one CPU exactly. Over several, the kernel moves threads to even out load, rarely and in whole threads,
so that a guest's part drifts by some per cent either way. What a guest is owed from the last window is made up for
in the next one, by a weight that is that much larger: an integral controller with a dead beat, since the error of
one window is what the next one corrects.
"""

from collections.abc import Mapping

LEAST_FACTOR, MOST_FACTOR = 0.4, 2.0
"""What a weight is multiplied by at least and at most. Where threads do not divide evenly over the CPUs, the kernel
leaves one alone on a CPU for seconds: three guests on two CPUs had 0.54 to 0.89 cores over five seconds, where 0.66
was due. With 0.9 and 1.5 that could not be paid back, and they were off by 10 % over twenty seconds, else by 2 %."""
REMEMBERED = 2.0
"""Seconds worth of its entitlement that a guest is owed at most, or the window's where that is longer."""
UNPAYABLE = 0.25
"""Seconds worth of its entitlement that a guest is owed though it is due all that it can use. Else a guest of one vCPU
that was due 0.99 cores and missed one core-second held the others down for a minute and was not helped by it: they
were off by 5 %."""
HORIZON = 0.5
"""Seconds in which a debt is to be paid at the earliest: threads have to be moved between CPUs for it."""
FINEST = 200
"""A weight of at least this can be corrected by half a per cent."""


def owed(
    before: Mapping[str, float],
    due: Mapping[str, float],
    used: Mapping[str, float],
    seconds: float,
    ceilings: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Core-seconds that each guest is owed after a window of `seconds` in which it was due `due` cores and used
    `used`: what it was owed before, and what is new.

    All are of the guests that wanted more than they got, among whom the debts add up to nothing: what is owed to
    all of them alike nobody can pay. None is owed more than `REMEMBERED` says, nor much more than it can have back
    in that time where its `ceilings`, in cores, let it have little more than what it is due.
    """
    found = {name: before.get(name, 0.0) + (due[name] - used[name]) * seconds for name in due}
    total = sum(due.values())
    common = sum(found.values()) / total if total else 0.0
    worth = {name: cores * max(seconds, REMEMBERED) for name, cores in due.items()}
    most = {
        name: min(worth[name], UNPAYABLE * cores + max(0.0, ceilings[name] - cores) * REMEMBERED)
        if ceilings
        else worth[name]
        for name, cores in due.items()
    }
    return {name: max(-worth[name], min(most[name], value - common * due[name])) for name, value in found.items()}


def factors(debts: Mapping[str, float], due: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What each weight is to be multiplied by, so that `debts` are paid within another `seconds`, or `HORIZON`."""
    payback = max(seconds, HORIZON)
    return {
        name: max(LEAST_FACTOR, min(MOST_FACTOR, 1 + debt / (due[name] * payback))) if due[name] * seconds else 1.0
        for name, debt in debts.items()
    }


def corrected(
    weights: Mapping[str, int], by: Mapping[str, float], least: int, most: int, *, scale: bool = True
) -> dict[str, int]:
    """Weights multiplied by their factors, each within `least` and `most`.

    With `scale` all are scaled up where the smallest is too small to be corrected finely, as far as the largest has
    room for, and down where the largest has none.
    """
    if all(factor == 1.0 for factor in by.values()) or not weights:
        return dict(weights)
    exact = {name: weight * by.get(name, 1.0) for name, weight in weights.items()}
    room = most / max(exact.values())
    times = min(room, max(1.0, FINEST / min(exact.values()))) if scale else 1.0
    return {name: max(least, min(most, round(value * times))) for name, value in exact.items()}
