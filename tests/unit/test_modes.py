"""What comes of a mode, and how ceilings are read, written and kept free of contradictions."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model import throttle
from kvmctl.model.defaults import fill
from kvmctl.model.entries import assignment, set_entries
from kvmctl.model.errors import NotFoundError, UsageError
from kvmctl.model.fields import DISK, NIC, Context
from kvmctl.model.modes import disk_bus, disk_mode, nic_mode, nic_model
from kvmctl.model.rules import check
from kvmctl.model.spec import BootSpec, CpuSpec, DiskSpec, GuestSpec, Mode, NicSpec
from kvmctl.policy.diff import diff
from kvmctl.policy.modes import resolved
from kvmctl.xml.edit import edit
from kvmctl.xml.parse import parse
from kvmctl.xml.render import render
from tests.golden.specs import TCG
from tests.strategies import disk_ceilings, nic_ceilings

pytestmark = pytest.mark.unit

NOW = GuestSpec(
    "g",
    boot=BootSpec(machine="pc-q35-7.2"),
    disks=(
        DiskSpec(path="/a", bus="virtio", target="vda", device="disk", iothread=True),
        DiskSpec(path="/b", bus="sata", target="sda", device="disk"),
        DiskSpec(path="/c", bus="scsi", target="sdb", device="disk"),
    ),
    nics=(NicSpec(user=True, model="virtio", mac="52:54:00:00:00:01"),),
)


@pytest.mark.parametrize("machine", ["q35", "pc", "pc-q35-7.2", "pc-i440fx-7.2"])
@pytest.mark.parametrize("mode", ["emulated", "paravirtual"])
def test_a_mode_comes_to_hardware_of_that_mode(mode: Mode, machine: str) -> None:
    assert disk_mode(disk_bus(mode, "disk", machine)) == mode
    assert disk_mode(disk_bus(mode, "cdrom", machine)) == mode
    assert nic_mode(nic_model(mode, machine)) == mode


def test_old_machines_have_old_hardware() -> None:
    assert (disk_bus("emulated", "disk", "pc"), nic_model("emulated", "pc")) == ("ide", "e1000")
    assert (disk_bus("emulated", "disk", "q35"), nic_model("emulated", "q35")) == ("sata", "e1000e")
    with pytest.raises(ValueError, match="name its bus"):
        disk_bus("emulated", "disk", "virt-7.2")
    with pytest.raises(ValueError, match="passthrough"):
        nic_model("passthrough", "q35")


def test_what_is_in_its_mode_already_stays() -> None:
    wanted = GuestSpec("g", disks=tuple(DiskSpec(path=f"/{name}", mode="paravirtual") for name in "abc"))
    assert [disk.bus for disk in resolved(wanted, NOW).disks or ()] == [None, "virtio", None]
    assert {change.field for change in diff(resolved(wanted, NOW), NOW)} == {"disks.sda.bus"}


def test_a_new_device_has_its_mode() -> None:
    wanted = GuestSpec("g", disks=(*(NOW.disks or ()), DiskSpec(path="/d", mode="emulated")), nics=NOW.nics)
    (new,) = diff(resolved(wanted, NOW), NOW, NOW)
    assert (new.field, new.how) == ("disks.3", "restart")
    plugged = replace(wanted, disks=(*(NOW.disks or ()), DiskSpec(path="/d")))
    assert [change.how for change in diff(resolved(plugged, NOW), NOW, NOW)] == ["live"]


def test_a_mode_that_the_machine_has_not_is_refused() -> None:
    arm = replace(NOW, boot=BootSpec(machine="virt-7.2"))
    with pytest.raises(UsageError, match="no emulated nic"):
        resolved(GuestSpec("g", nics=(NicSpec(user=True, mode="emulated"),)), arm)


def test_queues_follow_the_vcpus() -> None:
    spec = GuestSpec("g", cpu=CpuSpec(count=3, max=12), nics=(NicSpec(network="a"), NicSpec(user=True)))
    assert [nic.queues for nic in fill(spec, TCG).nics or ()] == [8, None]


@given(disk_ceilings())
def test_ceilings_of_a_disk_come_back_from_libvirts_names(said: dict[str, int]) -> None:
    disk = DiskSpec(path="/a", **said)  # type: ignore[arg-type]
    found = throttle.disk_ceilings(throttle.disk_parameters(disk))
    for name in throttle.DISK:
        assert (found[name] or 0) == (said.get(name) or 0)
    for name, value in said.items():
        if value is not None:
            field = DISK[name.replace("_", "-")]
            assert field.parse(str(field.show(value)), Context()) == value


@given(nic_ceilings())
def test_ceilings_of_a_nic_come_back_from_libvirts_names(said: dict[str, int]) -> None:
    found = throttle.nic_ceilings(throttle.nic_parameters(NicSpec(network="a", **said)))  # type: ignore[arg-type]
    assert {name: value or 0 for name, value in found.items()} == {name: said.get(name) or 0 for name in throttle.NIC}
    for key, field in NIC.items():
        if value := said.get(key.replace("-", "_").replace(".", "_")):
            assert field.parse(str(field.show(value)), Context()) == value


@given(disk_ceilings(), disk_ceilings())
def test_other_ceilings_take_the_place_of_those_they_contradict(old: dict[str, int], new: dict[str, int]) -> None:
    """Whatever a disk has and whatever of `iops` or `bandwidth` is set next, libvirt can take the result."""
    now = GuestSpec("g", disks=(DiskSpec(path="/a", bus="virtio", target="vda", **old),))  # type: ignore[arg-type]
    full = fill(now, TCG)
    text = render(full, TCG)
    said = GuestSpec("g", disks=(DiskSpec(path="/a", **new),))  # type: ignore[arg-type]
    after = parse(edit(text, said, TCG)).spec
    assert diff(said, after) == ()
    for name in throttle.DISK:
        if new.get(name):
            assert getattr((after.disks or ())[0], name) == new[name]
    faults = [fault for fault in check(after) if "burst-seconds" not in fault[0]]
    assert faults == []


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("disks", "1", "disks.vda.iops"),
        ("disks.vda", "1", "disks.vda.iops"),
        ("disks.vda.", "1", "no such field"),
        ("disks.vda.iopz", "1", "did you mean iops"),
        ("disks.vda.path", "/a", "attach and detach"),
        ("disks.vda.iops", "-1", "not a number of operations"),
        ("nics.52:54:00:00:00:01.bandwidth.in", "10", "not a speed"),
        ("nics.52:54:00:00:00:01.bandwidth", "1Mbit", "no such field"),
    ],
)
def test_what_is_no_field_of_a_device(key: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        assignment(key, text, Context())


@given(st.text(max_size=30), st.text(max_size=10))
def test_any_text_is_read_or_refused_with_a_sentence(key: str, value: str) -> None:
    for group in ("disks", "nics"):
        with contextlib.suppress(ValueError):
            assert assignment(f"{group}.{key}", value, Context()).group == group


def test_fields_of_a_device_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match="has no vdz among its disks"):
        set_entries(GuestSpec("g"), NOW, [assignment("disks.vdz.iops", "5", Context())])


def test_a_mode_takes_the_place_of_the_bus_and_of_what_goes_with_it() -> None:
    made = set_entries(GuestSpec("g"), NOW, [assignment("disks.vda.mode", "emulated", Context())])
    assert made.disks is not None
    assert (made.disks[0].bus, made.disks[0].iothread, made.disks[0].mode) == (None, None, "emulated")
    assert made.disks[1:] == (NOW.disks or ())[1:]
