"""Doing what a plan says: definitions first, then what a running guest takes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kvmctl.control import devices, starts
from kvmctl.control.begin import begin
from kvmctl.control.parallel import each
from kvmctl.control.passed import settle
from kvmctl.control.plan import GuestPlan
from kvmctl.control.resolve import INTENT, VolumePlan
from kvmctl.control.verify import verify
from kvmctl.control.wait import until
from kvmctl.control.weights import BALLOON, renew, run_key
from kvmctl.host import affinity
from kvmctl.host.journal import Journal
from kvmctl.host.process import find_guests
from kvmctl.hypervisor import domains, live, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import fields
from kvmctl.model.change import Change, Outcome
from kvmctl.model.cpuset import parse_cpuset
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, TimedOutError, UnreachableError
from kvmctl.model.spec import GuestSpec
from kvmctl.policy.diff import overlay, reachable_vcpus
from kvmctl.xml import metadata
from kvmctl.xml.edit import edit
from kvmctl.xml.images import images
from kvmctl.xml.render import render, render_volume

VCPU_WAIT = 10.0
"""Seconds for a guest to let go of a vCPU, beyond the five that libvirt waits."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one guest. `error` is what stopped it half-way, or kept it from being started."""

    guest: str
    outcomes: tuple[Outcome, ...]
    error: KvmctlError | None = None


@dataclass(frozen=True, slots=True)
class _Acted:
    domain: Any
    failures: dict[str, str]
    """Why a field was not changed on the running guest, by field."""
    error: KvmctlError | None = None


def run(
    hypervisor: Hypervisor, plans: Sequence[GuestPlan], progress: Callable[[], None] = lambda: None
) -> list[Applied]:
    """Apply every plan, give all running guests their weights again, then read everything back."""
    journal = Journal()
    owed = starts.owed(hypervisor, journal)
    new = {plan.name: plan.brings_to for plan in plans if plan.definition is None and plan.brings_to}
    starts.owe(hypervisor, journal, owed | new)
    acted = each(lambda plan: _act(hypervisor, plan, journal), plans, progress)
    started = {plan.name for plan, one in zip(plans, acted, strict=True) if isinstance(one, _Acted) and not one.error}
    starts.owe(hypervisor, journal, {name: state for name, state in (owed | new).items() if name not in started})
    with suppress(UnreachableError):  # then reading back says it, guest by guest
        renew(hypervisor)
        unfinished(hypervisor, journal)
        settle(hypervisor, journal)
    pairs = list(zip(plans, acted, strict=True))
    results = each(lambda pair: _result(hypervisor, *pair), pairs)
    return [
        Applied(plan.name, (), result) if isinstance(result, KvmctlError) else result
        for plan, result in zip(plans, results, strict=True)
    ]


def _result(hypervisor: Hypervisor, plan: GuestPlan, acted: _Acted | KvmctlError) -> Applied:
    if isinstance(acted, KvmctlError):
        lost = tuple(Outcome(change, "not applied", acted.message) for change in plan.changes)
        return Applied(plan.name, lost, acted)
    return Applied(plan.name, verify(hypervisor, plan, acted.domain, acted.failures), acted.error)


def _act(hypervisor: Hypervisor, plan: GuestPlan, journal: Journal) -> _Acted:
    domain = _create(hypervisor, plan, journal) if plan.definition is None else _redefine(hypervisor, plan, journal)
    failures: dict[str, str] = {}
    if plan.live is not None:
        failures = _set_live(domain, plan)
        if hypervisor.local and any(change.field in ("cpu.pin", "cpu.emulator-pin") for change in plan.changes):
            for pid in find_guests([domain.UUIDString()]).values():
                affinity.gather(pid)
    error = None
    if plan.brings_to:
        try:
            _bring(domain, plan.brings_to)
        except KvmctlError as failed:
            error = failed
            failures["state"] = failed.message
    return _Acted(domain, failures, error)


