"""Reading back what was applied: success of a call is not success of the change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvmctl.control import devices
from kvmctl.control.plan import GuestPlan
from kvmctl.control.running import running_spec
from kvmctl.control.wait import until
from kvmctl.hypervisor import domains, live, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change, Outcome
from kvmctl.model.spec import GuestSpec
from kvmctl.model.units import format_size
from kvmctl.policy.diff import diff, reachable_vcpus
from kvmctl.xml.parse import parse

BALLOON_WAIT = 60.0
"""Seconds for a guest to move its balloon."""
DRIVER_WAIT = 15.0
"""Seconds for a guest that is still booting to load its balloon driver."""


def verify(
    hypervisor: Hypervisor, plan: GuestPlan, domain: Any, failures: dict[str, str], wait: float = BALLOON_WAIT
) -> tuple[Outcome, ...]:
    """One Outcome for each Change of the plan. `failures` says by field what the running guest did not take."""
    if not plan.changes:
        return ()
    stored, running = _read(domain)
    left = {change.field: change for change in diff(plan.desired, stored, running)}
    found = []
    for change in plan.changes:
        if change.how == "refused":
            found.append(Outcome(change, "not applied", change.reason))
        elif change.action in ("create", "start"):
            found.append(_made(hypervisor, plan, domain, change, failures, stored))
        elif plan.live is not None and change.field not in failures and devices.is_read_back(change):
            found.append(devices.read_back(hypervisor, domain, plan, change))
        elif change.field == "memory.size" and plan.live is not None and change.how == "live":
            found.append(_ballooned(plan, domain, change, failures, stored, wait))
        elif change.field == "cpu.count" and plan.live is not None and change.how == "live":
            found.append(_plugged(plan, domain, change, failures, stored))
        else:
            found.append(_stored(change, left.get(change.field), failures))
    return tuple(found)


def _read(domain: Any) -> tuple[GuestSpec, GuestSpec | None]:
    stored = replace(parse(domains.definition(domain)).spec, autostart=domains.autostart(domain))
    on = domains.state(domain) in ("running", "paused", "suspended")
    return stored, running_spec(domain, stored) if on else None


def _stored(change: Change, left: Change | None, failures: dict[str, str]) -> Outcome:
    if change.field in failures:
        return Outcome(change, "pending restart", failures[change.field])
    if left is not None:
        return Outcome(change, "not applied", f"it is {left.old} after all", left.old)
    return Outcome(change, "pending restart" if change.how == "restart" else "changed", change.reason, change.new)


def _made(
    hypervisor: Hypervisor, plan: GuestPlan, domain: Any, change: Change, failures: dict[str, str], stored: GuestSpec
) -> Outcome:
    if change.field == "state":
        state = domains.state(domain)
        if state == change.new:
            return Outcome(change, "changed", "", state)
        return Outcome(change, "not applied", failures.get("state", f"it is {state}"), state)
    if change.field == "guest":
        missed = [f"{other.field} is {other.old}, not {other.new}" for other in diff(plan.desired, stored)]
        return Outcome(change, "not applied", "; ".join(missed)) if missed else Outcome(change, "changed")
    volume = next(volume for volume in plan.volumes if f"volumes.{volume.name}" == change.field)
    there = storage.lookup(storage.pool(hypervisor, volume.pool), volume.name)
    return Outcome(change, "changed" if there else "not applied", "" if there else "the volume is not there")


def _plugged(plan: GuestPlan, domain: Any, change: Change, failures: dict[str, str], stored: GuestSpec) -> Outcome:
    """A vCPU that was plugged in is there; one that the guest shall let go of is there until it does."""
    wanted, now = plan.desired.cpu.count, live.vcpus(domain)
    assert wanted is not None
    assert plan.live is not None
    target = reachable_vcpus(wanted, plan.live)
    if stored.cpu.count != wanted:
        return Outcome(change, "not applied", f"it is {stored.cpu.count} after all", stored.cpu.count)
    if now == wanted:
        return Outcome(change, "changed", change.reason, now)
    if change.field in failures:
        return Outcome(change, "pending restart", f"{failures[change.field]}: it has {now} until then", now)
    if now != target:
        why = f"the guest has not let go of {now - target} of its vCPUs: it has {now}"
        return Outcome(change, "not applied", f"{why}; the number is stored for its next start", now)
    why = "has its present maximum" if now < wanted else "keeps those that it was started with"
    return Outcome(change, "pending restart", f"{why}, {now}, until then", now)


def _ballooned(
    plan: GuestPlan, domain: Any, change: Change, failures: dict[str, str], stored: GuestSpec, wait: float
) -> Outcome:
    """Wait for the balloon of a running guest; a target that was accepted is not memory that has moved."""
    if change.field in failures:
        return Outcome(change, "pending restart", failures[change.field])
    if stored.memory.size != plan.desired.memory.size:
        return Outcome(
            change, "not applied", f"it is {format_size(stored.memory.size or 0)} after all", stored.memory.size
        )
    assert plan.live is not None
    assert plan.desired.memory.size is not None
    most = plan.live.memory.max or plan.live.memory.size or plan.desired.memory.size
    target = min(plan.desired.memory.size, most)
    reached = live.balloon(domain)
    if reached != target:
        reached = _wait_for_balloon(domain, target, wait)
    if reached == target == plan.desired.memory.size:
        return Outcome(change, "changed", "", format_size(reached))
    if reached == target:
        return Outcome(change, "pending restart", f"has its present maximum, {format_size(most)}, until then", reached)
    return Outcome(change, "not applied", _why_not(domain, reached), format_size(reached))


def _wait_for_balloon(domain: Any, target: int, wait: float) -> int:
    if domains.state(domain) != "running":
        return live.balloon(domain)
    if not until(lambda: live.has_balloon_driver(domain), bool, min(wait, DRIVER_WAIT)):
        return live.balloon(domain)
    return until(lambda: live.balloon(domain), lambda size: size == target, wait)


def _why_not(domain: Any, reached: int) -> str:
    came = f"the guest's balloon is at {format_size(reached)}; the size is stored for its next start"
    if (state := domains.state(domain)) != "running":
        return f"a guest that is {state} cannot move its balloon: {came}"
    if not live.has_balloon_driver(domain):
        return f"no balloon driver in the guest has answered: {came}"
    return came
