"""Which devices of the host guests get, on machines of files, and what is put back when that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.control import pci
from kvmctl.control.passed import Giver
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.passed import match
from kvmctl.model.pci import GuestUse
from kvmctl.model.spec import GuestSpec, PassedSpec
from kvmctl.policy.diff import diff
from tests.pcihost import FUNCTIONS, PciHost, desktop, server, server_kernel, virtual
from tests.trees import fill
from tests.unit.test_pci_bind import AUDIO, GPU, NIC

pytestmark = pytest.mark.unit

PF, PLAIN = "0000:07:00.0", "0000:05:00.0"
MDEV = "4b20d080-1b54-4048-85b3-a6a62d165c01"


def card(top: Path, functions: int) -> PciHost:
    """The server, with that many virtual functions of its card, which has an interface."""
    host = server(top)
    host.nic("enp7s0", host.folder(PF))
    if functions:
        server_kernel(host).write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", str(functions))
    return host


def giver(host: PciHost, guests: pci.Guests | None = None) -> Giver:
    return Giver(lambda: pci.observe(guests or {}, host.root, host.addresses))


def wish(*devices: PassedSpec, name: str = "a") -> GuestSpec:
    return GuestSpec(name, passthrough=devices)


def got(giver: Giver, *devices: PassedSpec, name: str = "a", starts: bool = True) -> tuple[PassedSpec, ...]:
    return giver.resolved(wish(*devices, name=name), (), starts).passthrough or ()


ANY = PassedSpec(vf_of=PF)


# A virtual function of a card


def test_each_guest_gets_a_function_of_its_own(tmp_path: Path) -> None:
    chooses = giver(card(tmp_path, 3))
    (first,), (second, third) = got(chooses, ANY), got(chooses, ANY, ANY, name="b")
    assert [one.pci for one in (first, second, third)] == list(FUNCTIONS[:3])
    assert {one.vf_of for one in (first, second, third)} == {PF}
    with pytest.raises(ConflictError, match=rf"has 3 virtual functions, and none is free: {FUNCTIONS[0]}: another"):
        got(chooses, ANY, name="c")


def test_a_function_that_a_guest_names_is_taken_also_while_it_is_off(tmp_path: Path) -> None:
    host = card(tmp_path, 2)
    known = {FUNCTIONS[0]: [GuestUse("old", False, True)]}
    assert got(giver(host, known), ANY)[0].pci == FUNCTIONS[1]
    known[FUNCTIONS[1]] = [GuestUse("other", True, True)]
    with pytest.raises(ConflictError, match=rf"{FUNCTIONS[0]}: guest old has it; {FUNCTIONS[1]}: guest other has it"):
        got(giver(host, known), ANY)


def test_a_function_that_the_same_guest_names_is_taken(tmp_path: Path) -> None:
    named, chosen = got(giver(card(tmp_path, 2)), PassedSpec(pci=FUNCTIONS[0]), ANY)
    assert (named.pci, chosen.pci) == FUNCTIONS[:2]


def test_a_function_that_the_host_uses_is_passed_over(tmp_path: Path) -> None:
    host = card(tmp_path, 2)
    host.nic("enp7s0v0", host.folder(FUNCTIONS[0]), "192.0.2.77")
    assert got(giver(host), ANY)[0].pci == FUNCTIONS[1]
    host.nic("enp7s0v1", host.folder(FUNCTIONS[1]), "192.0.2.78")
    with pytest.raises(RefusedError, match="the host lives on it: it has the address"):
        got(giver(host), ANY)


def test_a_guest_keeps_the_function_that_it_has(tmp_path: Path) -> None:
    has = PassedSpec(pci=FUNCTIONS[2], vf_of=PF, mac="52:54:00:00:00:07")
    chooses = giver(card(tmp_path, 3))
    kept, new = chooses.resolved(wish(ANY, ANY), (has,), starts=False).passthrough or ()
    assert (kept.pci, new.pci) == (FUNCTIONS[2], FUNCTIONS[0])
    assert diff(wish(kept), wish(has)) == ()


@pytest.mark.parametrize(
    ("functions", "device", "error", "said"),
    [
        (0, ANY, ConflictError, "has no virtual functions now, of the 8"),
        (0, PassedSpec(vf_of="0000:7f:00.0"), NotFoundError, "there is no PCI device 0000:7f:00.0"),
        (0, PassedSpec(vf_of=PLAIN), UsageError, "has no SR-IOV"),
        (1, PassedSpec(vf_of=FUNCTIONS[0]), UsageError, f"is itself a virtual function, of {PF}"),
        (1, PassedSpec(pci=PLAIN, vf_of=PF), UsageError, "is no virtual function of"),
        (1, PassedSpec(pci=PF), ConflictError, "it has 1 virtual function, which would go with it"),
        (0, PassedSpec(pci="0000:06:00.0", mac="52:54:00:00:00:01"), UsageError, "sets no MAC address, VLAN"),
        (0, PassedSpec(pci="0000:06:00.0", trust=True), UsageError, "is no virtual function of a network card"),
        (0, PassedSpec(mdev=MDEV), NotFoundError, "there is no mdev"),
    ],
)
def test_what_cannot_be_had(
    tmp_path: Path, functions: int, device: PassedSpec, error: type[KvmctlError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        got(giver(card(tmp_path, functions)), device)
    assert type(caught.value) is error
    assert caught.value.hint


def test_a_network_function_has_a_mac_address_that_stays(tmp_path: Path) -> None:
    host = card(tmp_path, 2)
    (first,), (again,) = got(giver(host), ANY), got(giver(host), ANY)
    assert first.mac == again.mac
    assert str(first.mac).startswith("52:54:00:")
    (other,) = got(giver(host), ANY, name="b")
    assert other.mac != first.mac
    assert got(giver(host), PassedSpec(vf_of=PF, mac="52:54:00:00:00:01"))[0].mac == "52:54:00:00:00:01"


def test_a_card_has_to_be_up_when_its_function_is_given_to_a_guest(tmp_path: Path) -> None:
    host = card(tmp_path, 1)
    fill(host.root / "sys/class/net/enp7s0", flags="0x1002")
    assert got(giver(host), ANY, starts=False)
    with pytest.raises(ConflictError, match=r"the interface enp7s0, .* is down") as caught:
        got(giver(host), ANY)
    assert caught.value.hint == "ip link set enp7s0 up"
    fill(host.root / "sys/class/net/enp7s0", flags="0x1003")
    assert got(giver(host), ANY)


def test_what_a_whole_card_has_not_is_refused_also_for_one_that_the_guest_has(tmp_path: Path) -> None:
    has = PassedSpec(pci="0000:06:00.0")
    with pytest.raises(UsageError, match="is no virtual function"):
        giver(server(tmp_path)).resolved(wish(PassedSpec(pci=has.pci, trust=True)), (has,), starts=False)


def test_a_function_of_a_disk_has_none(tmp_path: Path) -> None:
    host = server(tmp_path)  # no interface
    server_kernel(host).write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "1")
    assert got(giver(host), ANY)[0].mac is None
    with pytest.raises(UsageError, match="VLAN"):
        got(giver(host), PassedSpec(vf_of=PF, vlan=5))


def test_a_function_that_is_gone_is_said_to_be_one(tmp_path: Path) -> None:
    has = PassedSpec(pci=FUNCTIONS[0], vf_of=PF)
    with pytest.raises(NotFoundError, match=rf"{FUNCTIONS[0]}, which was a virtual function of {PF}") as caught:
        giver(card(tmp_path, 0)).resolved(wish(has), (has,), starts=True)
    assert f"pci vfs {PF} N" in caught.value.hint


def test_on_another_machine_only_what_is_named_can_be_had() -> None:
    assert got(Giver(None), PassedSpec(pci=NIC), PassedSpec(mdev=MDEV))[0].pci == NIC
    with pytest.raises(RefusedError, match="only on its own machine"):
        got(Giver(None), ANY)


# Whether a guest may have it


def test_a_group_goes_whole(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    with pytest.raises(RefusedError, match=rf"its IOMMU group has {AUDIO} \(snd_hda_intel\) as well"):
        got(giver(host), PassedSpec(pci=GPU))
    assert len(got(giver(host), PassedSpec(pci=GPU), PassedSpec(pci=AUDIO))) == 2
    host.unbind(AUDIO)
    assert got(giver(host), PassedSpec(pci=GPU))
    host.bind(AUDIO, "vfio-pci")
    assert got(giver(host), PassedSpec(pci=GPU))
    shared = {AUDIO: [GuestUse("other", True, True)]}
    with pytest.raises(ConflictError, match=rf"{AUDIO} is in use: guest other runs with it"):
        got(giver(host, shared), PassedSpec(pci=GPU))


@pytest.mark.parametrize("starts", [True, False])
def test_what_the_host_lives_on_is_refused_also_for_a_guest_that_stays_off(tmp_path: Path, starts: bool) -> None:
    with pytest.raises(RefusedError, match=r"the host lives on it: / is mounted from it"):
        got(giver(desktop(tmp_path)), PassedSpec(pci="0000:00:1f.2"), starts=starts)


def test_what_is_only_in_use_matters_when_the_guest_starts(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    used = {NIC: [GuestUse("other", True, True)]}
    assert got(giver(host, used), PassedSpec(pci=NIC), starts=False)
    with pytest.raises(ConflictError, match="guest other runs with it"):
        got(giver(host, used), PassedSpec(pci=NIC))
    host.unbind(NIC)
    host.bind(NIC, "vfio-pci")
    with pytest.raises(ConflictError, match="is in use: guest other runs with it"):
        got(giver(host, used), PassedSpec(pci=NIC))
    assert got(giver(host, {NIC: [GuestUse("other", False, True)]}), PassedSpec(pci=NIC))


@pytest.mark.parametrize("first", [True, False])
def test_two_guests_of_one_run_can_have_one_device_if_one_stays_off(tmp_path: Path, first: bool) -> None:
    chooses = giver(desktop(tmp_path))
    got(chooses, PassedSpec(pci=NIC), starts=first)
    got(chooses, PassedSpec(pci=NIC), name="b", starts=not first)
    chooses = giver(desktop(tmp_path / "again"))
    got(chooses, PassedSpec(pci=NIC))
    with pytest.raises(ConflictError, match=rf"{NIC} is what guest a gets"):
        got(chooses, PassedSpec(pci=NIC), name="b")


def test_a_machine_without_an_iommu_passes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no IOMMU that is switched on"):
        got(giver(virtual(tmp_path)), PassedSpec(pci="0000:00:03.0"), starts=False)


# mdevs


def divided(top: Path) -> PciHost:
    """The desktop, whose GPU is divided; beside it a device that is not on the PCI bus."""
    host = desktop(top)
    for parent, kind, interface in (
        (host.folder(GPU), "nvidia-63", "vfio-pci"),
        (host.root / "sys/devices/virtual/mtty/mtty", "mtty-1", "vfio-ccw"),
    ):
        folder = parent / "mdev_supported_types" / kind
        fill(folder, name=f"{kind} title", device_api=interface, available_instances=3)
        (host.root / "sys/class/mdev_bus").mkdir(parents=True, exist_ok=True)
        (host.root / "sys/class/mdev_bus" / parent.name).symlink_to(parent)
    for number, parent in enumerate((host.folder(GPU), host.root / "sys/devices/virtual/mtty/mtty")):
        path = fill(parent / f"{MDEV[:-1]}{number}")
        (path / "mdev_type").symlink_to(next((parent / "mdev_supported_types").iterdir()))
        (host.root / "sys/bus/mdev/devices").mkdir(parents=True, exist_ok=True)
        (host.root / "sys/bus/mdev/devices" / path.name).symlink_to(path)
    return host


def test_mdevs_are_listed_with_their_types_and_guests(tmp_path: Path) -> None:
    host, uuid = divided(tmp_path), f"{MDEV[:-1]}0"
    machine = pci.observe({uuid: [GuestUse("old", False, False)]}, host.root, host.addresses)
    row = {row["name"]: row for row in pci.rows(machine)}[GPU]
    assert row["mdev_types"] == [
        {"name": "nvidia-63", "title": "nvidia-63 title", "interface": "vfio-pci", "available": 3}
    ]
    assert row["mdevs"] == [
        {"uuid": uuid, "parent": GPU, "type": "nvidia-63", "group": None}
        | {"guests": [{"name": "old", "running": False, "managed": False}]}
    ]
    said = list(pci.mdev_sentences(machine))
    assert said[0] == f"mdev {uuid}: nvidia-63 of {GPU}, of guest old"
    assert "mtty has mdevs of type mtty-1 (mtty-1 title), vfio-ccw, 3 more can be made" in said


def test_a_guest_can_have_an_mdev_that_is_a_pci_device_to_it(tmp_path: Path) -> None:
    host = divided(tmp_path)
    assert got(giver(host), PassedSpec(mdev=f"{MDEV[:-1]}0"))
    with pytest.raises(RefusedError, match="is a vfio-ccw, no PCI device"):
        got(giver(host), PassedSpec(mdev=f"{MDEV[:-1]}1"))
    used = {f"{MDEV[:-1]}0": [GuestUse("other", True, False)]}
    with pytest.raises(ConflictError, match="guest other runs with it"):
        got(giver(host, used), PassedSpec(mdev=f"{MDEV[:-1]}0"))


# Laws

names = st.sampled_from(["0000:07:02.0", "0000:07:02.1", "0000:07:10.0"])
cards = st.none() | st.sampled_from([PF, PLAIN])
devices = st.builds(PassedSpec, pci=st.none() | names, vf_of=cards, mac=st.none() | st.sampled_from(["a", "b"]))


there = st.lists(devices.filter(lambda one: one.pci is not None), max_size=4, unique_by=lambda one: one.pci)


@settings(deadline=None)
@given(st.lists(devices, max_size=4), there)
def test_each_device_there_is_stands_for_one_that_is_wanted_at_most(
    wanted: list[PassedSpec], now: list[PassedSpec]
) -> None:
    pairs = match(wanted, now)
    assert [one for one, _ in pairs] == wanted
    used = [other.pci for _, other in pairs if other]
    assert len(used) == len(set(used))
    for one, other in pairs:
        assert other is None or one.pci in (None, other.pci)
        assert other is None or one.pci or one.vf_of == other.vf_of
    assert all(other == one for one, other in match(now, now))


@settings(deadline=None)
@given(st.integers(0, 5), st.lists(st.integers(1, 3), max_size=4))
def test_no_two_guests_get_the_same_function(
    tmp_path_factory: pytest.TempPathFactory, made: int, asks: list[int]
) -> None:
    chooses = giver(card(tmp_path_factory.mktemp("card"), made))
    given_away: list[str | None] = []
    for number, count in enumerate(asks):
        try:
            given_away += [one.pci for one in got(chooses, *[ANY] * count, name=f"g{number}")]
        except ConflictError:
            assert len(given_away) + count > made
            break
    assert len(given_away) == len(set(given_away)) <= made
