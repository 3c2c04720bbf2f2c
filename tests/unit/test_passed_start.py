"""Devices made ready for libvirt when a guest starts: drivers that let go, what a card lets a function do, and what is
put back when that fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.control import pci
from kvmctl.host import pci_bind, pci_vf
from kvmctl.host.journal import Journal
from kvmctl.model.errors import KvmctlError, NotFoundError, TimedOutError
from tests.pcihost import FUNCTIONS
from tests.unit.test_passed import PF, card
from tests.unit.test_pci_bind import AUDIO, GPU, NIC, Desk, killed_at

pytestmark = pytest.mark.unit

# Drivers that let go for a guest


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def start(desk: Desk, *addresses: str, fails: BaseException | None = None) -> None:
    """As libvirt does it between the two: it binds the devices to vfio-pci, or QEMU refuses them."""
    with pci_bind.lent(addresses, desk.journal, desk.kernel):
        assert desk.host.drivers(*addresses) == [""] * len(addresses)
        if fails:
            raise fails
        for address in addresses:
            desk.host.bind(address, "vfio-pci")


def test_what_a_guest_gets_is_libvirts_and_not_in_the_journal(desk: Desk) -> None:
    start(desk, GPU, AUDIO)
    assert desk.host.drivers(GPU, AUDIO) == ["vfio-pci", "vfio-pci"]
    assert (desk.journal.unfinished(), desk.journal.entries(pci.KIND)) == ((), {})
    written = len(desk.kernel.written)
    with pci_bind.lent([GPU], desk.journal, desk.kernel):  # it is there
        assert len(desk.kernel.written) == written


@pytest.mark.parametrize("error", [KvmctlError("QEMU refuses it"), KeyboardInterrupt()])
def test_what_qemu_refuses_is_back_with_its_driver(desk: Desk, error: BaseException) -> None:
    with pytest.raises(type(error)):
        start(desk, GPU, AUDIO, fails=error)
    assert desk.is_untouched()


def test_a_driver_that_does_not_let_go_is_not_waited_for_for_ever(desk: Desk) -> None:
    desk.kernel.stuck.add(AUDIO)
    with pytest.raises(TimedOutError, match="no answer within"):
        start(desk, GPU, AUDIO)
    assert desk.host.state() == desk.before
    desk.host.unbind(AUDIO)  # late
    (said,) = pci.recover(desk.journal, desk.kernel)
    assert said.endswith("what no guest has is back with its driver")
    assert desk.is_untouched()


def test_a_driver_that_does_not_take_its_device_back_is_named_and_asked_again(desk: Desk) -> None:
    desk.kernel.refuses.add(("nouveau", GPU))
    with pytest.raises(KvmctlError, match=rf"QEMU refuses it; and not all of them .*{GPU}: the driver") as caught:
        start(desk, GPU, fails=KvmctlError("QEMU refuses it"))
    assert "host restore" in caught.value.hint
    assert "not all of them have their drivers again" in pci.recover(desk.journal, desk.kernel)[0]
    desk.kernel.refuses.clear()
    assert desk.restore()[GPU] == "nouveau"
    assert desk.is_untouched()


def test_a_device_that_vanishes_meanwhile(desk: Desk) -> None:
    def vanish(number: int) -> None:
        if number == len(desk.kernel.written):
            desk.kernel.before = lambda _number: None
            desk.host.remove(AUDIO)

    desk.kernel.before = vanish
    with pytest.raises(NotFoundError):
        start(desk, AUDIO, GPU)
    assert desk.host.drivers(GPU) == ["nouveau"]
    with pytest.raises(NotFoundError):
        start(desk, AUDIO)
    assert desk.journal.unfinished() == ()


def test_a_device_that_vanishes_when_its_driver_has_let_go(desk: Desk) -> None:
    with pytest.raises(KvmctlError, match="QEMU finds no device"):
        _start_and_lose(desk)
    assert AUDIO not in desk.host.state()
    assert desk.host.drivers(GPU) == ["nouveau"]
    assert desk.journal.unfinished() == ()


def _start_and_lose(desk: Desk) -> None:
    with pci_bind.lent([GPU, AUDIO], desk.journal, desk.kernel):
        desk.host.remove(AUDIO)
        raise KvmctlError("QEMU finds no device")


def test_a_run_that_is_killed_while_it_starts_a_guest_is_settled_by_the_next(desk: Desk) -> None:
    for number in range(2):
        assert killed_at(desk, number, lambda: start(desk, GPU, AUDIO))
        pci.recover(desk.journal, desk.kernel)
        assert desk.is_untouched(), number

    def dies() -> None:
        with pci_bind.lent([NIC], desk.journal, desk.kernel):
            desk.host.bind(NIC, "vfio-pci")
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(desk, 9, dies)
    assert pci.recover(desk.journal, desk.kernel)
    assert desk.host.drivers(NIC) == ["vfio-pci"]  # which the guest has
    assert desk.journal.unfinished() == ()


_FULL = """
import sys
from pathlib import Path
from kvmctl.control import pci
from kvmctl.host import pci_bind, pci_vf
from kvmctl.host.journal import Journal
from kvmctl.model.errors import KvmctlError
from tests.unit.test_pci_bind import GPU, NIC, Desk

