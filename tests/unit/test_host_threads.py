import shutil
from pathlib import Path

import pytest

from kvmctl.control import threads as control
from kvmctl.host import threads
from kvmctl.host.journal import Journal
from tests.trees import V1_GUEST, V2_GUEST, v1, v2

pytestmark = pytest.mark.unit


def v1_guest(top: Path, iothreads: int = 0, vcpus: int = 2) -> Path:
    own = v1(top / V1_GUEST, 1024)
    for name in ("emulator", *(f"iothread{n}" for n in range(1, iothreads + 1)), *(f"vcpu{n}" for n in range(vcpus))):
        v1(own / name, 1024)
    return own


def v2_guest(top: Path, iothreads: int = 0, vcpus: int = 2) -> Path:
    own = v2(top / V2_GUEST, 100)
    v2(own / "libvirt", 100)
    for name in ("emulator", *(f"iothread{n}" for n in range(1, iothreads + 1)), *(f"vcpu{n}" for n in range(vcpus))):
        v2(own / "libvirt" / name, 100)
    return own


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state/journal.json")


def test_the_groups_of_both_layouts(tmp_path: Path) -> None:
    one, two = threads.read(v1_guest(tmp_path, iothreads=1), 1), threads.read(v2_guest(tmp_path, iothreads=2), 2)
    assert one
    assert (one.directory, one.helpers) == (tmp_path / V1_GUEST, {"emulator": 1024, "iothread1": 1024})
    assert two
    assert (two.directory, two.vcpus) == (tmp_path / V2_GUEST / "libvirt", ("vcpu0", "vcpu1"))
    assert two.helpers == {"emulator": 100, "iothread1": 100, "iothread2": 100}


def test_a_guest_that_is_gone_or_has_no_groups_has_none(tmp_path: Path) -> None:
    assert threads.read(tmp_path / "gone", 1) is None
    assert threads.read(v1(tmp_path / "machine", 1024), 1) is None


def weights(directory: Path, file: str) -> dict[str, str]:
    return {path.parent.name: path.read_text().strip() for path in directory.glob(f"*/{file}")}


def test_helpers_weigh_a_tenth_of_a_vcpu_together_and_once(tmp_path: Path, journal: Journal) -> None:
    own = v1_guest(tmp_path, iothreads=1)
    due = control.plan([("web1", own)], 1, journal)
    assert [(one.change.guest, one.change.field, one.change.old, one.change.new) for one in due] == [
        ("web1", "cpu.weight.emulator", 1024, 51),
        ("web1", "cpu.weight.iothread1", 1024, 51),
    ]
    assert [outcome.result for outcome in control.make(due, journal)] == ["changed", "changed"]
    assert weights(own, "cpu.shares") == {"emulator": "51", "iothread1": "51", "vcpu0": "1024", "vcpu1": "1024"}
    assert control.plan([("web1", own)], 1, journal) == []
    assert set(journal.entries(control.KIND)) == {str(own / "emulator"), str(own / "iothread1")}


def test_v2(tmp_path: Path, journal: Journal) -> None:
    own = v2_guest(tmp_path)
    control.make(control.plan([("web1", own)], 2, journal), journal)
    assert weights(own / "libvirt", "cpu.weight") == {"emulator": "10", "vcpu0": "100", "vcpu1": "100"}


def test_many_io_threads_raise_every_vcpu(tmp_path: Path, journal: Journal) -> None:
    """Where the kernel's least weight is too much for each of them; a vCPU that comes later is raised too."""
    own = v2_guest(tmp_path, iothreads=19)
    control.make(control.plan([("web1", own)], 2, journal), journal)
    assert set(weights(own / "libvirt", "cpu.weight").values()) == {"1", "200"}
    v2(own / "libvirt/vcpu2", 100)
    (due,) = control.plan([("web1", own)], 2, journal)
    assert (due.change.field, due.change.new) == ("cpu.weight.vcpu2", 200)


def test_an_io_thread_that_comes_later_lightens_the_others(tmp_path: Path, journal: Journal) -> None:
    own = v1_guest(tmp_path)
    control.make(control.plan([("web1", own)], 1, journal), journal)
    v1(own / "iothread1", 1024)
    due = control.plan([("web1", own)], 1, journal)
    assert [(one.change.field, one.change.old, one.change.new) for one in due] == [
        ("cpu.weight.emulator", 102, 51),
        ("cpu.weight.iothread1", 1024, 51),
    ]


def test_somebody_elses_weight_is_corrected_or_respected(tmp_path: Path, journal: Journal) -> None:
    own = v1_guest(tmp_path)
    control.make(control.plan([("web1", own)], 1, journal), journal)
    (own / "emulator/cpu.shares").write_text("1024")
    (corrected,) = control.plan([("web1", own)], 1, journal)
    assert (corrected.change.how, corrected.change.new) == ("live", 102)
    (respected,) = control.plan([("web1", own)], 1, journal, respect=True)
    assert respected.change.reason == "kvmctl had set 102, and somebody else 1024"
    assert control.make([respected], journal)[0].result == "not applied"
    assert (own / "emulator/cpu.shares").read_text() == "1024"


def test_a_vcpu_that_weighs_more_gives_its_helpers_more(tmp_path: Path, journal: Journal) -> None:
    own = v1_guest(tmp_path, vcpus=1)
    (own / "vcpu0/cpu.shares").write_text("4096")
    (due,) = control.plan([("web1", own)], 1, journal)
    assert due.change.new == 409


def test_one_that_stops_meanwhile_does_not_keep_the_others_from_theirs(tmp_path: Path, journal: Journal) -> None:
    gone, stays = v1_guest(tmp_path / "a"), v1_guest(tmp_path / "b")
    due = control.plan([("gone", gone), ("stays", stays)], 1, journal)
    shutil.rmtree(gone)
    first, second = control.make(due, journal)
    assert (first.result, first.reason, second.result) == ("not applied", "it is being stopped", "changed")
    control.forget_ended(journal)
    assert set(journal.entries(control.KIND)) == {str(stays / "emulator")}


def test_without_the_controller_there_is_nothing_to_set(tmp_path: Path, journal: Journal) -> None:
    own = v2_guest(tmp_path)
    for path in (own / "libvirt").glob("*/cpu.weight"):
        path.unlink()
    assert control.plan([("web1", own)], 2, journal) == []