def _create(hypervisor: Hypervisor, plan: GuestPlan, journal: Journal) -> Any:
    with _volumes(hypervisor, plan, journal):
        domain = _define_new(hypervisor, plan)
    if plan.desired.autostart:
        domains.set_autostart(domain, True)
    return domain


def _define_new(hypervisor: Hypervisor, plan: GuestPlan) -> Any:
    try:
        return domains.define(hypervisor, plan.name, render(plan.desired, plan.platform))
    except KvmctlError as error:
        if plan.name in domains.names(hypervisor):
            raise ConflictError(
                f"guest {plan.name} was made by somebody else just now", "look at it and apply again"
            ) from error
        raise


def _redefine(hypervisor: Hypervisor, plan: GuestPlan, journal: Journal) -> Any:
    assert plan.definition is not None
    text = edit(plan.definition, wanted(plan), plan.platform)
    if text != plan.definition:
        if domains.definition(plan.domain, secure=True) != plan.definition:
            raise ConflictError(
                f"guest {plan.name} was changed by somebody else just now", "look at it and apply again"
            )
        with _volumes(hypervisor, plan, journal):
            domains.define(hypervisor, plan.name, text)
    if any(change.field == "autostart" for change in plan.changes):
        domains.set_autostart(plan.domain, bool(plan.desired.autostart))
    return plan.domain


def wanted(plan: GuestPlan) -> GuestSpec:
    """What the plan wants, less what is refused."""
    spec = plan.desired
    for change in plan.changes:
        if change.how == "refused" and change.field in fields.FIELDS:
            spec = fields.put(spec, change.field, None)
    return spec


@contextmanager
def _volumes(hypervisor: Hypervisor, plan: GuestPlan, journal: Journal) -> Iterator[None]:
    """Make the plan's volumes for the block, and unmake them where it fails.

    The journal knows of each before it exists, so that a run that was killed leaves nothing unexplained; a run
    that has lost its hypervisor leaves them to the next one.
    """
    made: list[VolumePlan] = []
    try:
        for volume in plan.volumes:
            data = {"guest": plan.name, "pool": volume.pool, "name": volume.name, "uri": hypervisor.uri}
            journal.begin(INTENT, volume.path, data)
            _make(hypervisor, volume, made)
        yield
    except UnreachableError:
        raise
    except BaseException:
        for volume in reversed(made):
            storage.delete(hypervisor, volume.path)
        for volume in plan.volumes:
            journal.done(INTENT, volume.path)
        raise
    for volume in plan.volumes:
        journal.done(INTENT, volume.path)


def _make(hypervisor: Hypervisor, volume: VolumePlan, made: list[VolumePlan]) -> None:
    pool = storage.pool(hypervisor, volume.pool)
    # A seed may be there half filled, by a run that was killed; nobody else would give one its name.
    if volume.content is None or storage.lookup(pool, volume.name) is None:
        storage.create(pool, volume.name, render_volume(volume))
    made.append(volume)
    if volume.content is not None:
        storage.upload(pool, volume.name, volume.content, hypervisor)


def _bring(domain: Any, state: str) -> None:
    if domains.state(domain) == "paused":
        domains.resume(domain)
    else:
        begin(domain, paused=state == "paused")


def _set_live(domain: Any, plan: GuestPlan) -> dict[str, str]:
    """Change the running guest where it can be; the reasons where it could not, by field."""
    failures: dict[str, str] = {}
    for change in plan.changes:
        setter = _SETTERS.get(change.field) or devices.setter(change)
        if change.how == "live" and setter is not None:
            try:
                setter(domain, plan)
            except KvmctlError as error:
                failures[change.field] = error.message
    if any(_is_metadata(change) for change in plan.changes):
        text = metadata.extract(domains.definition(domain))
        live.set_metadata(domain, text, metadata.PREFIX, metadata.NAMESPACE)
    return failures


def _is_metadata(change: Change) -> bool:
    return change.field.startswith("labels.") or change.field in metadata.FIELDS


