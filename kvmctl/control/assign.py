"""`set`: fields of one guest as a spec that says those fields and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import fields
from kvmctl.model.fields import Context
from kvmctl.model.spec import GuestSpec
from kvmctl.xml.parse import parse


def assigned(hypervisor: Hypervisor, name: str, pairs: Mapping[str, str], context: Context) -> GuestSpec:
    """The wish of `FIELD=VALUE` pairs. Labels that are not assigned stay. Raises UsageError, NotFoundError."""
    spec = GuestSpec(name)
    if any(key.startswith("labels.") for key in pairs):
        current = parse(domains.definition(domains.find(hypervisor, name))).spec
        spec = replace(spec, labels=current.labels or ())
    return fields.set_fields(spec, pairs, context)
