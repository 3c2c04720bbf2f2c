"""Whatever is written of devices of the host in files, or stands in others' definitions, is read or refused."""

from __future__ import annotations

import contextlib
import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.defaults import fill
from kvmctl.model.errors import FileError
from kvmctl.model.fields import PASSED, Context, Field
from kvmctl.model.guestfile import dump, load
from kvmctl.model.pci import is_address
from kvmctl.model.spec import GuestSpec
from kvmctl.xml import metadata
from kvmctl.xml.edit import edit
from kvmctl.xml.parse import parse
from kvmctl.xml.pci import pci_devices
from kvmctl.xml.render import render
from tests.golden.specs import TCG
from tests.strategies import macs

pytestmark = pytest.mark.unit

LISTS = ["passthrough", "disks", "nics"]
hexadecimal = st.text("0123456789abcdefABCDEFxX:.-", max_size=40)
near = st.from_regex(r"([0-9a-f]{0,9}:)?[0-9a-f]{0,3}:[0-9a-f]{0,3}\.[0-9a-f]{0,2}", fullmatch=True)
uuids = st.uuids().map(str) | st.uuids().map(lambda one: str(one).upper()) | st.uuids().map(lambda one: one.hex)
written = st.text(max_size=40) | hexadecimal | near | uuids | st.integers(-5, 5000).map(str) | macs


@given(st.sampled_from(sorted(PASSED)), written)
def test_whatever_is_written_is_read_and_written_again_or_refused(key: str, text: str) -> None:
    field = PASSED[key]
    with contextlib.suppress(ValueError):
        _comes_back(field, key, text)


def _comes_back(field: Field, key: str, text: str) -> None:
    value = field.parse(text, Context())
    assert field.parse(str(field.show(value)), Context()) == value
    if key in ("pci", "vf-of"):
        assert is_address(str(value))


@given(st.dictionaries(st.sampled_from([*PASSED, "mode", "network"]), written, max_size=5), st.sampled_from(LISTS))
def test_any_entry_is_a_device_or_a_fault_of_the_file(entry: dict[str, str], group: str) -> None:
    said = entry if group == "passthrough" else entry | {"mode": "passthrough"}
    text = json.dumps({"guests": [{"name": "g", group: [said]}]})
    with contextlib.suppress(FileError):
        _is_device(text)


def _is_device(text: str) -> None:
    guests = load([("a.yaml", text.encode())], Context()).guests
    (one,) = guests[0].passthrough or ()
    assert one.pci or one.vf_of or one.mdev
    assert load([("b.yaml", dump(guests).encode())], Context()).guests[0].passthrough == (one,)


shapes = st.sampled_from(["hostdev", "interface"])
kinds = st.sampled_from(["pci", "mdev", "hostdev", "usb", "scsi", ""])
places = st.dictionaries(st.sampled_from(["domain", "bus", "slot", "function", "uuid", "type"]), written, max_size=6)


@given(shapes, kinds, places, written, written, written)
def test_any_device_of_a_definition_can_be_read_and_left(
    tag: str, kind: str, place: dict[str, str], mac: str, vlan: str, card: str
) -> None:
    root = ElementTree.fromstring(render(fill(GuestSpec("g"), TCG), TCG))
    devices = root.find("devices")
    assert devices is not None
    node = ElementTree.SubElement(devices, tag, {"type": kind, "mode": "subsystem", "model": "vfio-pci"})
    ElementTree.SubElement(ElementTree.SubElement(node, "source"), "address", _sayable(place))
    ElementTree.SubElement(node, "mac", _sayable({"address": mac}))
    ElementTree.SubElement(ElementTree.SubElement(node, "vlan"), "tag", _sayable({"id": vlan}))
    known = root.find(metadata.PATH)
    assert known is not None
    name = {"pci": card, "vf-of": mac, "trust": vlan, "spoof-check": "yes"}
    ElementTree.SubElement(known, f"{{{metadata.NAMESPACE}}}passthrough", _sayable(name))
    text = ElementTree.tostring(root, encoding="unicode")
    found = parse(text)
    assert edit(text, found.spec, TCG) is text
    for one in found.spec.passthrough or ():
        assert one.pci is None or is_address(one.pci)
    assert list(pci_devices(found.root)) == [] or is_address(next(iter(pci_devices(found.root))))
    without = parse(edit(text, GuestSpec("g", passthrough=()), TCG))
    assert without.spec.passthrough == ()


def _sayable(said: dict[str, str]) -> dict[str, str]:
    """What XML can carry of it."""
    return {key: "".join(c for c in value if c.isprintable() and c < "\ud800") for key, value in said.items()}
