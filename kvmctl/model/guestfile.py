"""The guest file: YAML in, specs out, and specs in, YAML out. No file is opened here."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml

from kvmctl.model.data import as_data
from kvmctl.model.declaration import FileReader
from kvmctl.model.fields import Context
from kvmctl.model.nodes import Faults, NodeReader
from kvmctl.model.spec import GuestFile, GuestSpec


def load(sources: Sequence[tuple[str, bytes]], context: Context) -> GuestFile:
    """Read guest files, each given as its name and its content.

    Raises FileError with every fault in all of them, in the order of the files.
    """
    faults = Faults()
    readers = [FileReader(NodeReader(index, name, context, faults)) for index, (name, _) in enumerate(sources)]
    with faults.raised(sources[-1][0] if sources else ""):
        for reader, (_, data) in zip(readers, sources, strict=True):
            reader.read(data)
        _check_across(readers)
        project = _project(readers)
    specs = (declared.spec for reader in readers for declared in reader.declared)
    return GuestFile(tuple(dataclasses.replace(spec, project=project) for spec in specs), project)


def _check_across(readers: Sequence[FileReader]) -> None:
    """Report the names, MAC addresses and devices of the host that two guests have in common."""
    names: dict[str, str] = {}
    devices: dict[str, tuple[int, str]] = {}
    addresses: dict[str, tuple[int, str]] = {}
    every = ((reader.nodes, declared) for reader in readers for declared in reader.declared)
    for number, (nodes, declared) in enumerate(every):
        name = declared.spec.name
        line, column = declared.place("name")
        here = f"{nodes.file}:{line}"
        if name in names:
            nodes.report(line, column, f"a guest named {name} is declared already, at {names[name]}")
        names.setdefault(name, here)
        for key, mac in _macs(declared.spec):
            owner = addresses.setdefault(mac, (number, f"{name} ({here})"))
            if owner[0] != number:
                sentence = f"guest {name}: the MAC address {mac} is that of guest {owner[1]} already"
                nodes.report(*declared.place(key), sentence)
        for index, one in enumerate(declared.spec.passthrough or ()):
            device = one.pci or one.mdev
            # One of several guests that have a device can run, so several may be declared with it.
            if device is None or declared.spec.state == "stopped":
                continue
            owner = devices.setdefault(device, (number, f"{name} ({here})"))
            if owner[0] != number:
                sentence = (
                    f"guest {name}: the device {device} is that of guest {owner[1]} already, and only one of them can "
                    "run: say state: stopped for the other"
                )
                nodes.report(*declared.place(f"passthrough.{index}"), sentence)


def _macs(spec: GuestSpec) -> Iterator[tuple[str, str]]:
    """The MAC addresses that a guest says, with the key of each."""
    said = [(f"nics.{index}.mac", nic.mac) for index, nic in enumerate(spec.nics or ())]
    said += [(f"passthrough.{index}.mac", one.mac) for index, one in enumerate(spec.passthrough or ())]
    yield from ((key, mac) for key, mac in said if mac is not None)


def _project(readers: Sequence[FileReader]) -> str | None:
    named = [reader for reader in readers if reader.project is not None]
    for reader in named[1:]:
        if reader.project != named[0].project:
            first = f"{named[0].project}, which {named[0].nodes.file} names"
            sentence = f"the project {reader.project} is not {first}: the files of one run have one project"
            reader.nodes.report(*reader.project_place, sentence)
    return named[0].project if named else None


def dump(
    specs: Sequence[GuestSpec], project: str | None = None, comments: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str:
    """Write a guest file that `load` reads back to the same specs. `comments` are lines above a guest, by its name."""
    parts = [] if project is None else [_yaml(_Block(project=project))]
    parts.append("guests:\n" if specs else "guests: []\n")
    for spec in specs:
        lines = [line for text in comments.get(spec.name, ()) for line in text.splitlines()]
        parts += [f"  # {''.join(c if c.isprintable() else '?' for c in line)}\n" for line in lines]
        parts.append(textwrap.indent(_yaml([_Block(as_data(spec))]), "  "))
    return "".join(parts)


class _Block(dict[str, Any]):
    """A mapping that is written with one line a key; others go on one line where they hold single values only."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    pass


def _block(dumper: yaml.SafeDumper, data: _Block) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # As lines under a `|`, where these need no hints about the blanks around them.
    lines = "\n" in text.strip() and not text[0].isspace() and not text.endswith("\n\n")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if lines else None)


_Dumper.add_representer(_Block, _block)
_Dumper.add_representer(str, _text)


def _yaml(data: object) -> str:
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))
