"""How much of a guest's memory the kernel is told to leave alone when it looks for something to page out.

`memory.low` of cgroup v2: what is below it is taken only where nothing else is left on the host (Documentation/
admin-guide/cgroup-v2.rst). A group is protected only as far as the groups above it are.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvmctl.model.units import MIB

STEP = 64 * MIB
"""QEMU's own memory grows and shrinks while a guest works; systemd is not to be told of each page."""


def protected(reservation: int, overhead: int | None) -> int:
    """Bytes of the control group of a guest that reserves so many: with what QEMU takes for itself, which is charged
    to the same group, in whole steps; one step where that is not known. Nothing reserved is nothing protected."""
    if not reservation:
        return 0
    return -(-(reservation + max(STEP, overhead or 0)) // STEP) * STEP


def is_due(present: int, wanted: int) -> bool:
    """Whether the protection is to be changed: it is too little, or more than a step too much."""
    return wanted > present or (wanted < present and (not wanted or present - wanted > STEP))


def above(wanted: Mapping[str, int]) -> dict[str, int]:
    """Bytes that each group above those of the guests has to be protected for: the sum of what is in it. Groups are
    paths below the root of the hierarchy, `machine.slice/guest.scope`."""
    found: dict[str, int] = {}
    for path, amount in wanted.items():
        names = path.split("/")[:-1]
        for number in range(1, len(names) + 1):
            group = "/".join(names[:number])
            found[group] = found.get(group, 0) + amount
    return found
