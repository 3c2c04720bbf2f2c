"""Virtual functions, on a machine of files whose kernel is played."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kvmctl.control import pci
from kvmctl.host import pci_vfs
from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError, UsageError
from kvmctl.model.pci import GuestUse
from tests.pcihost import FUNCTIONS, PlayedKernel, server
from tests.unit.test_pci_bind import Desk, killed_at
from tests.unit.test_pci_nvme import Controller

pytestmark = pytest.mark.unit

PF = "0000:07:00.0"
RULE = "etc/udev/rules.d/70-kvmctl-sriov-0000:07:00.0.rules"


class Card(Desk):
    """The server, of which one card has SR-IOV."""

    def __init__(self, top: Path) -> None:
        super().__init__(top, server)
        (self.host.root / "etc/udev/rules.d").mkdir(parents=True)

    def set(
        self, count: int, persist: bool = False, guests: pci.Guests | None = None, dry_run: bool = False, pf: str = PF
    ) -> pci_vfs.DoneVfs:
        return pci.set_vfs(pf, count, persist, self.machine(guests), self.journal, self.kernel, dry_run)

    @property
    def number(self) -> int:
        return pci_vfs.number(PF, self.host.root)

    @property
    def rule(self) -> str | None:
        path = self.host.root / RULE
        return path.read_text() if path.exists() else None


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


def test_functions_are_made_and_their_addresses_read_from_the_links(card: Card) -> None:
    done = card.set(4)
    assert (done.old, done.found, done.result, done.vfs) == (0, 4, "changed", FUNCTIONS[:4])
    assert card.journal.entries(pci.SRIOV)[PF].old == 0


def test_an_equal_number_writes_nothing(card: Card) -> None:
    card.set(3)
    card.kernel.written.clear()
    done = card.set(3, guests={FUNCTIONS[0]: [GuestUse("web1", True, True)]})
    assert (done.result, done.vfs, card.kernel.written) == ("unchanged", FUNCTIONS[:3], [])


def test_another_number_goes_by_zero(card: Card) -> None:
    card.set(2)
    card.kernel.written.clear()
    assert card.set(5).vfs == FUNCTIONS
    assert [value for _path, value in card.kernel.written] == ["0", "5"]
    card.set(0)
    assert card.is_untouched()
    assert card.journal.entries(pci.SRIOV) == {}


def test_what_a_card_cannot_have_is_said(card: Card) -> None:
    with pytest.raises(UsageError, match="can have 8 virtual functions, not 9"):
        card.set(9)
    with pytest.raises(RefusedError, match="has no SR-IOV"):
        card.set(1, pf="0000:05:00.0")
    card.set(1)
    with pytest.raises(ConflictError, match=f"itself a virtual function, of {PF}"):
        card.set(1, pf=FUNCTIONS[0])


@pytest.mark.parametrize("driver", ["", "vfio-pci"])
def test_a_card_without_a_driver_of_the_host_cannot_make_any(card: Card, driver: str) -> None:
    card.host.unbind(PF)
    if driver:
        card.host.bind(PF, driver)
    with pytest.raises(ConflictError, match="has no driver of the host"):
        card.set(2)


def test_a_function_in_use_is_named_with_its_guest(card: Card) -> None:
    card.set(4)
    with pytest.raises(ConflictError, match=f"{FUNCTIONS[2]} of {PF} is in use: guest web1 runs with it"):
        card.set(0, guests={FUNCTIONS[2]: [GuestUse("web1", True, False)]})
    card.host.bind(FUNCTIONS[3], "vfio-pci")
    card.host.process(80, "qemu", "/dev/vfio/103", cmdline=("qemu", "-name", "guest=web2"))
    with pytest.raises(ConflictError, match="of guest web2"):
        card.set(2)
    assert card.number == 4


def test_a_function_that_the_host_lives_on_is_refused(card: Card) -> None:
    card.set(2)
    card.host.nic("eno9", card.host.folder(FUNCTIONS[1]), "192.0.2.99")
    with pytest.raises(RefusedError, match=r"it has the address 192.0.2.99 \(eno9\)"):
        card.set(0)
    assert card.number == 2


def test_functions_that_are_bound_but_idle_go_and_are_forgotten(card: Card) -> None:
    card.set(2)
    card.kernel.native[FUNCTIONS[0]] = "iavf"
    card.bind(FUNCTIONS[0])
    card.set(0)
    assert card.journal.entries(pci.KIND) == {}


@pytest.mark.parametrize("first", [0, 2])
def test_on_any_failure_the_former_number_is_put_back(card: Card, first: int) -> None:
    card.set(first)
    start = len(card.kernel.written)

    def fail(now: int) -> None:
        if now == start + bool(first):
            card.kernel.written.append(("failed", ""))
            raise KvmctlError("the card has no room for that")

    card.kernel.before = fail
    with pytest.raises(KvmctlError, match="no room"):
        card.set(5)
    assert card.number == first
    assert [(entry.old, entry.new) for entry in card.journal.entries(pci.SRIOV).values()] == [(0, 2)] * bool(first)
    assert card.journal.unfinished() == ()


def test_a_killed_run_is_undone_by_the_next(card: Card) -> None:
    card.set(2)
    for number in range(2):
        assert killed_at(card, number, lambda: card.set(5))
        assert pci.recover(card.journal, card.kernel)[0].endswith("that is undone")
        assert (card.number, card.journal.unfinished()) == (2, ())
        assert card.journal.entries(pci.SRIOV)[PF].old == 0
    assert not killed_at(card, 2, lambda: card.set(5))


def test_a_run_that_is_killed_after_the_last_write_is_kept(card: Card) -> None:
    def finish_then_die(kernel: PlayedKernel) -> None:
        kernel.before = lambda _number: None
        plain = kernel.write

        def write(path: str, value: str, seconds: float = 1.0) -> None:
            plain(path, value, seconds)
            os.kill(os.getpid(), signal.SIGKILL)

        kernel.write = write  # type: ignore[method-assign]
        card.set(3)

    assert killed_at(card, -1, lambda: finish_then_die(card.kernel))
    assert pci.recover(card.journal, card.kernel)[0].endswith("it has them")
    assert (card.number, card.journal.unfinished()) == (3, ())
    assert card.restore() == {PF: 0}
    assert card.number == 0


def test_restoring_releases_the_functions_first(card: Card) -> None:
    card.set(2)
    card.kernel.native[FUNCTIONS[0]] = "iavf"
    card.bind(FUNCTIONS[0])
    assert card.restore() == {FUNCTIONS[0]: "none", PF: 0}
    assert card.host.state() == card.before


def test_dry_run_writes_nothing(card: Card) -> None:
    done = card.set(4, persist=True, dry_run=True)
    assert (done.result, done.found, card.kernel.written, card.rule) == ("pending", 0, [], None)
    assert card.set(0, dry_run=True).result == "unchanged"


# After a reboot


def test_a_rule_for_udev_is_written_and_removed(card: Card) -> None:
    done = card.set(4, persist=True)
    assert card.rule is not None
    assert card.rule.splitlines()[1:] == [
        'ACTION=="add|bind", SUBSYSTEM=="pci", KERNEL=="0000:07:00.0", DRIVER=="?*", ATTR{sriov_numvfs}="4"'
    ]
    assert (card.host.root / RULE).stat().st_mode & 0o777 == 0o644
    assert done.persistent == 4
    assert card.set(4, persist=True).result == "unchanged"
    assert card.set(2).persistent == 4
    assert card.set(2, persist=True).result == "changed"
    assert card.set(0, persist=True).persistent is None
    assert card.rule is None


def test_somebody_elses_file_of_that_name_is_left_alone(card: Card) -> None:
    (card.host.root / RULE).write_text("# mine\n")
    for count in (4, 0):
        with pytest.raises(ConflictError, match="is not kvmctl's"):
            card.set(count, persist=True)
    assert (card.rule, card.number) == ("# mine\n", 0)


def test_without_udev_persisting_is_refused_before_anything_is_done(card: Card) -> None:
    (card.host.root / "etc/udev/rules.d").rmdir()
    with pytest.raises(RefusedError, match="there is no"):
        card.set(4, persist=True)
    assert card.number == 0


@pytest.mark.parametrize("refuses", [False, True])
def test_functions_of_nvme_get_queues_before_any_driver(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    folder = card.host.folder(PF)
    (folder / "class").write_text("0x010802\n")
    (folder / "sriov_drivers_autoprobe").write_text("1\n")
    (folder / "nvme/nvme0").mkdir(parents=True)
    controller = Controller(tmp_path / "controller", queues=3 if refuses else 8)
    monkeypatch.setattr(card.kernel, "nvme_admin", controller.nvme_admin)
    if refuses:
        with pytest.raises(KvmctlError, match="too few"):
            card.set(2)
        assert card.number == 0
        assert not card.journal.entries(pci.SRIOV)
    else:
        assert card.set(2).result == "changed"
        assert controller.online == {11, 12}
    names = [(Path(path).name, value) for path, value in card.kernel.written]
    assert names[:3] == [("sriov_drivers_autoprobe", "0"), ("sriov_numvfs", "2"), ("sriov_drivers_autoprobe", "1")]
    assert (folder / "sriov_drivers_autoprobe").read_text() == "1\n"
