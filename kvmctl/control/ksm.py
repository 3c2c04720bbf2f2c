"""Kernel same-page merging: what it saves and for whom, switched on, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kvmctl.control.doctor.connection import is_local, meant
from kvmctl.control.doctor.kernel import ksm_managers
from kvmctl.host import cpu, ksm, lock, sample
from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import NotFoundError, RefusedError
from kvmctl.model.metrics import OFF
from kvmctl.model.sample import GuestSample, KsmSample
from kvmctl.policy import ksm as policy

_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Guests:
    """The running guests with their promises and processes, and which of them have huge pages."""

    samples: tuple[GuestSample, ...]
    hugepages: frozenset[str]


def report(hypervisor: Hypervisor | None) -> dict[str, Any]:
    """KSM of this machine as a document with stable keys; sizes are bytes. `guests` is None where the
    hypervisor does not answer. Raises NotFoundError where the kernel has no KSM."""
    found = ksm.sample()
    if found is None:
        raise NotFoundError("this kernel has no KSM", "boot a kernel built with CONFIG_KSM")
    guests = running(hypervisor) if hypervisor else None
    journal = Journal()
    return {
        **asdict(found),
        "saved": policy.saved(found),
        "profit": policy.profit(found),
        "explanation": list(_explanation(found, guests)),
        "managers": ksm_managers(),
        "changed_by_kvmctl": _changed(journal),
        "guests": None if guests is None else [_row(guest) for guest in guests.samples],
    }


def _explanation(found: KsmSample, guests: Guests | None) -> tuple[str, ...]:
    if guests is None:
        return ("what keeps it from saving more is not known: the hypervisor does not answer",)
    return policy.explain(found, guests.samples, len(cpu.numa_nodes()) or 1, guests.hugepages)


def _changed(journal: Journal) -> dict[str, dict[str, Any]]:
    entries = journal.entries(ksm.KIND)
    return {name: {"old": entry.old, "new": entry.new} for name, entry in sorted(entries.items())}


def _row(guest: GuestSample) -> dict[str, Any]:
    process = guest.process
    merging = process.ksm_merging_pages if process else None
    return {
        "name": guest.name,
        "sharing": guest.promise.sharing if guest.promise else None,
        "resident": process.rss if process else None,
        "merging_pages": merging,
        "merged": None if merging is None else merging * PAGE_SIZE,
        "profit": process.ksm_process_profit if process else None,
    }


def running(hypervisor: Hypervisor) -> Guests:
    """Every guest that has a process, from its definition and the kernel."""
    from kvmctl.xml.metadata import promise
    from kvmctl.xml.parse import parse

    samples: list[GuestSample] = []
    huge: set[str] = set()
    for found, domain in domains.samples_with_domains(hypervisor):
        if found.state in OFF:
            continue
        try:
            stored, live = domains.definition(domain), domains.live_definition(domain)
        except NotFoundError:
            continue  # it was stopped and removed meanwhile
        # Whether a guest shares is decided when it starts, whatever its definition says since.
        promised = replace(promise(stored, found.vcpus), sharing=promise(live).sharing)
        samples.append(replace(found, promise=promised))
        if parse(live).spec.memory.hugepages:
            huge.add(found.name)
    return Guests(sample.with_processes(samples), frozenset(huge))


def remote_report(hypervisor: Hypervisor) -> dict[str, Any]:
    """What libvirt tells of KSM on another machine: neither its switch nor what each guest shares.

    Raises NotFoundError where it tells nothing.
    """
    found = host.ksm_parameters(hypervisor)
    if found is None:
        raise NotFoundError(f"{hypervisor.uri} tells nothing of KSM")
    return {**found, "saved": found["pages_sharing"] * policy.PAGE if "pages_sharing" in found else None}


def refuse_other_machine(uri: str | None) -> None:
    """Raise RefusedError where `uri`, or LIBVIRT_DEFAULT_URI, names a hypervisor that is not on this machine.

    Nothing is connected to: KSM is the kernel's, and works without libvirt.
    """
    named = meant(uri)
    if not is_local(named):
        raise RefusedError(
            f"{named} is not on this machine, and a kernel's KSM can only be changed on its own", "run kvmctl there"
        )


def enable(settings: ksm.KsmSettings, force: bool) -> tuple[list[ksm.Setting], list[str]]:
    """Switch merging on. What became of each setting, and sentences for the user."""
    with lock.lock(lock.HOST, _LOCK_SECONDS):
        journal = Journal()
        settled = ksm.enable(settings, journal, force)
    return settled, [*journal.notes, *_manager_notes()]


def disable(unmerge: bool, force: bool) -> tuple[list[ksm.Setting], list[str]]:
    """Put back what was before kvmctl. What became of each setting, and sentences for the user."""
    with lock.lock(lock.HOST, _LOCK_SECONDS):
        journal = Journal()
        settled = ksm.disable(journal, unmerge, force)
    notes = [*journal.notes, *_manager_notes()]
    left = ksm.sample()
    if left and policy.saved(left) and left.run == 0:
        notes.append(f"{left.pages_sharing} pages stay merged until they are written to; --unmerge takes them apart")
    return settled, notes


def _manager_notes() -> list[str]:
    return [f"{name} is active, and may change these settings again: stop it" for name in ksm_managers()]


def failed(settled: Sequence[ksm.Setting]) -> list[ksm.Setting]:
    """What the kernel did not take. A foreign change that was left alone is no failure."""
    return [setting for setting in settled if setting.result == "not applied" and not setting.respected]
