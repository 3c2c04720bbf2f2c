"""What `accelerator: auto` means on this hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvmctl.host.accelerator import resolve
from kvmctl.hypervisor.capabilities import capabilities
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.spec import GuestSpec


def accelerator_for(hypervisor: Hypervisor, spec: GuestSpec, warn: Callable[[str], None]) -> str:
    """`kvm` where Linux has booted under it, else `tcg`; on another machine, what its libvirt offers."""
    if not hypervisor.local:
        return "kvm" if "domain type='kvm'" in capabilities(hypervisor) else "tcg"
    verdict = resolve(Path(spec.boot.kernel) if spec.boot.kernel else None)
    if verdict.name == "tcg":
        warn(f"guest {spec.name} will be emulated, about ten times slower than KVM: {verdict.reason}")
    return verdict.name
