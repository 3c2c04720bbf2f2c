"""What `accelerator: auto` means on this hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvmctl.host.accelerator import remembered, resolve
from kvmctl.hypervisor.capabilities import capabilities
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.spec import GuestSpec


def chooser(hypervisor: Hypervisor, warn: Callable[[str], None]) -> Callable[[GuestSpec], str]:
    """Answers for a guest: `kvm` where Linux has booted under it, else `tcg`; on another machine, what its
    libvirt offers. That guests will be emulated is said once."""
    known: list[str] = []

    def choose(spec: GuestSpec) -> str:
        if not known:
            known.append(_accelerator(hypervisor, spec, warn))
        return known[0]

    return choose


def _accelerator(hypervisor: Hypervisor, spec: GuestSpec, warn: Callable[[str], None]) -> str:
    if not hypervisor.local:
        return "kvm" if "domain type='kvm'" in capabilities(hypervisor) else "tcg"
    if remembered() is None:
        warn("finding out whether Linux boots under KVM here, once; this can take a minute")
    verdict = resolve(Path(spec.boot.kernel) if spec.boot.kernel else None)
    if verdict.name == "tcg":
        warn(f"guests will be emulated (TCG), about ten times slower than with KVM: {verdict.reason}")
    return verdict.name
