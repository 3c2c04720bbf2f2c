"""What guests' definitions say, again and again: libvirt is asked only where that may have changed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvmctl.host.files import Stamp, stamp
from kvmctl.hypervisor import domains
from kvmctl.model.sample import GuestSample
from kvmctl.xml import metadata, reclaimable, resources, tree

FOLDER = "/etc/libvirt/qemu"
"""Where the system's libvirt keeps its definitions: it renames a new file over the old one whenever one changes."""
ASK_AGAIN = 60.0
"""Seconds after which a definition is asked for although its file seems to be the same: the hypervisor may be one that
keeps its files elsewhere."""


@dataclass(frozen=True, slots=True)
class _Said:
    stamp: Stamp | None
    asked: float
    """Monotonic seconds."""
    text: str
    vcpus: int
    fields: dict[str, Any]
    """Of a sample, as this text says them for a guest with so many vCPUs."""


@dataclass
class Definitions:
    """The definitions of one hypervisor's guests."""

    local: bool
    """Whether the hypervisor's files are this machine's."""
    _said: dict[str, _Said] = field(default_factory=dict)
    """By UUID."""

    def fields(self, sample: GuestSample, domain: Any) -> dict[str, Any]:
        """The fields of a sample that the guest's definition tells. Raises NotFoundError where the guest is gone,
        KvmctlError where its definition cannot be read."""
        now = time.monotonic()
        # Looked at before libvirt is asked: what changes meanwhile is seen the next time.
        seen = stamp(f"{FOLDER}/{sample.name}.xml") if self.local else None
        known = self._said.get(sample.uuid)
        if known and seen and known.stamp == seen and known.vcpus == sample.vcpus and now < known.asked + ASK_AGAIN:
            return known.fields
        text = domains.stored_definition(domain)
        same = known is not None and (known.text, known.vcpus) == (text, sample.vcpus)
        fields = known.fields if known and same else _read(text, sample.vcpus)
        self._said[sample.uuid] = _Said(seen, now, text, sample.vcpus, fields)
        return fields

    def keep(self, uuids: Iterable[str]) -> None:
        """Forget all guests but these."""
        self._said = {uuid: self._said[uuid] for uuid in uuids if uuid in self._said}


def _read(text: str, vcpus: int) -> dict[str, Any]:
    """Raises KvmctlError."""
    root = tree.read(text)
    return {
        "promise": metadata.promise_in(root, vcpus),
        "cpus": resources.allowed(root),
        "weight_set": resources.defined_weight(root),
        "memory_size": reclaimable.memory_size(root),
        "memory_fixed": reclaimable.memory_fixed(root),
        "has_balloon": reclaimable.has_balloon(root),
        "stats_period": reclaimable.stats_period(root),
    }
