"""Devices of a running guest: given, taken away, changed, and what they have after that. Each call does one thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import libvirt

from kvmctl.hypervisor.errors import doing

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


def attach(domain: Any, xml: str) -> None:
    """Plug a device into the running guest. Its driver there may need a moment more."""
    with doing(f"plug a device into guest {domain.name()}"):
        domain.attachDeviceFlags(xml, _LIVE)


def detach(domain: Any, xml: str) -> None:
    """Ask the running guest to let go of a device; it may take its time, or not do it."""
    with doing(f"take a device from guest {domain.name()}"):
        domain.detachDeviceFlags(xml, _LIVE)


def update(domain: Any, xml: str, force: bool) -> None:
    """Change a device of the running guest; `force` takes a medium from a drive that the guest has locked."""
    with doing(f"change the medium of guest {domain.name()}"):
        domain.updateDeviceFlags(xml, _LIVE | (libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE if force else 0))


def set_disk_ceilings(domain: Any, target: str, parameters: Mapping[str, int]) -> None:
    """Limit a disk of the running guest; 0 is no ceiling."""
    with doing(f"limit disk {target} of guest {domain.name()}"):
        domain.setBlockIoTune(target, dict(parameters), _LIVE)


def disk_ceilings(domain: Any, target: str) -> dict[str, int]:
    """What QEMU limits a disk of the running guest to."""
    with doing(f"read the limits of disk {target} of guest {domain.name()}"):
        found: dict[str, Any] = domain.blockIoTune(target, _LIVE)
        return {name: int(value) for name, value in found.items() if isinstance(value, int)}


def set_nic_ceilings(domain: Any, mac: str, parameters: Mapping[str, int]) -> None:
    """Limit a nic of the running guest; 0 is no ceiling."""
    with doing(f"limit nic {mac} of guest {domain.name()}"):
        domain.setInterfaceParameters(mac, dict(parameters), _LIVE)


def nic_ceilings(domain: Any, mac: str) -> dict[str, int]:
    """What libvirt says that a nic of the running guest is limited to."""
    with doing(f"read the limits of nic {mac} of guest {domain.name()}"):
        found: dict[str, Any] = domain.interfaceParameters(mac, _LIVE)
        return {name: int(value) for name, value in found.items()}
