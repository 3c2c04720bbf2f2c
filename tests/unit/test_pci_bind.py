"""Binding and releasing, on machines of files whose kernel is played; killed for real at every write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.control import pci
from kvmctl.host import pci_bind
from kvmctl.host.journal import Journal, boot_id
from kvmctl.host.pci_bind import Done
from kvmctl.host.pci_kernel import Kernel
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, TimedOutError, UnreachableError
from kvmctl.model.pci import GuestUse
from tests.pcihost import PciHost, PlayedKernel, desktop, server, server_kernel

pytestmark = pytest.mark.unit

GPU, AUDIO, NIC, BARE = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0", "0000:03:00.0"


class Desk:
    """A desktop, its played kernel and its journal."""

    def __init__(self, top: Path, make: Callable[[Path], PciHost] = desktop) -> None:
        self.host = make(top)
        self.kernel = server_kernel(self.host) if make is server else PlayedKernel(self.host)
        self.path = top / "journal.json"
        self.journal = Journal(self.path)
        self.before = self.host.state()

    def machine(self, guests: pci.Guests | None = None) -> pci.Machine:
        return pci.observe(guests or {}, self.host.root, self.host.addresses)

    def bind(self, *addresses: str, guests: pci.Guests | None = None) -> dict[str, Done]:
        plan = pci.plan_bind(addresses, self.machine(guests))
        return {done.address: done for done in pci.bind(plan, self.journal, self.kernel)}

    def release(self, *addresses: str, guests: pci.Guests | None = None) -> dict[str, Done]:
        plan = pci.plan_release(addresses, self.machine(guests), self.journal)
        return {done.address: done for done in pci.release(plan, self.journal, self.kernel)}

    def restore(self) -> dict[str, object]:
        """What `host restore` does with each."""
        found: dict[str, object] = {}
        for kind, address, entry in pci.kept(self.journal):
            try:
                present = pci.state(kind, address, self.journal, self.kernel)
                if present != entry.old:
                    present = pci.put_back(kind, address, self.journal, self.kernel, entry.old)
            except NotFoundError:
                present = "gone"
            found[address] = present
        return found

    def is_untouched(self) -> bool:
        self.kernel.before = lambda _number: None
        left = (self.journal.entries(pci.KIND), self.journal.unfinished())
        return self.host.state() == self.before and left == ({}, ())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# There and back


def test_a_lone_device_goes_and_comes_back(desk: Desk) -> None:
    done = desk.bind(NIC)
    assert done == {NIC: Done(NIC, "e1000e", "vfio-pci", "vfio-pci", "changed")}
    assert desk.host.state() == desk.before | {NIC: ("vfio-pci", "vfio-pci")}
    assert desk.journal.entries(pci.KIND)[NIC].old == "e1000e"
    assert desk.journal.unfinished() == ()
    back = desk.release(NIC)
    assert back == {NIC: Done(NIC, "vfio-pci", "e1000e", "e1000e", "changed")}
    assert desk.is_untouched()


def test_a_group_goes_whole_without_its_root_port_and_comes_back_by_one_of_its_names(desk: Desk) -> None:
    plan = pci.plan_bind([AUDIO], desk.machine())
    assert [device.address for device in plan.others] == [GPU]
    desk.bind(AUDIO)
    assert desk.host.drivers(GPU, AUDIO, "0000:00:01.0") == ["vfio-pci", "vfio-pci", "pcieport"]
    assert set(desk.release(GPU)) == {GPU, AUDIO}
    assert desk.is_untouched()


def test_who_names_the_whole_group_is_not_asked(desk: Desk) -> None:
    plan = pci.plan_bind([GPU, AUDIO, GPU], desk.machine())
    assert ([device.address for device in plan.named], plan.others) == ([GPU, AUDIO], ())


def test_a_device_without_a_driver_has_none_afterwards(desk: Desk) -> None:
    desk.kernel.native[BARE] = "late"
    desk.host.driver("late")
    assert desk.bind(BARE)[BARE].old == "none"
    assert desk.release(BARE)[BARE].found == "none"
    assert desk.is_untouched()


def test_what_is_bound_already_is_left_alone(desk: Desk) -> None:
    desk.bind(NIC)
    written = len(desk.kernel.written)
    running = {NIC: [GuestUse("web1", True, True)]}
    assert desk.bind(NIC, guests=running)[NIC].result == "unchanged"
    assert len(desk.kernel.written) == written
    desk.release(NIC)
    assert desk.release(NIC)[NIC].result == "unchanged"
    assert desk.is_untouched()


def test_a_group_of_which_part_is_bound_is_completed_and_the_rest_not_taken_back(desk: Desk) -> None:
    desk.host.unbind(GPU)
    desk.host.bind(GPU, "vfio-pci")
    plan = pci.plan_bind([GPU], desk.machine())
    assert ([one.address for one in plan.others], [one.address for one in plan.idle]) == ([AUDIO], [GPU])
    desk.bind(GPU)
    assert set(desk.release(AUDIO)) == {AUDIO}
    assert desk.host.drivers(GPU) == ["vfio-pci"]


def test_a_device_that_somebody_else_gave_to_vfio_goes_to_the_drivers_that_want_it(desk: Desk) -> None:
    desk.host.unbind(NIC)
    desk.host.bind(NIC, "vfio-pci")
    assert desk.release(NIC)[NIC].found == "e1000e"
    desk.host.bind(BARE, "vfio-pci")
    done = desk.release(BARE)[BARE]
    assert (done.result, done.found, done.reason) == ("changed", "none", "no driver of the host wants it")


def test_a_driver_chosen_by_hand_comes_back_though_another_is_the_kernels_choice(desk: Desk) -> None:
    desk.kernel.native[NIC] = "other"
    desk.host.driver("other")
    desk.bind(NIC)
    desk.release(NIC)
    assert desk.is_untouched()


def test_libvirt_may_have_given_it_back_meanwhile(desk: Desk) -> None:
    desk.bind(NIC)
    desk.host.unbind(NIC)
    desk.host.bind(NIC, "e1000e")
    (desk.host.folder(NIC) / "driver_override").write_text("(null)")
    assert desk.release(NIC)[NIC].result == "unchanged"
    assert desk.is_untouched()


# Refused


@pytest.mark.parametrize(
    ("make", "address", "why"),
    [
        (desktop, "0000:00:1f.2", r"the host lives on it: / is mounted from it \(dm-0\)"),
        (desktop, "0000:00:1f.4", r"0000:00:1f.2 is in its group: .*the host swaps to it"),
        (desktop, "0000:00:1c.0", "a PCI bridge, which stays with the host"),
        (server, "0000:05:00.1", r"0000:05:00.0 is in its group: .*the default route leads through it \(eno1\)"),
        (server, "0000:00:0e.0", "/srv is mounted from it"),
        (server, "0000:06:00.0", "this machine's console"),
        (server, "10000:01:00.0", "no IOMMU covers it"),
    ],
)
def test_what_the_host_lives_on_is_refused(
    tmp_path: Path, make: Callable[[Path], PciHost], address: str, why: str
) -> None:
    desk = Desk(tmp_path, make)
    with pytest.raises(RefusedError, match=why):
        desk.bind(address)
    assert desk.is_untouched()
    assert desk.kernel.written == []


def test_a_device_in_use_is_a_conflict_that_names_who(desk: Desk) -> None:
    desk.host.disk("sdb", "8:16", desk.host.folder(BARE) / "block")
    desk.host.process(78, "dd", "/dev/sdb")
    with pytest.raises(ConflictError, match=r"process 78 \(dd\) has it open"):
        desk.bind(BARE)
    with pytest.raises(ConflictError, match="guest web1 runs with it"):
        desk.bind(NIC, guests={NIC: [GuestUse("web1", True, True)]})
    desk.bind(GPU)
    with pytest.raises(ConflictError, match=rf"{GPU} is in its group: guest web1 runs"):
        desk.release(AUDIO, guests={GPU: [GuestUse("web1", True, True)]})
    desk.host.process(79, "qemu", "/dev/vfio/1")
    with pytest.raises(ConflictError, match="process 79"):
        desk.release(GPU)
    assert desk.host.drivers(GPU, AUDIO) == ["vfio-pci", "vfio-pci"]


def test_somebody_elses_order_for_a_driver_is_not_overruled(desk: Desk) -> None:
    (desk.host.folder(NIC) / "driver_override").write_text("uio_pci_generic\n")
    with pytest.raises(ConflictError, match="uio_pci_generic"):
        desk.bind(NIC)


def test_a_kernel_without_vfio_is_refused_before_anything_is_done(desk: Desk) -> None:
    folder = desk.host.root / "sys/bus/pci/drivers/vfio-pci"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(RefusedError, match="no driver vfio-pci"):
        desk.bind(NIC)
    assert desk.kernel.written == []
    assert desk.is_untouched()


def test_an_absent_device_is_not_found(desk: Desk) -> None:
    for change in (desk.bind, desk.release):
        with pytest.raises(NotFoundError, match=r"0000:0f:00\.0"):
            change(NIC, "0000:0f:00.0")
    assert desk.is_untouched()


# Failures half-way


def test_a_device_that_vfio_does_not_take_undoes_the_whole_group(desk: Desk) -> None:
    desk.kernel.refuses.add(("vfio-pci", AUDIO))
    with pytest.raises(KvmctlError, match=rf"the driver of {AUDIO} is none after it was given to vfio-pci"):
        desk.bind(GPU)
    assert desk.is_untouched()


@pytest.mark.parametrize("error", [KvmctlError("the kernel says no"), KeyboardInterrupt()])
def test_whatever_fails_at_whichever_write_everything_is_put_back(desk: Desk, error: BaseException) -> None:
    for number in range(6):
        start = len(desk.kernel.written)

        def fail(now: int, at: int = start + number) -> None:
            if now == at:
                desk.kernel.written.append(("failed", ""))
                raise error

        desk.kernel.before = fail
        with pytest.raises(type(error)):
            desk.bind(GPU)
        assert desk.is_untouched(), number
    desk.bind(GPU)


def test_a_driver_that_does_not_let_go_ends_by_a_deadline_and_the_rest_is_put_back(desk: Desk) -> None:
    desk.kernel.stuck.add(AUDIO)
    with pytest.raises(TimedOutError, match="no answer within"):
        desk.bind(GPU)
    assert desk.host.state() == desk.before
    # The driver may let go of it yet, and then the device would have none.
    desk.host.unbind(AUDIO)
    assert pci.recover(desk.journal, desk.kernel)[0].endswith("that is undone")
    assert desk.is_untouched()


def test_what_cannot_be_undone_is_said_and_tried_again_by_the_next_run(desk: Desk) -> None:
    desk.kernel.refuses |= {("vfio-pci", AUDIO), ("nouveau", GPU)}
    with pytest.raises(KvmctlError, match=rf"could not all be undone: {GPU}: the driver .* is none") as caught:
        desk.bind(GPU)
    assert "host restore" in caught.value.hint
    assert desk.host.drivers(GPU, AUDIO) == ["", "snd_hda_intel"]
    assert "could not all be undone" in pci.recover(desk.journal, desk.kernel)[0]
    desk.kernel.refuses.clear()
    assert pci.recover(desk.journal, desk.kernel) == [
        f"a run that was interrupted had begun to bind {GPU}, {AUDIO}: that is undone"
    ]
    assert desk.is_untouched()


def test_a_device_that_vanishes_half_way_leaves_nothing_behind(desk: Desk) -> None:
    def pull(now: int) -> None:
        if now == 2:
            desk.host.remove(AUDIO)
            del desk.before[AUDIO]

    desk.kernel.before = pull
    with pytest.raises(NotFoundError):
        desk.bind(GPU)
    assert desk.is_untouched()


def test_a_journal_that_cannot_be_written_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    full = tmp_path / "file"
    full.touch()
    desk.journal = Journal(full / "journal.json")
    with pytest.raises(KvmctlError, match="was not begun"):
        pci.bind(pci.plan_bind([NIC], desk.machine()), desk.journal, desk.kernel)
    assert desk.kernel.written == []
    assert desk.host.state() == desk.before


def test_releasing_gives_back_what_it_can_and_keeps_the_rest_in_mind(desk: Desk) -> None:
    desk.bind(GPU)
    desk.kernel.refuses.add(("nouveau", GPU))
    done = desk.release(GPU)
    assert (done[GPU].result, done[GPU].found) == ("not applied", "none")
    assert (done[AUDIO].result, done[AUDIO].found) == ("changed", "snd_hda_intel")
    desk.kernel.refuses.clear()
    assert desk.restore() == {GPU: "nouveau"}
    assert desk.host.state() == desk.before


def test_the_real_writer_tells_what_the_kernel_says_and_ends_by_its_deadline(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    (tmp_path / "file").touch()
    kernel.write("file", "value")
    assert (tmp_path / "file").read_text() == "value"
    with pytest.raises(NotFoundError):
        kernel.write("absent", "value")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(KvmctlError, match=r"did not take 'value' .*: No space left on device"):
        kernel.write("full", "value\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimedOutError, match=r"has not answered within 0\.2 s"):
        kernel.write("pipe", "value", 0.2)
    if os.geteuid():
        (tmp_path / "file").chmod(0o400)
        with pytest.raises(UnreachableError):
            kernel.write("file", "value")


# Killed


def killed_at(desk: Desk, number: int, act: Callable[[], object]) -> bool:
    """Do it in a process that kills itself before that write; whether it got so far."""
    start = len(desk.kernel.written)
    child = os.fork()
    if child == 0:
        try:
            desk.kernel.before = lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == start + number else None
            act()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_run_that_is_killed_while_it_binds_is_undone_by_the_next(desk: Desk) -> None:
    killed = 0
    while killed_at(desk, killed, lambda: desk.bind(GPU)):
        said = pci.recover(desk.journal, desk.kernel)
        assert said == [f"a run that was interrupted had begun to bind {GPU}, {AUDIO}: that is undone"]
        assert desk.is_untouched(), killed
        killed += 1
    assert killed == 6
    assert desk.host.drivers(GPU, AUDIO) == ["vfio-pci", "vfio-pci"]


def test_a_run_that_is_killed_while_it_releases_is_finished_by_the_next(desk: Desk) -> None:
    desk.bind(GPU)
    killed = 0
    while killed_at(desk, killed, lambda: desk.release(GPU)):
        assert pci.recover(desk.journal, desk.kernel)[0].endswith("that is finished")
        assert desk.is_untouched(), killed
        desk.bind(GPU)
        killed += 1
    assert killed == 6
    assert desk.is_untouched()


def test_a_run_that_is_killed_when_all_is_bound_is_kept_and_can_be_restored(desk: Desk) -> None:
    desk.bind(GPU)
    data = {one: {"driver": desk.before[one][0], "override": "", "known": False} for one in (GPU, AUDIO)}
    desk.journal.begin(pci.KIND, GPU, {"action": "bind", "devices": data, "boot": boot_id()})
    assert desk.restore() == {GPU: "nouveau", AUDIO: "snd_hda_intel"}
    assert desk.host.state() == desk.before
    assert desk.journal.unfinished() == ()


def test_restoring_undoes_what_a_killed_run_had_begun(desk: Desk) -> None:
    assert killed_at(desk, 4, lambda: desk.bind(GPU))
    _kind, address, entry = next(pci.kept(desk.journal))
    assert (address, entry.old) == (GPU, "nouveau")
    assert pci.state(pci.KIND, GPU, desk.journal, desk.kernel) == "begun"
    assert desk.restore()[GPU] == "nouveau"
    assert desk.is_untouched()


def test_restoring_refuses_a_device_in_use(desk: Desk) -> None:
    desk.bind(NIC)
    desk.host.process(77, "qemu", "/dev/vfio/6", cmdline=("qemu", "-name", "guest=web1"))
    with pytest.raises(ConflictError, match="of guest web1"):
        desk.restore()
    assert desk.host.drivers(NIC) == ["vfio-pci"]


def test_a_reboot_undoes_a_binding_by_itself(desk: Desk) -> None:
    devices = {NIC: {"driver": "e1000e", "override": "", "known": False}}
    desk.journal.begin(pci.KIND, NIC, {"action": "bind", "devices": devices, "boot": "another"})
    assert pci.recover(desk.journal, desk.kernel)[0].endswith("the reboot has undone that")
    assert desk.kernel.written == []
    assert desk.is_untouched()


def test_a_device_that_somebody_gives_back_first_is_reported_as_given_back(desk: Desk) -> None:
    desk.bind(NIC)
    asked: list[str] = []

    def before(address: str) -> None:
        asked.append(address)
        pci_bind.give_back(address, None, desk.kernel)

    (done,) = pci_bind.release([NIC], desk.journal, desk.kernel, before)
    assert (done.old, done.found, done.result) == ("vfio-pci", "e1000e", "changed")
    assert asked == [NIC]
    assert desk.is_untouched()
