"""Starting a guest, with less memory for a beginning where the host has little."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from kvmctl.control import remember
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.weights import BALLOON, run_key
from kvmctl.host import memory
from kvmctl.host.journal import Journal, boot_id
from kvmctl.hypervisor import domains, live
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError
from kvmctl.policy.balloon import first_target
from kvmctl.policy.memory import reserve_of
from kvmctl.policy.reclaim import state
from kvmctl.xml import metadata, reclaimable, tree

LAST_TICK = 120
"""Seconds since the last tick after which none is to be expected: cron has one come every minute."""


def begin(domain: Any, paused: bool = False) -> None:
    """Start a guest that is off. Where it could make the host short of memory, its balloon is told at once to leave it
    half: a guest touches nearly all of its memory while it boots. The tick gives it more as soon as it needs more, so
    that is not done where no tick has come of late.

    Raises KvmctlError.
    """
    target = _first_target(domain)
    domains.start(domain, paused)
    if target is not None:
        # It runs: that it has more than it was to have harms the host only a little.
        with suppress(KvmctlError):
            hypervisor = Hypervisor(domain.connect())
            key = run_key(hypervisor, domain.name(), domain.ID())
            Journal().record(BALLOON, key, live.balloon(domain), None)
            live.set_balloon(domain, target)


def _first_target(domain: Any) -> int | None:
    """Bytes that the guest is to begin with; None is all."""
    hypervisor = Hypervisor(domain.connect())
    if not hypervisor.local or not _is_ticking(hypervisor) or domains.has_saved_state(domain):
        return None  # one that was saved does not boot: it goes on with all that it uses
    policy = host_policy().memory
    root = tree.read(domains.definition(domain))
    size = reclaimable.memory_size(root)
    promise = metadata.promise_in(root)
    left_alone = policy.balloon == "leave" or not promise.rebalance or reclaimable.memory_fixed(root)
    if left_alone or size is None or not reclaimable.stats_period(root):
        return None
    now = memory.read()
    if state(now.available - size, reserve_of(policy, now.total)) == "high":
        return None
    return first_target(size, promise.memory_reservation)


def _is_ticking(hypervisor: Hypervisor) -> bool:
    last, _note = remember.recall(hypervisor.uri)
    return last is not None and last.boot == boot_id() and time.monotonic_ns() - last.taken < LAST_TICK * 10**9
