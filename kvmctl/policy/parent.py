"""What the guests' common parent group has to weigh, so that they get their capacity whatever else the host does."""

from __future__ import annotations

from collections.abc import Iterable

from kvmctl.model.host_sample import Snapshot
from kvmctl.model.plan import Memory
from kvmctl.model.sample import ACTIVE

DEFAULT_WEIGHT = {1: 1024, 2: 100}
"""What a new cgroup weighs in each cgroup version, and what a task at nice 0 that shares its level weighs there."""
WEIGHT_RANGE = {1: (2, 262_144), 2: (1, 10_000)}
"""What the kernel takes."""

TOLERANCE = 0.05
"""By which part a weight may differ from the one it should be before it is set anew: what is measured moves a little
all the time, and 5 % of weight are no more than 1.25 % of a host, and 0.24 % where a twentieth of it is reserve."""

ALL_BUSY = 0.95
"""From which part of all CPUs in use on it may be told what weighs how much: who has what then follows the weights."""
MOST_MEASURED = 2
"""How many times what was assumed a measured weight may be. Interrupts and real-time tasks take CPU whatever anything
weighs: for them the guests' weight would otherwise rise without end, and starve the rest of the host."""


def competing_weight(version: int, groups: Iterable[int], alone: bool) -> int:
    """What may compete with the guests' parent at its level, in the units of that version; at least one new cgroup.

    `groups` are the weights of the sibling cgroups that have processes: all of them may be busy at the same time, so
    all count. Where there are tasks `alone`, in no cgroup of their own, each weighs as much as a new cgroup, on the
    one CPU where it is. (Each session does instead where the kernel groups by session, however many tasks it has.)
    How many of them will be busy is not known before they are: one is assumed, and what is measured is more. With one
    for every CPU the guests were surer of their capacity, and the host's own work, libvirtd's too, came to a stand.
    """
    return max(sum(groups) + (DEFAULT_WEIGHT[version] if alone else 0), DEFAULT_WEIGHT[version])


def cores_used(now: Snapshot, before: Memory | None, seconds: float) -> tuple[float, float] | None:
    """Cores that the guests and everything else used in the `seconds` between two looks; None where that is unknown,
    which it is too where a guest has been started between them."""
    busy, was = now.host.busy if now.host else None, before.busy if before else None
    if before is None or seconds <= 0 or busy is None or was is None:
        return None
    spent = 0
    for guest in now.guests:
        if guest.state in ACTIVE:
            old = before.guests.get(guest.uuid)
            if old is None or old.run != guest.run or guest.cpu_time is None or old.cpu_time is None:
                return None
            spent += guest.cpu_time - old.cpu_time
    return spent / 1e9 / seconds, max(0, busy - was - spent) / 1e9 / seconds


def measured_weight(weight: int, guests: float, others: float, cpus: int) -> float | None:
    """What competed with the guests' parent, of that `weight`, in a time in which `guests` and `others` used these
    numbers of cores. None where CPUs were idle: what they used was then what they wanted."""
    if guests <= 0 or guests + others < ALL_BUSY * cpus:
        return None
    return weight * others / guests


def assumed_weight(expected: int, measured: float | None) -> int:
    """What to assume that competes: what is `expected`, or more where more was measured."""
    return max(expected, min(round(measured or 0), MOST_MEASURED * expected))


def parent_weight(version: int, capacity: float, reserve: float, competing: int) -> int:
    """The weight with which the guests get `capacity` cores while everything with the weight `competing` wants CPU
    too, which then gets `reserve`; cores, together all of the host. The nearest that the kernel takes.

    Each CPU's run queue divides it in proportion to the weights that are on it, and a group's weight is spread over
    the CPUs as its runnable threads are. With n CPUs, all of them wanted, the parent's weight W and the others' Q lie
    on each as W/n and Q/n, so the guests get n·W/(W + Q) cores. That is `capacity` C where W = Q·C/R, C + R being n.
    Tried with busy processes on two CPUs, C = 1.9, R = 0.1, where a task of its own weighs 1024: two against
    W = 2·1024·19 got 0.098 cores (0.100 by this), one got 0.049, three 0.144 (0.146).

    So the reserve is R/n of every CPU: where fewer are busy than `competing` counts, the guests get the rest of it.
    Where the others weigh x times as much as was assumed, the guests are left n·C/(C + x·R): twice as much costs them
    2.0 % of their capacity on 64 CPUs with a reserve of 1.28 cores, and 4.8 % on two with 0.1. The guests' capacity
    comes first, for their reservations are promises made of it: `competing` is the most that is to be expected.
    """
    least, most = WEIGHT_RANGE[version]
    if reserve <= 0:
        return most
    return min(most, max(least, round(competing * capacity / reserve)))


def kept_cores(weight: int, competing: int, cpus: int) -> float:
    """Cores that guests get on `cpus` CPUs while all that competes with them wants CPU too."""
    return cpus * weight / (weight + competing)


def is_due(present: int | None, wanted: int, keep_more: bool) -> bool:
    """Whether the present weight is to be set anew; an unknown one is. With `keep_more` only where it is too little."""
    if present is None:
        return True
    return present < wanted * (1 - TOLERANCE) or (present > wanted * (1 + TOLERANCE) and not keep_more)
