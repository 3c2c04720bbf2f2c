"""What a guest runs with now, as a spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvmctl.hypervisor import domains, live
from kvmctl.model.cpuset import format_cpuset
from kvmctl.model.spec import GuestSpec, IoSpec
from kvmctl.xml.parse import parse
from kvmctl.xml.resources import fixed_vcpus


def running_spec(domain: Any, stored: GuestSpec) -> GuestSpec:
    """What a guest runs with now. Its XML does not say what it was pinned to since it was started.

    Its pinning is the `stored` one where each vCPU is where its definition has it, which may be to each its own;
    likewise the emulator's, which without a pinning of its own is where the vCPUs' is.
    """
    parsed = parse(domains.live_definition(domain))
    spec = parsed.spec
    pin = stored.cpu.pin
    if not live.is_pinned_as_defined(domain):
        cpus = live.pin(domain)
        pin = "mixed" if cpus is None else format_cpuset(cpus)
    emulator_pin = stored.cpu.emulator_pin
    if not live.is_emulator_pinned_as_defined(domain):
        emulator_pin = format_cpuset(live.emulator_pin(domain) or ())
    if spec.io.weight == live.DEFAULT_IO_WEIGHT and not stored.io.weight:
        spec = replace(spec, io=IoSpec(0))  # what was set once cannot be unset in a guest that runs
    fixed = fixed_vcpus(parsed.root, spec.cpu.count or 1)
    return replace(spec, cpu=replace(spec.cpu, pin=pin, emulator_pin=emulator_pin, fixed=fixed))