def _set_limit(domain: Any, plan: GuestPlan) -> None:
    assert plan.desired.cpu.limit is not None
    live.set_limit(domain, plan.desired.cpu.limit)


def _set_pin(domain: Any, plan: GuestPlan) -> None:
    live.set_pin(domain, _cpus(_stored(plan).cpu.pin))
    # An emulator without a pinning of its own is where the vCPUs' is, as at the guest's next start.
    if not _stored(plan).cpu.emulator_pin and live.emulator_pin(domain) is not None:
        _set_emulator_pin(domain, plan)


def _set_emulator_pin(domain: Any, plan: GuestPlan) -> None:
    cpu = _stored(plan).cpu
    live.set_emulator_pin(domain, _cpus(cpu.emulator_pin or cpu.pin))


def _stored(plan: GuestPlan) -> GuestSpec:
    """What the guest's definition says by now."""
    assert plan.current is not None
    return overlay(plan.current, wanted(plan))


def _cpus(text: str | None) -> frozenset[int]:
    return parse_cpuset(text) if text else frozenset()


def _set_count(domain: Any, plan: GuestPlan) -> None:
    assert plan.desired.cpu.count is not None
    assert plan.live is not None
    count = reachable_vcpus(plan.desired.cpu.count, plan.live)
    try:
        live.set_vcpus(domain, count)
    except TimedOutError:
        # What the guest has let go of after this wait is read back with everything else.
        if domains.state(domain) == "running":
            until(lambda: live.vcpus(domain), lambda now: now == count, VCPU_WAIT)


def _set_balloon(domain: Any, plan: GuestPlan) -> None:
    assert plan.desired.memory.size is not None
    assert plan.live is not None
    # The running guest cannot have more than it was started with; the rest comes with its next start.
    most = plan.live.memory.max or plan.live.memory.size or plan.desired.memory.size
    size = min(plan.desired.memory.size, most)
    live.set_balloon(domain, size)
    key, journal = run_key(Hypervisor(domain.connect()), domain.name(), domain.ID()), Journal()
    if key in journal.entries(BALLOON):
        # What it is to have once all is undone is what its owner says now.
        journal.forget(BALLOON, key)
        journal.record(BALLOON, key, size, None)


def _set_io_weight(domain: Any, plan: GuestPlan) -> None:
    live.set_io_weight(domain, plan.desired.io.weight or 0)


def _set_description(domain: Any, plan: GuestPlan) -> None:
    live.set_description(domain, plan.desired.description or "")


_SETTERS: dict[str, Callable[[Any, GuestPlan], None]] = {
    "cpu.limit": _set_limit,
    "cpu.count": _set_count,
    "cpu.pin": _set_pin,
    "cpu.emulator-pin": _set_emulator_pin,
    "memory.size": _set_balloon,
    "io.weight": _set_io_weight,
    "description": _set_description,
}


def unfinished(hypervisor: Hypervisor, journal: Journal) -> list[str]:
    """Finish or name what an earlier run left: a sentence for each volume that its guest does not have.

    Where the guest has it by now, or it was never made, the note in the journal is dropped.
    """
    starts.settle(hypervisor, journal)
    sentences = []
    for intent in journal.unfinished(INTENT):
        guest, path = str(intent.data.get("guest")), intent.key
        if intent.data.get("uri", hypervisor.uri) != hypervisor.uri:
            continue
        if storage.by_path(hypervisor, path) and path not in _images(hypervisor, guest):
            sentences.append(
                f"volume {path} was made for guest {guest} by a run that was cut off before the guest had it: "
                f"apply its file again to use it, or delete it with virsh vol-delete {path}"
            )
        else:
            journal.done(INTENT, path)
    return sentences


def _images(hypervisor: Hypervisor, guest: str) -> frozenset[str]:
    try:
        return images(domains.definition(domains.find(hypervisor, guest)))
    except NotFoundError:
        return frozenset()
