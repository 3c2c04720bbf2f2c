"""How KSM is to work in one tick: fast as long as it finds what to merge, slowly afterwards, not at all where it costs
more than it saves. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvmctl.model.host_sample import HostSample, KsmSample, Snapshot
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.reclaim import KsmAim, ReclaimMemory
from kvmctl.model.units import MIB
from kvmctl.policy import ksm, reclaim

SCAN_SECONDS: Mapping[str, int] = {"high": 60, "clear": 20, "soft": 20, "hard": 10, "low": 10}
"""Seconds that one pass of KSM may take in each state as long as passes find more to merge, or guests have come."""
SLOW_SCAN, SHORT_SCAN = 200, 60
"""Seconds where the passes before found next to nothing: the kernel's own aim, and what a host that is short takes."""
GROWN, GROWN_LEAST = 1.02, 4 * MIB
"""By how much more has to be saved for a pass to have found something."""
SETTLED_SCANS = 2
"""Passes without a find after which the next ones are slow: what has changed since the last pass is merged at the
second look at the earliest."""
REST = 600.0
"""Seconds for which KSM rests where it has cost more than it saved."""
_COSTS = "it costs more than it saves here"


def decide(
    now: Snapshot, before: ReclaimMemory | None, memory: ReclaimMemory, policy: MemoryPolicy
) -> tuple[ReclaimMemory, KsmAim | None]:
    """`memory` with what is to be remembered of KSM besides, and how it is to work; None leaves it as it is."""
    host, state = now.host, memory.state or "high"
    memory = replace(memory, unprofitable_until=before.unprofitable_until if before else 0)
    if policy.sharing == "leave" or host is None or host.ksm is None or not _shares(now):
        return memory, None
    memory = _found_more(host.ksm, before, memory)
    # Its first passes only keep account of pages: what they save is seen later.
    settled = host.ksm.run == 1 and host.ksm.full_scans - memory.grown_scan >= SETTLED_SCANS
    costs = settled and ksm.profit(host.ksm) < 0
    if now.taken < memory.unprofitable_until or costs:
        until = now.taken + round(REST * 1e9) if costs else memory.unprofitable_until
        return replace(memory, unprofitable_until=until), KsmAim(False, SLOW_SCAN, policy.ksm_cores, _COSTS)
    if state == "high" and not _overcommitted(now, host, policy):
        # It was told to hurry, and nobody else would tell it that this is over.
        over = KsmAim(True, SLOW_SCAN, policy.ksm_cores, "the host has memory to spare")
        return memory, over if before and before.hurried and host.ksm.run == 1 else None
    why = f"the host is in the state {state}" if state != "high" else "guests may grow to more than there is"
    if settled:
        slow = SLOW_SCAN if state in ("high", "clear") else SHORT_SCAN
        return memory, KsmAim(True, slow, policy.ksm_cores, f"{why}, and what can be merged is merged")
    return replace(memory, hurried=True), KsmAim(True, SCAN_SECONDS[state], policy.ksm_cores, why, hurry=True)


def _shares(now: Snapshot) -> bool:
    return any(guest.promise and guest.promise.sharing for guest in now.guests if guest.state == "running")


def _overcommitted(now: Snapshot, host: HostSample, policy: MemoryPolicy) -> bool:
    room = reclaim.guests_memory(host.memory_total, policy.reserve, policy.limit, host.guests_limit)
    guests = (guest for guest in now.guests if guest.state == "running" and guest.promise is not None)
    return sum(guest.balloon.maximum or 0 for guest in guests) > room


def _found_more(found: KsmSample, before: ReclaimMemory | None, memory: ReclaimMemory) -> ReclaimMemory:
    """When KSM last had something to merge that it had not merged before."""
    saved = ksm.saved(found)
    known = {uuid: guest.run for uuid, guest in before.guests.items()} if before else {}
    new = any(known.get(uuid) != guest.run for uuid, guest in memory.guests.items())
    if before is None or new or found.run != 1 or found.full_scans < before.grown_scan:
        return replace(memory, saved=saved, grown_scan=found.full_scans)
    if saved > before.saved * GROWN + GROWN_LEAST:
        return replace(memory, saved=saved, grown_scan=found.full_scans)
    return replace(memory, saved=before.saved, grown_scan=before.grown_scan)