desk = Desk(Path(sys.argv[1]))
desk.journal = Journal(Path(sys.argv[2]) / "journal.json")
desk.bind(NIC)
before = desk.host.state()
written = len(desk.kernel.written)
try:
    with open(f"{sys.argv[2]}/rest", "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
except OSError:
    pass


def lend():
    with pci_bind.lent([GPU], desk.journal, desk.kernel):
        print("begun all the same")


for act in (lambda: desk.bind(GPU), lend, lambda: desk.release(NIC)):
    try:
        print(act())
    except KvmctlError as error:
        print(error.message, "|", error.hint)
assert desk.host.state() == before and len(desk.kernel.written) == written
Path(sys.argv[2], "rest").unlink()
print(desk.release(NIC)[NIC].found)
"""


def test_with_a_full_disk_nothing_is_touched_and_all_of_it_can_be_given_back_after(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mounted = f'mount -t tmpfs -o size=16k none {full} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mounted, "sh", sys.executable, "-c", _FULL, str(tmp_path), str(full)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    *said, last = done.stdout.splitlines() or [done.stderr]
    assert len(said) == 3, done
    for line in said:
        assert "No space left on device" in line
        assert "was not begun" in line
        assert f"df -h {full}" in line
    assert last == "e1000e"


# What a card lets a function do

IP = (
    '[{"ifname":"enp7s0","vfinfo_list":[{"vf":0,"spoofchk":true,"trust":false,"vlan_list":[{}]},'
    '{"vf":1,"spoofchk":false,"trust":true}]}]'
)


def test_the_settings_of_a_function_are_read_from_what_ip_prints() -> None:
    assert pci_vf.found_in(IP, 0) == {"spoof_check": True, "trust": False}
    assert pci_vf.found_in(IP, 1) == {"spoof_check": False, "trust": True}
    assert pci_vf.found_in(IP, 2) == pci_vf.found_in("[{}]", 0) == {}


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5) | st.text())
def test_whatever_ip_prints_is_read_or_refused(value: object) -> None:
    for text in (str(value), json.dumps([{"vfinfo_list": value}]), json.dumps([{"vfinfo_list": [{"vf": value}]}])):
        with contextlib.suppress(KvmctlError):
            assert set(pci_vf.found_in(text, 0)) <= {"spoof_check", "trust"}


def test_a_function_is_known_by_its_cards_interface_and_its_number(tmp_path: Path) -> None:
    host = card(tmp_path, 3)
    assert pci_vf.function(FUNCTIONS[2], host.root) == pci_vf.Function("enp7s0", 2)
    assert pci_vf.card_of(FUNCTIONS[0], host.root) == PF
    for address in (PF, NIC, "0000:7f:00.0"):
        with pytest.raises(NotFoundError):
            pci_vf.function(address, host.root)


def test_settings_that_are_so_already_are_not_ours_to_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, journal, asked = card(tmp_path, 1), Journal(tmp_path / "journal.json"), list[tuple[str, ...]]()
    now = {"spoofchk": True, "trust": False}

    def ip(*words: str) -> str:
        asked.append(words)
        if "vf" in words:
            now[words[-2]] = words[-1] == "on"
        return f'[{{"vfinfo_list":[{{"vf":0,"spoofchk":{now["spoofchk"]},"trust":{now["trust"]}}}]}}]'.lower()

    monkeypatch.setattr(pci_vf, "_ip", ip)
    assert not pci_vf.configure(FUNCTIONS[0], {"spoof_check": True}, journal, host.root)
    assert journal.entries(pci_vf.KIND) == {}
    assert pci_vf.configure(FUNCTIONS[0], {"spoof_check": False, "trust": True}, journal, host.root)
    assert now == {"spoofchk": False, "trust": True}
    entry = journal.entries(pci_vf.KIND)[FUNCTIONS[0]]
    assert entry.old == {"spoof_check": True, "trust": False}
    assert pci_vf.put_back(FUNCTIONS[0], entry.old, host.root) == entry.old
    assert ("0", "spoofchk", "on") in [words[-3:] for words in asked]
    # Another guest is trusted with nothing that the one before it was, also if that went unnoticed.
    now.update(spoofchk=False, trust=True)
    assert pci_vf.configure(FUNCTIONS[0], {"spoof_check": False}, journal, host.root)
    assert now == {"spoofchk": False, "trust": False}
    assert pci_vf.configure(FUNCTIONS[0], {}, journal, host.root)
    assert now == {"spoofchk": True, "trust": False}
    assert journal.entries(pci_vf.KIND) == {}
