"""What differs, how it can be changed, and that deciding twice changes nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.spec import (
    BootSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestSpec,
    MemorySpec,
    NicSpec,
    PassedSpec,
    VncSpec,
)
from kvmctl.model.units import GIB, MIB
from kvmctl.policy.diff import diff, overlay, raise_maxima

pytestmark = pytest.mark.unit

NOW = GuestSpec(
    "web1",
    cpu=CpuSpec(count=2, max=4, shares=1000, limit=1.5, reservation=0.5, pin=""),
    memory=MemorySpec(size=GIB, max=2 * GIB, reservation=0, shares=10240, sharing=True, swap=True, hugepages=0),
    boot=BootSpec(firmware="bios", machine="pc-q35-7.2"),
    accelerator="tcg",
    disks=(DiskSpec(path="/a", bus="virtio", target="vda", format="qcow2", device="disk"),),
    nics=(NicSpec(network="default", model="virtio", mac="52:54:00:00:00:01"),),
    labels=(("tier", "front"),),
    autostart=False,
)


def changed(desired: GuestSpec, live: GuestSpec | None = None) -> dict[str, str]:
    return {change.field: change.how for change in diff(desired, NOW, live)}


def test_a_spec_that_says_nothing_changes_nothing() -> None:
    assert diff(GuestSpec("web1"), NOW, NOW) == ()


def test_a_definition_is_what_it_says() -> None:
    assert diff(NOW, NOW, NOW) == ()


@pytest.mark.parametrize(
    ("desired", "field", "how"),
    [
        (GuestSpec("web1", cpu=CpuSpec(limit=1.0)), "cpu.limit", "live"),
        (GuestSpec("web1", cpu=CpuSpec(emulator_pin="1")), "cpu.emulator-pin", "live"),
        (GuestSpec("web1", rebalance=False), "rebalance", "live"),
        (GuestSpec("web1", cpu=CpuSpec(max=8)), "cpu.max", "restart"),
        (GuestSpec("web1", memory=MemorySpec(reservation=MIB)), "memory.reservation", "live"),
        (GuestSpec("web1", memory=MemorySpec(sharing=False)), "memory.sharing", "restart"),
        (GuestSpec("web1", boot=BootSpec(machine="pc")), "boot.machine", "refused"),
        (GuestSpec("web1", labels=()), "labels.tier", "live"),
        (GuestSpec("web1", disks=()), "disks.vda", "restart"),
        (
            GuestSpec("web1", nics=(NicSpec(user=True, mac="52:54:00:00:00:01"),)),
            "nics.52:54:00:00:00:01.user",
            "restart",
        ),
        (GuestSpec("web1", project="shop"), "project", "live"),
    ],
)
def test_what_a_running_guest_takes_is_live(desired: GuestSpec, field: str, how: str) -> None:
    assert changed(desired, NOW).get(field) == how


def test_everything_but_a_machine_change_is_simply_stored_on_a_guest_that_is_off() -> None:
    desired = GuestSpec("web1", cpu=CpuSpec(max=8), memory=MemorySpec(sharing=False), disks=())
    assert set(changed(desired).values()) == {"live"}


def test_q35_is_any_version_of_it() -> None:
    assert changed(GuestSpec("web1", boot=BootSpec(machine="q35"))) == {}


def test_a_limit_that_virsh_changed_on_the_running_guest_is_seen() -> None:
    live = replace(NOW, cpu=replace(NOW.cpu, limit=0.2))
    assert changed(GuestSpec("web1", cpu=CpuSpec(limit=1.5)), live) == {"cpu.limit": "live"}


def test_an_emulator_that_virsh_pinned_elsewhere_is_seen() -> None:
    current = replace(NOW, cpu=replace(NOW.cpu, emulator_pin="0"))
    live = replace(NOW, cpu=replace(NOW.cpu, emulator_pin="1"))
    found = diff(GuestSpec("web1", cpu=CpuSpec(emulator_pin="0")), current, live)
    assert [(change.field, change.old, change.new) for change in found] == [("cpu.emulator-pin", "1", "0")]


def test_a_guest_that_says_nothing_of_rebalancing_takes_part() -> None:
    assert changed(GuestSpec("web1", rebalance=True)) == {}
    out = replace(NOW, rebalance=False)
    found = diff(GuestSpec("web1", rebalance=True), out, out)
    assert [(change.old, change.new, change.how) for change in found] == [(False, True, "live")]
    assert diff(GuestSpec("web1", rebalance=False), out, out) == ()


@pytest.mark.parametrize(
    ("wanted", "count", "fixed", "how", "why"),
    [
        (3, 2, 2, "live", ""),
        (1, 3, 1, "live", ""),
        (1, 3, 2, "live", ""),
        (1, 2, 2, "restart", "started with"),
        (6, 3, 1, "live", ""),
        (6, 4, 1, "restart", "present maximum, 4"),
    ],
)
def test_vcpus_come_and_go_as_far_as_they_can(wanted: int, count: int, fixed: int, how: str, why: str) -> None:
    live = replace(NOW, cpu=replace(NOW.cpu, count=count, fixed=fixed), accelerator="kvm")
    desired = GuestSpec("web1", cpu=CpuSpec(count=wanted))
    stored = replace(NOW, cpu=replace(NOW.cpu, count=count, max=8))
    (change,) = diff(desired, stored, live)
    assert (change.how, change.old, change.new) == (how, count, wanted)
    assert why in change.reason
    # Once it is stored, only what the running guest can still take is a change.
    again = diff(desired, replace(NOW, cpu=replace(NOW.cpu, count=wanted)), live)
    assert [one.how for one in again] == (["live"] if how == "live" else [])


def test_a_guest_that_is_emulated_keeps_its_vcpus() -> None:
    live = replace(NOW, cpu=replace(NOW.cpu, count=3, fixed=3))
    (change,) = diff(GuestSpec("web1", cpu=CpuSpec(count=1)), NOW, live)
    assert (change.how, change.reason.partition(";")[0]) == (
        "restart",
        "QEMU cannot take a vCPU from a guest that it emulates",
    )


def test_a_quota_is_only_as_fine_as_the_kernel_is() -> None:
    assert changed(GuestSpec("web1", cpu=CpuSpec(limit=1.500001))) == {}


def test_a_size_above_the_maximum_raises_it() -> None:
    assert raise_maxima(GuestSpec("web1", memory=MemorySpec(size=4 * GIB)), NOW).memory.max == 4 * GIB
    assert raise_maxima(GuestSpec("web1", memory=MemorySpec(size=2 * GIB)), NOW).memory.max is None


def test_a_nic_without_a_mac_is_matched_by_its_place() -> None:
    assert changed(GuestSpec("web1", nics=(NicSpec(network="default"),))) == {}
    assert changed(GuestSpec("web1", nics=(NicSpec(network="default"), NicSpec(user=True)))) == {"nics.1": "live"}


def test_a_disk_without_a_target_is_matched_by_its_path() -> None:
    desired = GuestSpec("web1", disks=(DiskSpec(path="/a", cache="none"),))
    assert changed(desired, NOW) == {"disks.vda.cache": "restart"}


optional = st.none() | st.sampled_from([1, 2, 3])


@given(st.builds(CpuSpec, count=optional, max=optional, shares=optional), st.booleans() | st.none())
def test_what_was_applied_does_not_differ(cpu: CpuSpec, autostart: bool | None) -> None:
    desired = GuestSpec("web1", cpu=cpu, autostart=autostart)
    after = overlay(NOW, desired)
    assert diff(desired, after, after) == ()
    assert overlay(after, desired) == after


def test_a_volume_that_is_named_by_its_pool_is_the_same_disk() -> None:
    current = replace(NOW, disks=(DiskSpec(volume="a.qcow2", pool="default", target="vda", bus="virtio"),))
    wanted = DiskSpec(volume="a.qcow2", path="/var/lib/libvirt/images/a.qcow2")
    assert diff(GuestSpec("web1", disks=(wanted,)), current) == ()


def test_what_a_console_or_display_that_is_off_would_do_is_moot() -> None:
    desired = GuestSpec("web1", vnc=VncSpec(False, "::1", 5901), console=ConsoleSpec(False, "/var/log/web1"))
    current = replace(NOW, vnc=VncSpec(False), console=ConsoleSpec(False))
    assert diff(desired, current) == ()


def test_a_cdrom_is_read_only_whatever_is_said() -> None:
    drive = DiskSpec(device="cdrom", target="sda", bus="sata", read_only=True)
    assert diff(GuestSpec("web1", disks=(replace(drive, read_only=False),)), replace(NOW, disks=(drive,))) == ()


def test_devices_of_the_host_are_told_apart_by_name_and_plugged_in_at_once() -> None:
    card, other = PassedSpec(pci="0000:01:00.0"), PassedSpec(pci="0000:02:00.0")
    function = PassedSpec(pci="0000:07:10.1", vf_of="0000:07:00.0", mac="52:54:00:00:00:01", vlan=5, trust=True)
    now = replace(NOW, passthrough=(card, function))
    wanted = replace(NOW, passthrough=(other, PassedSpec(vf_of="0000:07:00.0", vlan=0, trust=False, spoof_check=False)))
    assert {(one.field, one.action, one.how) for one in diff(wanted, now, now)} == {
        ("passthrough.0000:02:00.0", "add", "live"),
        ("passthrough.0000:01:00.0", "remove", "restart"),
        ("passthrough.0000:07:10.1.vlan", "set", "restart"),
        ("passthrough.0000:07:10.1.trust", "set", "restart"),
        ("passthrough.0000:07:10.1.spoof-check", "set", "restart"),
    }
    assert [one.new for one in diff(wanted, now) if one.field.endswith(".vlan")] == ["none"]
    assert diff(now, now, now) == ()


@pytest.mark.parametrize(("size", "why"), [(512, ""), (1024, ""), (2048, "its present maximum, 1GiB")])
def test_a_running_guest_gets_memory_up_to_its_maximum(size: int, why: str) -> None:
    live = replace(NOW, memory=replace(NOW.memory, size=256 * MIB, max=1024 * MIB))
    found = diff(GuestSpec("web1", memory=MemorySpec(size=size * MIB)), live, live)
    assert (found[0].field, found[0].how, bool(found[0].reason)) == ("memory.size", "live", bool(why))
    assert why in found[0].reason


def test_a_guest_whose_memory_is_pinned_gets_another_size_with_its_next_start() -> None:
    pinned = replace(NOW, passthrough=(PassedSpec(pci="0000:01:00.0"),))
    (change,) = diff(GuestSpec("g", memory=MemorySpec(size=512 * MIB)), pinned, pinned)
    assert (change.field, change.how) == ("memory.size", "restart")
    assert "pins all of its memory" in change.reason
