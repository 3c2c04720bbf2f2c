"""`ksm show`: what merging saves and for whom, and why it saves no more."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from kvmctl.host import cpu, ksm, sample
from kvmctl.host.files import PAGE_SIZE
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import NotFoundError
from kvmctl.model.host_sample import KsmSample
from kvmctl.model.metrics import OFF
from kvmctl.model.sample import GuestSample
from kvmctl.policy import ksm as policy
from kvmctl.xml.metadata import promise
from kvmctl.xml.parse import parse


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
        "managers": ksm.managers(),
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
        raise NotFoundError(f"{hypervisor.uri} tells nothing of KSM", "run kvmctl ksm show on that machine")
    return {**found, "saved": found["pages_sharing"] * policy.PAGE if "pages_sharing" in found else None}
