"""Sets of CPUs as libvirt and the kernel write them: `0-3,8,^2`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kvmctl.model.wording import quoted

MAX_ID = 4095
"""The highest CPU number that is accepted; Linux itself is built for at most 8192."""

_PART = re.compile(r"(\^?)([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class HostCpus:
    """The CPUs that a host has, by number, and those of them that are on-line."""

    present: frozenset[int]
    online: frozenset[int]


def parse_cpuset(text: str) -> frozenset[int]:
    """Read a list of CPU numbers and ranges; `^N` takes out of what stands before it. Raises ValueError."""
    ids: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip(" "))
        if not match:
            raise ValueError(f"{quoted(text)} is not a set of CPUs: write numbers and ranges, such as 0-3,8,^2")
        first, last = int(match[2]), int(match[3] or match[2])
        if last > MAX_ID:
            raise ValueError(f"{quoted(text)} names CPU {last}: the highest number possible is {MAX_ID}")
        if first > last:
            raise ValueError(f"{quoted(text)} has a range that runs backwards: {first}-{last}")
        chosen = set(range(first, last + 1))
        if not match[1]:
            ids |= chosen
        elif chosen <= ids:
            ids -= chosen
        else:
            raise ValueError(f"{quoted(text)} takes out {part.strip(' ')[1:]}, which is not in the set before it")
    if not ids:
        raise ValueError(f"{quoted(text)} is a set without any CPU")
    return frozenset(ids)


def format_cpuset(ids: Iterable[int]) -> str:
    """Write CPU numbers in the one canonical form: ascending, with ranges. No CPUs are the empty string."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(ids)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
