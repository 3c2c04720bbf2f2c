"""Waiting for what a guest does, told by libvirt's own event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing


def wait_for_reboot(hypervisor: Hypervisor, domain: Any, ask: Callable[[], None], timeout: float) -> bool:
    """Call `ask`, then wait until the guest has reset itself; False after `timeout` seconds."""
    seen = threading.Event()
    with doing(f"watch guest {domain.name()}"):
        callback = hypervisor.connection.domainEventRegisterAny(
            domain, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_event: seen.set(), None
        )
    try:
        ask()
        return seen.wait(timeout)
    finally:
        with doing(f"stop watching guest {domain.name()}"):
            hypervisor.connection.domainEventDeregisterAny(callback)
