"""What holds between specs and XML, whatever the spec and whatever the XML."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st

from kvmctl.model.defaults import fill
from kvmctl.model.errors import RefusedError, UsageError
from kvmctl.model.platform import Platform
from kvmctl.model.rules import check
from kvmctl.model.spec import ConsoleSpec, DiskSpec, GuestSpec, NicSpec, VncSpec
from kvmctl.policy.diff import diff, overlay
from kvmctl.policy.promise import promise_of
from kvmctl.xml import metadata
from kvmctl.xml.edit import edit
from kvmctl.xml.parse import parse
from kvmctl.xml.render import render
from tests.golden.specs import KVM, TCG, stored
from tests.strategies import PRINTABLE, guest_specs

pytestmark = pytest.mark.unit

FOREIGN = Path(__file__).parent.parent / "golden" / "foreign"
PLATFORMS = {"tcg": replace(TCG, cpu_modes=None), "kvm": replace(KVM, cpu_modes=None)}
TCG_ANY = PLATFORMS["tcg"]
nasty = st.text(PRINTABLE, min_size=1, max_size=40) | st.sampled_from(
    ["</description><devices/>", "]]>", "<!--", "&amp;", "&#10;", "'\"<>&", "{{ 7*7 }}", "{% raw %}", "  "]
)


def filled(spec: GuestSpec, platform: Platform) -> GuestSpec:
    """`spec` with its defaults, unless these contradict it: a reservation of more than the one vCPU."""
    try:
        return fill(spec, platform)
    except UsageError:
        reject()


def plain(spec: GuestSpec) -> GuestSpec:
    """`spec` without what is said of a thing that is off, or that no drive has: a CD-ROM that can be written to."""
    disks = None if spec.disks is None else tuple(_plain_disk(disk) for disk in spec.disks)
    vnc = VncSpec(enabled=False) if spec.vnc and not spec.vnc.enabled else spec.vnc
    console = ConsoleSpec(enabled=False) if spec.console and not spec.console.enabled else spec.console
    return replace(spec, disks=disks, vnc=vnc, console=console, autostart=None)


def _plain_disk(disk: DiskSpec) -> DiskSpec:
    return replace(disk, read_only=None) if disk.device == "cdrom" else disk


@given(guest_specs(), st.sampled_from(["tcg", "kvm"]))
def test_what_is_rendered_reads_back_the_same(spec: GuestSpec, accelerator: str) -> None:
    platform = PLATFORMS[accelerator]
    full = filled(spec, platform)
    parsed = parse(render(full, platform))
    assert parsed.spec == stored(full)
    assert parsed.unexpressed == ()
    assert parsed.notes == ()


@given(guest_specs())
def test_a_filled_spec_is_filled(spec: GuestSpec) -> None:
    full = filled(spec, TCG_ANY)
    assert fill(full, TCG_ANY) == full
    assert [fault for fault in check(full) if not fault[0].endswith(".volume")] == []


@given(guest_specs())
def test_saying_what_is_so_changes_nothing(spec: GuestSpec) -> None:
    xml = render(filled(spec, TCG_ANY), TCG_ANY)
    assert edit(xml, parse(xml).spec, TCG_ANY) is xml
    assert edit(xml, GuestSpec(spec.name), TCG_ANY) is xml


@given(guest_specs(), guest_specs())
@example(GuestSpec("a"), GuestSpec("a", disks=(DiskSpec(path="/a", target="sda", iothread=True),)))
def test_an_edited_guest_is_what_is_desired(before: GuestSpec, wish: GuestSpec) -> None:
    xml = render(filled(before, TCG_ANY), TCG_ANY)
    desired = replace(plain(wish), name=before.name)
    assume(not check(overlay(parse(xml).spec, desired)))
    platform = PLATFORMS.get(desired.accelerator or "", TCG_ANY)
    try:
        edited = edit(xml, desired, platform)
    except (RefusedError, UsageError) as error:
        refusal = error.message
    else:
        refusal = ""
    if refusal:
        assert "machine" in refusal or "a disk cannot be" in refusal or "only a virtio nic" in refusal
        return
    assert diff(desired, parse(edited).spec) == ()
    assert edit(edited, desired, platform) is edited


@given(guest_specs())
def test_the_promise_is_the_same_from_the_spec_and_from_the_xml(spec: GuestSpec) -> None:
    full = filled(spec, TCG_ANY)
    promise = metadata.promise(render(full, TCG_ANY))
    assert promise.cpu_limit == pytest.approx(full.cpu.limit)
    assert promise.cpu_reservation == full.cpu.reservation
    assert promise.memory_reservation == full.memory.reservation
    assert (promise.sharing, promise.swap) == (full.memory.sharing, full.memory.swap)
    assert promise.labels == full.labels
    assert promise.rebalance is (full.rebalance is not False)
    assert replace(promise_of(full), cpu_limit=promise.cpu_limit) == promise
    level = {"low": 500, "normal": 1000, "high": 2000}.get(str(full.cpu.shares))
    assert promise.cpu_shares == (level * (full.cpu.count or 1) if level else full.cpu.shares)


def _shape(xml: str) -> list[str]:
    return sorted(element.tag for element in ElementTree.fromstring(xml).iter())


@given(nasty, nasty, nasty, nasty)
def test_no_text_changes_the_structure(description: str, label: str, path: str, word: str) -> None:
    def guest(description: str, label: str, path: str, word: str) -> GuestSpec:
        return GuestSpec(
            word,
            disks=(DiskSpec(path=f"/{path}", format="raw"),),
            nics=(NicSpec(network=word),),
            console=ConsoleSpec(log=f"/{path}"),
            labels=((word, label),),
            description=description,
            project=word,
        )

    rendered = render(fill(guest(description, label, path, word), TCG), TCG)
    innocent = render(fill(guest("d", "l", "p", "w"), TCG), TCG)
    assert _shape(rendered) == _shape(innocent)
    edited = edit(innocent, guest(description, label, path, word), TCG)
    assert _shape(edited) == _shape(innocent)
    assert parse(edited).spec.labels == ((word, label),)


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x1f", "\ud800", "\ufffe", "\r"])
@pytest.mark.parametrize("field", ["description", "project", "name"])
def test_what_xml_cannot_carry_is_refused(character: str, field: str) -> None:
    texts: dict[str, Any] = {"name": "web1", field: f"a{character}b"}
    with pytest.raises(UsageError, match="control character"):
        render(fill(GuestSpec(**texts), TCG), TCG)
    with pytest.raises(UsageError, match="control character"):
        edit(render(fill(GuestSpec("web1"), TCG), TCG), GuestSpec(**texts), TCG)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A definition in which something is missing, or is not what it should be."""
    path = draw(st.sampled_from(sorted(FOREIGN.glob("*.xml"))))
    root = ElementTree.fromstring(path.read_text())
    for _ in range(draw(st.integers(1, 6))):
        parent = draw(st.sampled_from(list(root.iter())))
        if draw(st.booleans()) and len(parent):
            parent.remove(draw(st.sampled_from(list(parent))))
        elif parent.attrib:
            parent.set(draw(st.sampled_from(sorted(parent.attrib))), draw(damage))
        else:
            parent.text = draw(damage)
    return ElementTree.tostring(root, encoding="unicode")


damage = st.sampled_from(["", " ", "0", "-1", "1e9", "9" * 30, "nan", "x", "²", "yes", "/", "a b"]) | st.text(
    PRINTABLE, max_size=8
)


@settings(max_examples=200)
@given(damaged())
def test_any_definition_can_be_read(xml: str) -> None:
    parsed = parse(xml)
    assert edit(xml, parsed.spec, TCG) is xml
    promise = metadata.promise(xml)
    assert promise.cpu_limit > 0
    assert promise.cpu_shares >= 0
    assert math.isfinite(promise.cpu_reservation)


@given(st.text(max_size=200))
def test_what_is_no_definition_gets_a_sentence(text: str) -> None:
    for read in (parse, metadata.read, metadata.promise, lambda xml: edit(xml, GuestSpec("x"), TCG)):
        with pytest.raises(UsageError, match="XML"):
            read(text)
