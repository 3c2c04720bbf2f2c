"""Doing what a plan says: definitions first, then what a running guest takes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kvmctl.control.parallel import each
from kvmctl.control.plan import GuestPlan
from kvmctl.control.resolve import VolumePlan
from kvmctl.control.verify import verify
from kvmctl.control.weights import renew
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, live, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import fields
from kvmctl.model.change import Change, Outcome
from kvmctl.model.cpuset import parse_cpuset
from kvmctl.model.errors import ConflictError, KvmctlError
from kvmctl.model.spec import GuestSpec
from kvmctl.xml import metadata
from kvmctl.xml.edit import edit
from kvmctl.xml.render import render, render_volume

INTENT = "volume"
"""The journal's word for a volume that was made for a guest which has no definition yet."""


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
    acted = each(lambda plan: _act(hypervisor, plan, journal), plans, progress)
    renew(hypervisor)
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
        domain = domains.define(hypervisor, plan.name, render(plan.desired, plan.platform))
    if plan.desired.autostart:
        domains.set_autostart(domain, True)
    return domain


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

    The journal knows of each before it exists, so that a run that was killed leaves nothing unexplained.
    """
    made: list[VolumePlan] = []
    try:
        for volume in plan.volumes:
            journal.begin(INTENT, volume.path, {"guest": plan.name, "pool": volume.pool, "name": volume.name})
            made.append(volume)
            pool = storage.pool(hypervisor, volume.pool)
            storage.create(pool, volume.name, render_volume(volume))
            if volume.content is not None:
                storage.upload(pool, volume.name, volume.content, hypervisor)
        yield
    except BaseException:
        for volume in reversed(made):
            if storage.lookup(storage.pool(hypervisor, volume.pool), volume.name):
                storage.delete(hypervisor, volume.path)
            journal.done(INTENT, volume.path)
        raise
    for volume in made:
        journal.done(INTENT, volume.path)


def _bring(domain: Any, state: str) -> None:
    if domains.state(domain) == "paused":
        domains.resume(domain)
    else:
        domains.start(domain, paused=state == "paused")


def _set_live(domain: Any, plan: GuestPlan) -> dict[str, str]:
    """Change the running guest where it can be; the reasons where it could not, by field."""
    failures: dict[str, str] = {}
    for change in plan.changes:
        setter = _SETTERS.get(change.field)
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


def _set_count(domain: Any, plan: GuestPlan) -> None:
    assert plan.desired.cpu.count is not None
    live.set_vcpus(domain, plan.desired.cpu.count)


def _set_pin(domain: Any, plan: GuestPlan) -> None:
    text = plan.desired.cpu.pin
    cpus = parse_cpuset(text) if text else frozenset()
    live.set_pin(domain, cpus)


def _set_balloon(domain: Any, plan: GuestPlan) -> None:
    assert plan.desired.memory.size is not None
    assert plan.live is not None
    # The running guest cannot have more than it was started with; the rest comes with its next start.
    most = plan.live.memory.max or plan.live.memory.size or plan.desired.memory.size
    live.set_balloon(domain, min(plan.desired.memory.size, most))


def _set_description(domain: Any, plan: GuestPlan) -> None:
    live.set_description(domain, plan.desired.description or "")


_SETTERS: dict[str, Callable[[Any, GuestPlan], None]] = {
    "cpu.limit": _set_limit,
    "cpu.count": _set_count,
    "cpu.pin": _set_pin,
    "memory.size": _set_balloon,
    "description": _set_description,
}


def unfinished(hypervisor: Hypervisor, journal: Journal) -> list[str]:
    """Finish or name what an earlier run left: a sentence for each volume whose guest has no definition.

    Where the guest is defined by now, the volume is its own and the note in the journal is dropped.
    """
    sentences = []
    for intent in journal.unfinished(INTENT):
        guest, path = str(intent.data.get("guest")), intent.key
        try:
            domains.find(hypervisor, guest)
        except KvmctlError:
            if storage.by_path(hypervisor, path):
                sentences.append(
                    f"volume {path} was made for guest {guest} by a run that was cut off before the guest was defined: "
                    f"apply its file again to use it, or delete it with virsh vol-delete {path}"
                )
                continue
        journal.done(INTENT, path)
    return sentences
