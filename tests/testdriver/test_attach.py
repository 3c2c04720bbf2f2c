"""attach and detach where nothing can be plugged: what is refused, what is stored, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Kvmctl

pytestmark = pytest.mark.testdriver

TEST = ("-c", "test:///default")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say one thing to attach"),
        (("--user-nic", "--iso", "/a"), "say one thing to attach"),
        (("--disk", "a", "size"), "is not FIELD=VALUE"),
        (("--disk", "a", "sice=1GiB"), "no such field"),
        (("--disk", "a", "volume=b"), "it is said twice"),
        (("--disk", "a", "mode=emulated", "bus=virtio"), "a disk on virtio is paravirtual"),
        (("--disk", "a", "mode=passthrough"), "passthrough: [{pci: ADDRESS}]"),
        (("--disk", "../a"), "is not a name"),
        (("--disk", "a", "size=0MiB"), "no size for a disk"),
        (("--user-nic", "bandwidth.in=1Mbit"), "QEMU's own network has no limit"),
        (("--user-nic", "network=a"), "exactly one of network, bridge and user"),
        (("--nic", "default", "mac=x"), "is not a MAC address"),
        (("--iso", "a.iso"), "not an absolute path"),
        (("--iso", "/a.iso", "size=1GiB"), "a medium has no fields"),
        (("--disk", "a", "--target", "vdb"), "about the drive of --iso"),
        (("--disk", "", "size=1GiB"), "not usable as a name"),
        (("--pci", "01:00"), "is not a PCI address"),
        (("--pci", "1:0.0", "--mdev", "a"), "say one thing to attach"),
        (("--pci", "1:0.0", "size=1GiB"), "no such field"),
        (("--pci", "1:0.0", "vf-of=1:0.0"), "is not the card that it is a function of"),
        (("--vf-of", "1:0.0", "vlan=5000"), "is not a number of VLANs"),
        (("--vf-of", "1:0.0", "mac=ff:ff:ff:ff:ff:ff"), "is not the address of one interface"),
        (("--mdev", "4b20d080"), "is not a UUID"),
        (("--mdev", "4b20d080-1b54-4048-85b3-a6a62d165c01", "trust=yes"), "an mdev has none"),
    ],
)
def test_what_cannot_be_attached(kvmctl: Kvmctl, words: tuple[str, ...], said: str) -> None:
    assert said in kvmctl(*TEST, "attach", "test", *words, code=2).err


def test_guests_and_devices_that_are_not_there(kvmctl: Kvmctl) -> None:
    kvmctl(*TEST, "attach", "none", "--user-nic", code=3)
    kvmctl(*TEST, "detach", "none", "vda", code=3)
    assert "has no vdz (it has: " in kvmctl(*TEST, "detach", "test", "vdz", code=3).err
    ran = kvmctl(*TEST, "attach", "test", "--iso", "/a", "--target", "sda", code=3)
    assert "has no CD-ROM drive sda (it has: none)" in ran.err


@pytest.mark.parametrize("target", ["../x", "1", "-rf", "' '", "\u00e9", "52:54:00:00:00:01", "x" * 300])
def test_any_text_is_a_device_that_is_not_there(kvmctl: Kvmctl, target: str) -> None:
    ran = kvmctl(*TEST, "detach", "test", "--", target, code=3)
    assert "error: guest 'test' has no" in ran.err or "error: guest test has no" in ran.err


@pytest.mark.parametrize("timeout", ["", "-1s", "1h", "x"])
def test_a_timeout_that_is_none_is_a_usage_error(kvmctl: Kvmctl, timeout: str) -> None:
    assert "not a duration" in kvmctl(*TEST, "detach", "test", "vda", "--timeout", timeout, code=2).err


def fields(ran: Any) -> list[tuple[str, str]]:
    return [(one["field"], one["how"]) for one in ran.json()]


def test_a_dry_run_says_what_would_be_done(kvmctl: Kvmctl) -> None:
    ran = kvmctl(*TEST, "-o", "json", "attach", "test", "--user-nic", "--dry-run", code=10)
    assert fields(ran) == [("nics.1", "live")]
    disk = ("--disk", "/dev/null", "format=raw")
    assert fields(kvmctl(*TEST, "-o", "json", "attach", "test", *disk, "--dry-run", code=10)) == [("disks.vdb", "live")]
    ran = kvmctl(*TEST, "-o", "json", "attach", "test", *disk, "bus=sata", "--dry-run", code=10)
    assert fields(ran) == [("disks.sda", "restart")]


def test_what_the_driver_cannot_plug_is_stored_and_said(kvmctl: Kvmctl) -> None:
    (row,) = kvmctl(*TEST, "-o", "json", "attach", "test", "--user-nic").json()
    assert (row["result"], row["field"]) == ("pending restart", "nics.1")
    assert "not supported" in row["reason"]


def test_modes_and_ceilings_in_a_file(kvmctl: Kvmctl) -> None:
    text = (
        "guests: [{name: g, state: stopped, disks: [{path: /dev/null, mode: paravirtual, iops: 5, iops-burst: 9}], "
        "nics: [{network: default, mode: emulated, bandwidth: {in: 1Mbit, out: 2Gbit}}]}]"
    )
    assert "name its model" in kvmctl(*TEST, "diff", "-f", "-", stdin=text, code=2).err
    text = text.replace("mode: emulated", "model: e1000")
    kvmctl(*TEST, "diff", "-f", "-", stdin=text, code=10)
    assert kvmctl(*TEST, "apply", "-f", "-", stdin=text).out


def test_which_function_of_a_card_is_free_is_not_known_elsewhere(kvmctl: Kvmctl) -> None:
    refused = kvmctl(*TEST, "attach", "test", "--vf-of", "01:00.0", "--dry-run", code=5).err
    assert "is seen only on its own machine" in refused
    shown = kvmctl(*TEST, "attach", "test", "--pci", "01:00.0", "--dry-run", code=10).out
    assert "passthrough.0000:01:00.0" in shown
    assert "name a disk by its target" in kvmctl(*TEST, "detach", "test", "01:00.0", code=3).err
