from dataclasses import replace
from pathlib import Path

import pytest

from kvmctl.model.spec import (
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestFile,
    GuestSpec,
    MemorySpec,
    NicSpec,
    VncSpec,
)
from kvmctl.model.units import GIB
from tests.guestfiles import FULL, WEB1, guest, read

pytestmark = pytest.mark.unit


def test_every_field() -> None:
    file = read(FULL)
    assert file.project == "shop"
    assert file.guests == (
        WEB1,
        GuestSpec(
            name="web2",
            cpu=CpuSpec(shares="normal", model="host-passthrough"),
            memory=MemorySpec(sharing=True),
            console=ConsoleSpec(enabled=False, log="/var/log/guest.log"),
            vnc=VncSpec(enabled=False),
            project="shop",
        ),
    )


def test_a_bare_guest_says_nothing() -> None:
    assert read("guests: [{name: g}]") == GuestFile((GuestSpec("g"),))


def test_a_file_without_guests_in_its_list_is_one() -> None:
    assert read("guests: []\nproject: shop") == GuestFile((), "shop")


def test_empty_lists_and_mappings_are_said() -> None:
    (spec,) = read(guest("disks: [], nics: [], labels: {}, cloud-init: {}, cpu: {}")).guests
    assert spec == GuestSpec("g", disks=(), nics=(), labels=(), cloud_init=CloudInitSpec())


def test_values_are_read_as_written_not_as_yaml_types() -> None:
    (spec,) = read(guest("description: 0o17, labels: {a: yes, b: 1.50, c: 2001-01-01, d: 'null'}")).guests
    assert spec.description == "0o17"
    assert spec.labels == (("a", "yes"), ("b", "1.50"), ("c", "2001-01-01"), ("d", "null"))


def test_defaults_are_merged_deeply_and_lists_are_replaced() -> None:
    text = """
    defaults:
      cpu: {count: 2, shares: high}
      labels: {env: prod, role: none}
      disks: [{path: /a}]
      nics: [{network: default}]
      cloud-init: {user: admin, ssh-keys: [/k]}
    guests:
      - {name: a, cpu: {shares: low}, labels: {role: web}, disks: [{path: /b}], cloud-init: {hostname: a}}
      - {name: b, nics: []}
    """
    a, b = read(text).guests
    assert a.cpu == CpuSpec(count=2, shares="low")
    assert a.labels == (("env", "prod"), ("role", "web"))
    assert a.disks == (DiskSpec(path="/b"),)
    assert a.nics == (NicSpec(network="default"),)
    assert a.cloud_init == CloudInitSpec(hostname="a", user="admin", ssh_keys=("/k",))
    assert b.disks == (DiskSpec(path="/a"),)
    assert b.nics == ()


def test_anchors_aliases_and_merge_keys() -> None:
    text = """
    guests:
      - &one {name: a, cpu: &cpu {count: 2, shares: low}, memory: &memory {size: 1GiB}}
      - {<<: *one, name: b, cpu: {<<: *cpu, shares: high}}
      - {name: c, cpu: {<<: [{count: 1}, *cpu]}, memory: *memory}
    """
    a, b, c = read(text).guests
    assert (a.cpu, a.memory) == (CpuSpec(count=2, shares="low"), MemorySpec(size=GIB))
    assert b == replace(a, name="b", cpu=CpuSpec(count=2, shares="high"))
    assert c == replace(a, name="c", cpu=CpuSpec(count=1, shares="low"))


def test_several_files_make_one() -> None:
    file = read("project: shop\nguests: [{name: a}]", "guests: [{name: b}]", "project: shop\nguests: [{name: c}]")
    assert file == GuestFile(tuple(GuestSpec(name, project="shop") for name in "abc"), "shop")


def test_defaults_count_for_their_own_file() -> None:
    a, b = read("defaults: {agent: true}\nguests: [{name: a}]", "guests: [{name: b}]").guests
    assert (a.agent, b.agent) == (True, None)


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    assert read(b"\xef\xbb\xbfguests:\r\n  - name: g\r\n    agent: true\r\n").guests == (GuestSpec("g", agent=True),)


def test_markup_in_a_description_is_text() -> None:
    text = "</description><devices/>"
    assert read(guest(f"description: '{text}'")).guests[0].description == text


def test_no_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert read(FULL).guests[0] == WEB1
