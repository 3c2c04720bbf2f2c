"""New identities for copies of guests, and the cloud-init seed that makes the copy a new instance."""

from __future__ import annotations

import os
import uuid
from collections.abc import Container

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing
from kvmctl.xml import identity
from kvmctl.xml.identity import Identity


def fresh(hypervisor: Hypervisor, xml: str, name: str) -> Identity:
    """An identity for a copy of the guest with this definition, which is nobody's on this hypervisor: another UUID,
    generation ID and MAC address for each interface, and an NVRAM beside the old one. The name is not checked.

    Raises UsageError where the text is no XML.
    """
    old = identity.read(xml)
    taken = {mac for other in taken_by_others(hypervisor).values() for mac in other.macs}
    macs: list[str] = []
    for _ in old.macs:
        macs.append(_free_mac({*taken, *old.macs, *macs}))
    return Identity(
        name=name,
        uuid=str(uuid.uuid4()),
        macs=tuple(macs),
        genid=None if old.genid is None else str(uuid.uuid4()),
        nvram=identity.nvram_path(old.nvram, name),
    )


def _free_mac(taken: Container[str]) -> str:
    while True:
        found = identity.mac(os.urandom(3))
        if found not in taken:
            return found


def taken_by_others(hypervisor: Hypervisor) -> dict[str, Identity]:
    """The identity of every guest of the hypervisor, by name."""
    with doing("list the guests"):
        handles = domains.domains(hypervisor)
    return {domain.name(): identity.read(text) for domain, text in domains.definitions(handles)}


def clashes(own: Identity, others: dict[str, Identity]) -> list[str]:
    """A sentence for each part of `own` that another guest has already."""
    found = []
    for other in others.values():
        if other.name == own.name:
            found.append(f"there is a guest {other.name!r} already")
        elif other.uuid == own.uuid:
            found.append(f"guest {other.name!r} has the UUID {own.uuid} already")
        common = sorted(set(filter(None, own.macs)) & set(other.macs))
        if common:
            found.append(f"guest {other.name!r} has the MAC address {', '.join(common)} already")
    return found
