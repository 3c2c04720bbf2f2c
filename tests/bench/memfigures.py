"""What the guests of the memory bench say of themselves, as figures, and the tables of those."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.bench.memguest import Report

WELL = 0.95
"""The part of its solo rate that a guest keeps where it is well."""
LINE_LATE = 1.6
"""Seconds that a guest's next line may take until its silence counts as work not done."""

Lines = Sequence[tuple[float, Report]]
"""A guest's lines, each with the second of this machine's clock at which it came."""


def rate(lines: Lines, begin: float, end: float) -> float:
    """Touches a second between two moments of this machine's clock; 0 where too little was said to know."""
    inside = [line for line in lines if begin <= line[0] <= end and line[1].ready]
    if len(inside) < 2:
        return 0.0
    (_, first), (at, last) = inside[0], inside[-1]
    silent = max(0.0, end - at - LINE_LATE)
    return (last.ops - first.ops) / (last.seconds - first.seconds + silent)


def rates(lines: Lines) -> list[tuple[float, float, float]]:
    """Of each line after the first: when it came, the seconds that it is about, and the touches a second in them."""
    working = [line for line in lines if line[1].ready]
    found = []
    for (_, before), (at, after) in itertools.pairwise(working):
        seconds = after.seconds - before.seconds
        if seconds > 0:
            found.append((at, seconds, (after.ops - before.ops) / seconds))
    return found


def longest_below(lines: Lines, least: float, begin: float, end: float) -> float:
    """The longest that a guest was below `least` touches a second on end, in seconds; its silence counts."""
    longest = run = 0.0
    last = begin
    for at, seconds, found in rates(lines):
        if begin <= at <= end:
            run = run + seconds if found < least else 0.0
            longest, last = max(longest, run), at
    silent = end - last
    return max(longest, run + silent) if silent > LINE_LATE else longest


def well_again(lines: Lines, least: float, on_end: int = 3) -> float | None:
    """Seconds from the last line about the first size of the hot part until a guest reaches `least` touches a second
    for so many lines on end. 0: it never was below; None: it is not so far yet, or its hot part has not changed."""
    working = [line for line in lines if line[1].ready]
    before = [line for line in working if line[1].hot == working[0][1].hot]
    after = working[len(before) :]
    found = [(report.seconds, touches) for (_at, report), (_, _s, touches) in
             zip(after, rates([*before[-1:], *after]), strict=True)]  # fmt: skip
    bad = [number for number, (_seconds, touches) in enumerate(found) if touches < least]
    if len(found) < on_end:
        return None
    if not bad:
        return 0.0
    starts = [before[-1][1].seconds, *(seconds for seconds, _touches in found)]
    for number in range(bad[0], len(found) - on_end + 1):
        if all(touches >= least for _seconds, touches in found[number : number + on_end]):
            return starts[number] - starts[0]
    return None


def worst(lines: Lines, begin: float, end: float) -> list[float]:
    """Milliseconds that touches were late at most, of each second."""
    return [report.worst_ms for at, report in lines if begin <= at <= end and report.ready]


def percentile(values: Iterable[float], part: float) -> float | None:
    """The least value that `part` of all do not exceed; None where there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


@dataclass(frozen=True, slots=True)
class Step:
    """So many guests at once, once they had settled or their time was over. Memory is bytes, CPU cores."""

    guests: int
    least: float
    """The part of the solo rate that the worst guest kept."""
    p99_ms: float | None
    """Of each guest's worst second-by-second lateness in the window."""
    usage: int
    free: int
    shared: int
    swapped: int
    zram: int
    balloons: int
    """What all guests' balloons leave them."""
    ksmd: float
    controller: float | None
    seconds: float
    """Since the newest guest was started."""
    dead: tuple[str, ...] = ()
    refused: str = ""

    @property
    def good(self) -> bool:
        """Whether all guests live and are well."""
        return not self.dead and not self.refused and self.least >= WELL


def most(steps: Sequence[Step]) -> Step | None:
    """The last step before the first that was not good."""
    good = None
    for step in steps:
        if not step.good:
            break
        good = step
    return good


def why(steps: Sequence[Step]) -> str:
    """What ended the row of steps."""
    bad = next((step for step in steps if not step.good), None)
    if bad is None:
        return "not reached"
    if bad.refused:
        return f"{bad.guests}: {bad.refused.partition(' promised: ')[2][:60] or bad.refused[:60]}"
    if bad.dead:
        return f"{bad.guests}: {len(bad.dead)} killed"
    return f"{bad.guests}: worst at {percent(bad.least)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns as wide as they need."""
    widths = [max(len(row[number]) for row in (head, *rows)) for number in range(len(head))]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
             for row in (head, *rows)]  # fmt: skip
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def percent(part: float | None) -> str:
    """A part of 1 in per cent."""
    return "-" if part is None else f"{100 * part:.1f} %"


def mib(size: int | None) -> str:
    """Bytes in MiB."""
    return "-" if size is None else f"{size / (1 << 20):.0f}"


def number(value: float | None, digits: int = 1) -> str:
    """A figure; `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


DENSITY_HEAD = (
    "mix", "swap", "policy", "guests", "of none", "p99 ms", "MiB/guest", "shared", "balloons", "swapped", "ksmd",
    "controller", "ended by",
)  # fmt: skip


def density_row(key: tuple[str, str, str], steps: Sequence[Step], none: int | None) -> tuple[str, ...]:
    """One policy's line; `none` is how many guests there were without any."""
    best = most(steps)
    count = best.guests if best else 0
    ratio = f"{count / none:.2f}" if none else "-"
    if best is None:
        return (*key, "0", ratio, *["-"] * 7, why(steps))
    return (
        *key,
        str(count),
        ratio,
        number(best.p99_ms, 0),
        mib((best.usage + best.zram) // count),
        mib(best.shared),
        mib(best.balloons),
        mib(best.swapped),
        percent(best.ksmd),
        percent(best.controller),
        why(steps),
    )
