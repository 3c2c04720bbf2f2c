"""Guests that a project's file declared once and no longer does."""

from __future__ import annotations

from kvmctl.control.select import Guest
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.spec import GuestFile
from kvmctl.xml import metadata


def prunable(hypervisor: Hypervisor, wanted: GuestFile) -> list[Guest]:
    """The guests recorded as the file's project that the file does not name."""
    declared = {spec.name for spec in wanted.guests}
    others = {
        sample.name: (sample, domain)
        for sample, domain in domains.samples_with_domains(hypervisor)
        if sample.name not in declared
    }
    handles = [domain for _sample, domain in others.values()]
    return [
        others[domain.name()]
        for domain, text in domains.definitions(handles)
        if metadata.read(text).project == wanted.project
    ]
