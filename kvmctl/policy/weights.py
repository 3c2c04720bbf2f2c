"""Whole numbers for the kernel that are proportional to entitlements and keep every reservation."""

import math
from collections.abc import Mapping
from fractions import Fraction

LEAST_WEIGHT, MOST_WEIGHT = 2, 10_000
"""What cgroup v1 (2..262144) and v2 (1..10000) both take, so that a guest may move between their hosts."""

TOLERANCE = Fraction(1, 100)
"""By which part whole numbers may miss the exact proportions before they count as missing them."""


def weights(exact: Mapping[str, Fraction], kept: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole numbers in the kernel's range that are proportional to `exact`, except where that would not keep a
    reservation.

    `kept` is the part of all CPU that each guest's reservation is: neither proportions nor rounding take anything
    from it as long as the reservations together leave anything over. The weights are `exact` rounded where that is
    precise enough, else as fine as the range allows; an `exact` too small even for that becomes the least weight.
    """
    exact = _lifted(exact, kept)
    plain = _rounded(exact, kept)
    if plain is not None and _is_close(plain, exact):
        return plain
    # The tolerance is room for what has to be rounded up.
    scale = MOST_WEIGHT * (1 - TOLERANCE) / (max(exact.values(), default=0) or 1)
    scaled = {name: value * scale for name, value in exact.items()}
    finest = _rounded(scaled, kept)
    return finest if finest is not None and max(finest.values()) <= MOST_WEIGHT else _nearest(scaled)


def _lifted(exact: Mapping[str, Fraction], kept: Mapping[str, Fraction]) -> Mapping[str, Fraction]:
    """`exact`, raised where a reservation would get less than its part of the sum.

    With R the reserved part of the guests to be raised and S the sum of all others, the sum becomes S/(1 - R).
    """
    raised: set[str] = set()
    total = sum(exact.values(), Fraction(0))
    while short := {name for name, part in kept.items() if name not in raised and exact[name] < part * total}:
        raised |= short
        left = 1 - sum(kept[name] for name in raised)
        if left <= 0:
            break
        total = sum((value for name, value in exact.items() if name not in raised), Fraction(0)) / left
    else:
        return {name: kept[name] * total if name in raised else value for name, value in exact.items()}
    return exact


def _is_close(found: Mapping[str, int], exact: Mapping[str, Fraction]) -> bool:
    return all(
        weight <= MOST_WEIGHT and abs(weight - exact[name]) <= exact[name] * TOLERANCE for name, weight in found.items()
    )


def _nearest(exact: Mapping[str, Fraction]) -> dict[str, int]:
    return {name: max(LEAST_WEIGHT, round(value)) for name, value in exact.items()}


def _rounded(exact: Mapping[str, Fraction], kept: Mapping[str, Fraction]) -> dict[str, int] | None:
    """The nearest whole numbers, raised where a reservation would suffer; None where nothing is left to take from.

    With R the reserved part of the guests to be raised, m their number and S the sum of all others' weights, a
    total of T = (S + m)/(1 - R) has room for each of them to round its part of T up, since S + R·T + m = T.
    """
    found = _nearest(exact)
    raised: set[str] = set()
    while short := _short(found, kept):
        raised |= short
        left = 1 - sum(kept[name] for name in raised)
        if left <= 0:
            return None
        room = (sum(weight for name, weight in found.items() if name not in raised) + len(raised)) / left
        found.update({name: math.ceil(kept[name] * room) for name in raised})
    return found


def _short(found: Mapping[str, int], kept: Mapping[str, Fraction]) -> set[str]:
    total = sum(found.values())
    return {name for name, part in kept.items() if found[name] < part * total}


def notes(found: Mapping[str, int], aimed: Mapping[str, float], kept: Mapping[str, Fraction]) -> dict[str, str]:
    """What to say of the weights that cannot express the cores that their guests are to get by them."""
    said: dict[str, str] = {}
    divided, total = sum(aimed.values()), sum(found.values())
    for name, weight in found.items():
        part = Fraction(weight, total)
        if part < kept[name] * (1 - TOLERANCE):
            said[name] = f"weights up to {MOST_WEIGHT} keep {float(part / kept[name]):.0%} of its reservation"
        elif weight == LEAST_WEIGHT and part * divided > aimed[name] * (1 + TOLERANCE):
            said[name] = f"the least weight, {weight}, gives it {part * divided:.3g} instead of {aimed[name]:.3g} cores"
    return said
