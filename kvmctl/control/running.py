"""What a guest runs with now, as a spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvmctl.hypervisor import domains, live
from kvmctl.model.cpuset import format_cpuset
from kvmctl.model.spec import GuestSpec
from kvmctl.xml.parse import parse


def running_spec(domain: Any, stored: GuestSpec) -> GuestSpec:
    """What a guest runs with now. Its XML says nowhere what it was pinned to since it was started.

    Its pinning is the `stored` one where each vCPU is where its definition has it, which may be to each its own.
    """
    spec = parse(domains.live_definition(domain)).spec
    pin = stored.cpu.pin
    if not live.is_pinned_as_defined(domain):
        cpus = live.pin(domain)
        pin = "mixed" if cpus is None else format_cpuset(cpus)
    return replace(spec, cpu=replace(spec.cpu, pin=pin))
