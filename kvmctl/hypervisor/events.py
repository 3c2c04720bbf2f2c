"""Waiting for what a guest does, on libvirt's own event loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing


def wait_for_reboot(hypervisor: Hypervisor, domain: Any, ask: Callable[[], None], timeout: float) -> bool:
    """Call `ask`, then wait until the guest has reset itself; False after `timeout` seconds.

    The hypervisor must have been opened with `events`.
    """
    seen: list[bool] = []
    tick = libvirt.virEventAddTimeout(250, lambda _timer, _opaque: None, None)
    with doing(f"watch guest {domain.name()}"):
        callback = hypervisor.connection.domainEventRegisterAny(
            domain, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_event: seen.append(True), None
        )
    try:
        ask()
        deadline = time.monotonic() + timeout
        while not seen and time.monotonic() < deadline:
            libvirt.virEventRunDefaultImpl()
    finally:
        libvirt.virEventRemoveTimeout(tick)
        hypervisor.connection.domainEventDeregisterAny(callback)
    return bool(seen)
