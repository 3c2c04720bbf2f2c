"""Specs as plain data, with the keys and the spelling of the guest file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kvmctl.model.fields import CLOUD_INIT, DISK, FIELDS, NIC, PASSED, Field, attribute, get
from kvmctl.model.spec import GuestSpec

_ORDER = (
    "name", "description", "labels", "accelerator", "cpu", "memory", "io", "boot", "disks", "nics", "passthrough",
    "cloud-init",
    "console", "vnc", "agent", "rng", "autostart", "rebalance", "state",
)  # fmt: skip


def as_data(spec: GuestSpec) -> dict[str, Any]:
    """What `spec` says, as the guest file writes it: plain values, in the file's order and with its spelling."""
    data: dict[str, Any] = {"name": spec.name}
    for key, field in FIELDS.items():
        group, _, name = key.rpartition(".")
        if get(spec, key) is not None and group not in ("console", "vnc"):
            (data.setdefault(group, {}) if group else data)[name] = field.show(get(spec, key))
    if spec.disks is not None:
        data["disks"] = [_entry(disk, DISK) for disk in spec.disks]
    if spec.nics is not None:
        data["nics"] = [_entry(nic, NIC) for nic in spec.nics]
    if spec.passthrough is not None:
        data["passthrough"] = [_entry(device, PASSED) for device in spec.passthrough]
    if spec.cloud_init is not None:
        data["cloud-init"] = _entry(spec.cloud_init, CLOUD_INIT)
    for group in ("console", "vnc"):
        if getattr(spec, group) is not None:
            data[group] = _switch(spec, group)
    if spec.labels is not None:
        data["labels"] = dict(spec.labels)
    return {key: data[key] for key in _ORDER if key in data}


def _entry(value: object, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The entry of a list, or the seed: what is said of it."""
    data: dict[str, Any] = {}
    for key, field in fields.items():
        one = getattr(value, attribute(key))
        if one not in (None, ()):
            group, _, name = key.rpartition(".")
            inner = data.setdefault(group, {}) if group else data
            inner[name] = list(one) if isinstance(one, tuple) else field.show(one)
    return data


def _switch(spec: GuestSpec, group: str) -> bool | dict[str, Any]:
    """The console or the display: true or false where nothing else differs from what these mean."""
    value = getattr(spec, group)
    said = {
        field.name: FIELDS[f"{group}.{field.name}"].show(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    }
    return not said if set(said) <= {"enabled"} else said
