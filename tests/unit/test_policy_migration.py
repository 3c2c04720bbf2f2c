"""What stands in the way of a move: everything at once, on both sides, each with what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvmctl.model.hostpolicy import CpuPolicy, HostPolicy
from kvmctl.model.migration import Finding, MigrationOptions, MovedDisk, MovedGuest, TargetHost
from kvmctl.model.promise import Promise
from kvmctl.model.units import GIB, MIB
from kvmctl.policy.migration import arrived, blocks, findings, is_copied, is_copied_here, number, portability

pytestmark = pytest.mark.unit

PROMISE = Promise(1000, 1.0, 0.5, 1000, 256 * MIB, True, True, memory_max=512 * MIB)
DISK = MovedDisk("vda", "/images/web1.qcow2", "file", "qcow2", "none", shared=True, exists=True, pool="images")
GUEST = MovedGuest(
    "web1", "uuid-1", "running", True, "kvm", "x86_64", "pc-q35-7.2", "host-model", 512 * MIB, PROMISE, (DISK,)
)
TARGET = TargetHost(
    uri="qemu+ssh://node2/system",
    same_host=False,
    versions=("9.0.0", "QEMU 7.2.22"),
    source_versions=("9.0.0", "QEMU 7.2.22"),
    machines=("pc-q35-7.2", "pc-q35-7.1", "pc-i440fx-7.2"),
    firmwares=("bios", "uefi"),
    cpu="",
    networks={"default": True},
    interfaces=frozenset({"br0"}),
    namesake=None,
    same_uuid=None,
    running={},
    cores=4,
    memory=16 * GIB,
    available=12 * GIB,
    policy=HostPolicy(),
    known_policy=True,
)
LIVE = MigrationOptions()


def found(guest: MovedGuest = GUEST, target: TargetHost = TARGET, options: MigrationOptions = LIVE) -> list[Finding]:
    return list(findings(guest, target, options))


def test_nothing_stands_in_the_way() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("guest", "what", "side"),
    [
        ({"state": "stopped"}, "state", "source"),
        ({"persistent": False}, "state", "source"),
        ({"job": "a snapshot is being made"}, "lock", "source"),
        ({"saved": True}, "state", "source"),
        ({"snapshots": 2}, "snapshots", "source"),
        ({"machine": "pc-q35-8.0"}, "machine", "target"),
        ({"host_devices": ("pci device 0000:01:00.0",)}, "hostdev", "source"),
        ({"immovable": ("the folder /srv that it shares with its host",)}, "device", "source"),
        ({"networks": ("lab",)}, "network", "target"),
        ({"interfaces": ("br7",)}, "network", "target"),
        ({"memory": 13 * GIB}, "admission", "target"),
        ({"promise": replace(PROMISE, cpu_reservation=3.9)}, "admission", "target"),
        ({"promise": replace(PROMISE, memory_reservation=16 * GIB)}, "admission", "target"),
        ({"promise": replace(PROMISE, memory_max=64 * GIB)}, "admission", "target"),
    ],
)
def test_what_the_guest_has(guest: dict[str, Any], what: str, side: str) -> None:
    (one,) = found(replace(GUEST, **guest))
    assert (one.severity, one.what, one.side) == ("obstacle", what, side)
    assert one.text
    assert one.next


@pytest.mark.parametrize(
    ("target", "what", "severity"),
    [
        ({"same_host": True}, "host", "obstacle"),
        ({"reachable_by": "the source's daemon reaches no other host by it"}, "connection", "obstacle"),
        ({"namesake": "uuid-2"}, "name", "obstacle"),
        ({"same_uuid": "web1"}, "uuid", "obstacle"),
        ({"machines": None}, "machine", "obstacle"),
        ({"cpu": "it does not provide required features: avx512f"}, "cpu", "obstacle"),
        ({"cpu": None}, "cpu", "warning"),
        ({"firmwares": ("bios",)}, "firmware", "obstacle"),
        ({"missing_files": ("/boot/vmlinuz",)}, "file", "obstacle"),
        ({"unseen_files": ("/boot/vmlinuz",)}, "file", "warning"),
        ({"clock_ahead": -7.0}, "clock", "warning"),
        ({"versions": ("8.10.0", "QEMU 7.2.22")}, "version", "warning"),
        ({"known_policy": False}, "policy", "warning"),
        ({"available": 100 * MIB}, "admission", "obstacle"),
    ],
)
def test_what_the_target_has(target: dict[str, Any], what: str, severity: str) -> None:
    kinds = {
        (one.what, one.severity, one.side in ("target", "both"))
        for one in found(replace(GUEST, uefi=True), replace(TARGET, **target))
    }
    assert (what, severity, True) in kinds


def test_its_own_policy_decides() -> None:
    target = replace(TARGET, cores=2, running={"db": replace(PROMISE, cpu_reservation=1.0)})
    assert not found(target=target)
    keeps = replace(target, policy=HostPolicy(CpuPolicy(reserve=1.0)))
    (one,) = found(target=keeps)
    assert one.what == "admission"
    assert "db 1 + web1 0.5 = 1.5 > 1" in one.text
    (forced,) = found(target=keeps, options=MigrationOptions(force=True))
    assert forced.severity == "warning"


def test_guests_that_arrive_before_count() -> None:
    other = replace(GUEST, name="web0", promise=replace(PROMISE, cpu_reservation=3.5), memory=11 * GIB)
    after = arrived(TARGET, [other], LIVE)
    assert {one.what for one in found(target=after)} >= {"admission"}
    assert after.available == GIB
    assert arrived(TARGET, [replace(other, state="stopped")], LIVE) == replace(TARGET)


@pytest.mark.parametrize(
    ("disk", "options", "said"),
    [
        ({"shared": False}, {}, "do not share"),
        ({"shared": None}, {}, "cannot be told"),
        ({"shared": None}, {"assume_shared": True}, None),
        ({"cache": "writeback"}, {}, "cache mode is writeback"),
        ({"cache": None}, {}, "cache mode is writeback"),
        ({"cache": "directsync"}, {}, None),
        ({"read_only": True, "exists": False, "shared": False}, {}, "it has no /images"),
        ({"read_only": True, "exists": True, "shared": False, "cache": None}, {}, None),
        ({"kind": "network", "shared": True}, {}, None),
        ({"shared": False, "exists": False}, {"copy_storage": True}, None),
        ({"shared": False, "exists": True}, {"copy_storage": True}, "already"),
        ({"shared": False, "exists": True}, {"copy_storage": True, "overwrite": True}, None),
        (
            {"shared": False, "exists": True, "needed_by": ("guest db",)},
            {"copy_storage": True, "overwrite": True},
            "guest db",
        ),
        ({"shared": False, "exists": False, "needed_by": ("guest db",)}, {"copy_storage": True}, "guest db"),
        ({"shared": None, "exists": None, "pool": None}, {"copy_storage": True}, "nowhere to copy"),
        ({"shared": False, "exists": False, "allocation": GIB, "room": MIB}, {"copy_storage": True}, "free"),
        ({"shared": True, "exists": True}, {"copy_storage": True}, None),
    ],
)
def test_disks(disk: dict[str, Any], options: dict[str, Any], said: str | None) -> None:
    guest = replace(GUEST, disks=(replace(DISK, **disk),))
    texts = [one.text for one in found(guest, options=MigrationOptions(**options)) if one.severity == "obstacle"]
    if said is None:
        assert texts == []
    else:
        assert any(said in text for text in texts), texts


def test_a_guest_that_is_off() -> None:
    options, off = MigrationOptions(offline=True), replace(GUEST, state="stopped")
    assert found(off, options=options) == []
    assert not found(options=options), "one that runs moves live"
    assert [one.what for one in found(off)] == ["state"]
    assert [one.what for one in found(replace(off, nvram=True), options=options)] == ["firmware"]
    device = found(replace(off, host_devices=("pci device 0000:01:00.0",)), options=options)
    assert [one.severity for one in device] == ["warning"]


BASE = MovedDisk(
    "vda", "/images/base.qcow2", "file", capacity=GIB, allocation=GIB, shared=False, exists=False, pool="p"
)
OWN = replace(DISK, shared=False, exists=False, allocation=MIB, room=2 * GIB, pool="p", below=(BASE,))
OFF = replace(GUEST, state="stopped", disks=(OWN,))
COPYING = MigrationOptions(offline=True, copy_storage=True)


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        ({}, None),
        ({"held": False}, "so it cannot be read"),
        ({"exists": True}, "already"),
        ({"pool": None}, "nowhere to copy"),
        ({"room": GIB}, "free"),
        ({"below": (replace(BASE, exists=True, differs=True),)}, "another /images/base"),
        ({"below": (replace(BASE, exists=True),), "room": GIB}, None),
        ({"below": (replace(BASE, shared=True),), "room": GIB}, None),
        ({"below": (replace(BASE, exists=None, pool=None),)}, "which is overlaid"),
        ({"below": (replace(BASE, held=False),)}, "so it cannot be read"),
        ({"shared": True, "exists": True}, "it has no /images/base"),
        ({"read_only": True}, None),
    ],
)
def test_disks_of_a_guest_that_is_off(disk: dict[str, Any], said: str | None) -> None:
    texts = [one.text for one in found(replace(OFF, disks=(replace(OWN, **disk),)), options=COPYING)]
    assert len(texts) == (said is not None), texts
    assert said is None or said in texts[0]


def test_room_for_all_of_several() -> None:
    """What they have in common is copied once."""
    other = replace(OWN, path="/images/web2.qcow2", allocation=GIB, room=2 * GIB + MIB)
    first, second = (replace(OFF, disks=(replace(one, room=2 * GIB + MIB),)) for one in (OWN, other))
    assert not found(second, arrived(TARGET, [first], COPYING), COPYING)
    third = replace(OFF, disks=(replace(other, path="/images/web3.qcow2"),))
    (one,) = found(third, arrived(TARGET, [first, second], COPYING), COPYING)
    assert "3GiB" in one.text
    assert is_copied(replace(OWN, read_only=True), COPYING)
    live = replace(COPYING, offline=False)
    assert is_copied_here(replace(OWN, read_only=True), live), "libvirt leaves discs out"
    assert is_copied(OWN, live)
    assert not is_copied_here(OWN, live)
    assert not is_copied(replace(OWN, read_only=True, exists=True), live)


def test_encryption() -> None:
    secret = MigrationOptions(tls=True)
    assert [(one.what, one.severity, one.side) for one in found(options=secret)] == [
        ("tls", "warning", "source"),
        ("tls", "warning", "target"),
    ]
    (one,) = found(target=replace(TARGET, source_tls="no certificate", tls=""), options=secret)
    assert (one.what, one.severity, one.side) == ("tls", "obstacle", "source")
    assert "no certificate" in one.text
    assert not found(target=replace(TARGET, source_tls="no certificate"))
    assert not found(OFF, options=replace(COPYING, tls=True))
    (one,) = found(OFF, replace(TARGET, uri="qemu+tcp://node2/system"), replace(COPYING, tls=True))
    assert "not encrypted" in one.text


def test_everything_at_once_obstacles_first() -> None:
    guest = replace(
        GUEST,
        snapshots=1,
        networks=("lab", "default"),
        disks=(replace(DISK, shared=False), replace(DISK, target="vdb", cache="unsafe")),
        host_devices=("usb device bus=1 device=2",),
    )
    target = replace(TARGET, cpu="no avx", namesake="other", clock_ahead=9.0, cores=0)
    all_ = found(guest, target)
    assert {one.what for one in all_} == {
        "snapshots", "network", "disk vda", "disk vdb", "hostdev", "cpu", "name", "clock", "admission",
    }  # fmt: skip
    severities = [one.severity for one in all_]
    assert severities == sorted(severities)
    assert blocks(all_)
    assert not blocks([one for one in all_ if one.severity == "warning"])


def test_versions_are_numbers() -> None:
    assert number("QEMU 7.2.22") == (7, 2, 22)
    assert number("9.0.0") < number("10.0.0")
    assert number("unknown") == ()


def test_whether_it_would_run_there() -> None:
    assert portability(GUEST, TARGET) == ()
    guest = replace(
        GUEST,
        snapshots=3,
        networks=("lab",),
        host_devices=("pci device 0000:01:00.0",),
        disks=(replace(DISK, shared=False, exists=False), replace(DISK, target="vdb", shared=None, exists=None)),
    )
    said = [(one.what, one.severity) for one in portability(guest, replace(TARGET, namesake="uuid-9"))]
    assert said == [
        ("network", "obstacle"), ("disk vda", "obstacle"), ("disk vdb", "obstacle"), ("name", "obstacle"),
        ("hostdev", "warning"),
    ]  # fmt: skip
    off = replace(GUEST, state="stopped", promise=replace(PROMISE, cpu_reservation=9.0))
    assert [one.what for one in portability(off, TARGET)] == ["admission"], "a guest that is off would be started"


@pytest.mark.parametrize(
    ("disk", "options", "copied"),
    [
        ({"shared": False}, {"copy_storage": True}, True),
        ({"shared": None}, {"copy_storage": True}, True),
        ({"shared": True}, {"copy_storage": True}, False),
        ({"shared": None}, {"copy_storage": True, "assume_shared": True}, False),
        ({"shared": False, "read_only": True}, {"copy_storage": True}, False),
        ({"shared": False, "shareable": True}, {"copy_storage": True}, False),
        ({"shared": False}, {}, False),
    ],
)
def test_which_disks_are_copied(disk: dict[str, Any], options: dict[str, Any], copied: bool) -> None:
    assert is_copied(replace(DISK, **disk), MigrationOptions(**options)) is copied


def test_an_image_is_never_copied_over_itself() -> None:
    unknown = replace(GUEST, disks=(replace(DISK, shared=None, exists=True),))
    (one,) = found(unknown, options=MigrationOptions(copy_storage=True, overwrite=True))
    assert one.severity == "obstacle"
    assert "the very image" in one.text


def test_a_paused_guest_that_has_not_run_would_be_lost() -> None:
    """QEMU 7.2 aborts in bdrv_inactivate_recurse when such a guest is moved once more."""
    paused = replace(GUEST, state="paused", has_run=False)
    (one,) = found(paused)
    assert (one.severity, one.what) == ("obstacle", "state")
    assert "resume" in one.next
    assert not found(replace(paused, has_run=True))
    newer = replace(TARGET, source_versions=("11.0.0", "QEMU 10.0.2"), versions=("11.0.0", "QEMU 10.0.2"))
    assert not found(paused, newer)
