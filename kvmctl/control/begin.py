"""Starting a guest, with less memory for a beginning where the host has little."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.room import beginning, is_ticking
from kvmctl.control.weights import BALLOON, run_key
from kvmctl.host import memory
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, live
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError
from kvmctl.policy.memory import reserve_of


def begin(domain: Any, paused: bool = False) -> None:
    """Start a guest that is off. Where it could make the host short of memory, its balloon is told at once to leave it
    half: a guest touches nearly all of its memory while it boots. The tick gives it more as soon as it needs more, so
    that is not done where no tick has come of late.

    Raises KvmctlError, also where the host cannot give the guest a device that its definition names.
    """
    target = _first_target(domain)
    definition = domains.definition(domain)
    if "hostdev" in definition:
        from kvmctl.control.passed import lending

        with lending(Hypervisor(domain.connect()), domain.name(), definition):
            domains.start(domain, paused)
    else:
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
    if not hypervisor.local or not is_ticking(hypervisor):
        return None
    policy, now = host_policy().memory, memory.read()
    return beginning(domain, policy).low(memory.left_for_guests(now), reserve_of(policy, now.total))
