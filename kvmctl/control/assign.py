"""`set`: fields of one guest as a spec that says those fields and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import fields
from kvmctl.model.entries import LISTS, Assignment, assignment, set_entries
from kvmctl.model.errors import UsageError
from kvmctl.model.fields import Context
from kvmctl.model.spec import GuestSpec
from kvmctl.xml.parse import parse


def assigned(hypervisor: Hypervisor, name: str, pairs: Mapping[str, str], context: Context) -> GuestSpec:
    """The wish of `FIELD=VALUE` pairs. Labels that are not assigned stay, and so do devices, of which a field is
    `disks.vda.iops` or `nics.52:54:00:12:34:56.model`. Raises UsageError, NotFoundError."""
    spec = GuestSpec(name)
    devices = {key: text for key, text in pairs.items() if key.partition(".")[0] in LISTS}
    others = {key: text for key, text in pairs.items() if key not in devices}
    if devices or any(key.startswith("labels.") for key in pairs):
        current = parse(domains.definition(domains.find(hypervisor, name))).spec
        if len(others) < len(pairs):
            spec = set_entries(spec, current, _read(devices, name, context))
        if any(key.startswith("labels.") for key in pairs):
            spec = replace(spec, labels=current.labels or ())
    return fields.set_fields(spec, others, context)


def _read(pairs: Mapping[str, str], name: str, context: Context) -> list[Assignment]:
    found, faults = [], []
    for key, text in pairs.items():
        try:
            found.append(assignment(key, text, context))
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if faults:
        raise UsageError("\n".join(faults), f"guest {name} was not changed")
    return found
