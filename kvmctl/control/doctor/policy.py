"""The doctor's check of this machine's policy file."""

from __future__ import annotations

from kvmctl.control import hostpolicy
from kvmctl.control.doctor.check import Check
from kvmctl.host import cpu
from kvmctl.model.errors import FileError, UsageError
from kvmctl.model.hostpolicy import capacity, cpu_reserve
from kvmctl.model.units import format_cores


def check() -> Check:
    """Whether the file can be used, and whether the host can do what it says."""
    try:
        found = hostpolicy.find()
    except FileError as error:
        first, *more = error.problems
        cause = f"{first}; and {len(more)} more" if more else str(first)
        return Check("policy", "fail", "the host's policy cannot be used", cause, "kvmctl host show lists every fault")
    except UsageError as error:
        return Check("policy", "fail", "the host's policy cannot be used", error.message, error.hint)
    cpus, stated = cpu.read().online, found.policy.cpu.reserve
    kept = cpu_reserve(found.policy, cpus)
    source = f"{found.path} is sound" if found.exists else f"there is no {found.path}, so defaults hold"
    left = format_cores(capacity(found.policy, cpus))
    parts = f"{source}: {format_cores(kept)} of {cpus} cores are kept for the host, {left} for guests"
    if stated is not None and stated > kept:
        cause = f"cpu.reserve is {format_cores(stated)} cores, and a host of {cpus} keeps no more than half of them"
        return Check("policy", "warn", parts, cause, f"make cpu.reserve {format_cores(kept)} or less in {found.path}")
    return Check("policy", "ok", parts)
