"""What guests have reserved is what the kernel is told to leave alone, in their groups and in those above."""

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.control import protect as control
from kvmctl.host import protection
from kvmctl.host.cgroup import Mount
from kvmctl.host.journal import Journal
from kvmctl.model.host_sample import ProcessSample
from kvmctl.model.promise import Promise
from kvmctl.model.sample import GuestSample
from kvmctl.model.units import MIB
from kvmctl.policy.protect import STEP, above, is_due, protected
from tests.trees import fill

pytestmark = pytest.mark.unit

sizes = st.integers(0, 1 << 40)


@given(sizes, st.none() | sizes)
def test_all_that_is_reserved_is_protected_and_qemus_own_with_it(reservation: int, overhead: int | None) -> None:
    found = protected(reservation, overhead)
    assert found % STEP == 0
    if reservation:
        assert reservation + (overhead or 0) <= found <= reservation + (overhead or 0) + 2 * STEP
    else:
        assert found == 0


@given(sizes, sizes)
def test_a_change_ends_in_a_fixed_point_and_is_never_left_out_where_it_protects(present: int, wanted: int) -> None:
    assert not is_due(wanted, wanted)
    assert is_due(present, wanted) or wanted <= present
    if not wanted:
        assert is_due(present, wanted) == bool(present)


@given(st.dictionaries(st.sampled_from(["a.slice/g1", "a.slice/b/g2", "a.slice/b/g3", "c/g4"]), sizes))
def test_the_groups_above_are_protected_for_all_that_is_in_them(wanted: dict[str, int]) -> None:
    found = above(wanted)
    assert set(found) <= {"a.slice", "a.slice/b", "c"}
    for group, amount in found.items():
        assert amount == sum(size for path, size in wanted.items() if path.startswith(f"{group}/"))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state/journal.json")


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    point = tmp_path / "cgroup"
    for name in ("machine", "machine/qemu-1-a.libvirt-qemu", "machine/qemu-2-b.libvirt-qemu"):
        fill(point / name, memory__low=0)
    return Mount(point, "/", 2, frozenset())


def guest(name: str, reservation: int, fixed: str = "", overhead: int | None = None) -> GuestSample:
    promise = Promise(1000, math.inf, 0.0, 5120, reservation, sharing=True, swap=True)
    process = ProcessSample(1, overhead=overhead)
    return GuestSample(name, name, "running", 1, 1, promise=promise, process=process, memory_fixed=fixed)


def own(mount: Mount, name: str) -> Path:
    return next((mount.point / "machine").glob(f"qemu-?-{name}.*"))


def tick(mount: Mount, journal: Journal, *guests: GuestSample, respect: bool = False) -> dict[str, object]:
    control.forget_ended(journal)
    due = control.plan([(one, own(mount, one.name)) for one in guests], mount, journal, respect)
    return {outcome.change.guest: outcome.found for outcome in control.make(due, journal)}


def test_what_is_reserved_is_protected_once_and_no_longer_than_it_is(mount: Mount, journal: Journal) -> None:
    a, b = guest("a", 128 * MIB), guest("b", 64 * MIB, overhead=100 * MIB)
    found = tick(mount, journal, a, b)
    assert found == {"machine": 384 * MIB, "a": 192 * MIB, "b": 192 * MIB}
    assert protection.low(own(mount, "a")) == 192 * MIB
    assert tick(mount, journal, a, b) == {}
    assert {entry.old for entry in journal.entries(control.KIND).values()} == {0}
    # Its memory stays anyway.
    assert tick(mount, journal, a, guest("b", 64 * MIB, fixed="it is locked")) == {"machine": 192 * MIB, "b": 0}
    (own(mount, "a") / "memory.low").unlink()
    own(mount, "a").rmdir()
    assert tick(mount, journal) == {}
    assert str(mount.point / "machine") in journal.entries(control.KIND)
    assert not [key for key in journal.entries(control.KIND) if "qemu-1-a" in key]


def test_what_somebody_else_protects_is_left_to_him(mount: Mount, journal: Journal) -> None:
    fill(own(mount, "a"), memory__low="max")
    assert protection.low(own(mount, "a")) == sys.maxsize
    fill(own(mount, "b"), memory__low=STEP * 9)
    assert tick(mount, journal, guest("a", 128 * MIB), guest("b", 0)) == {"machine": 192 * MIB}
    fill(mount.point / "machine", memory__low=1 * MIB)
    due = control.plan([(guest("a", 128 * MIB), own(mount, "a"))], mount, journal, respect=True)
    assert [(one.change.how, one.change.new) for one in due] == [("refused", 192 * MIB)]
    assert "somebody else" in due[0].change.reason
    assert [outcome.result for outcome in control.make(due, journal)] == ["not applied"]
    assert protection.low(mount.point / "machine") == 1 * MIB
    assert tick(mount, journal, guest("a", 128 * MIB)) == {"machine": 192 * MIB}


def test_a_kernel_that_cannot_is_asked_for_nothing(mount: Mount, journal: Journal) -> None:
    due = [(guest("a", 128 * MIB), own(mount, "a"))]
    assert control.plan(due, Mount(mount.point, "/", 1, frozenset({"cpu"})), journal) == []
    for file in mount.point.rglob("memory.low"):
        file.unlink()
    assert control.plan(due, mount, journal) == []
    assert journal.entries(control.KIND) == {}


def test_a_value_that_is_not_taken_is_said_and_no_strangers(mount: Mount, journal: Journal) -> None:
    due = control.plan([(guest("a", 128 * MIB), own(mount, "a"))], mount, journal)
    file = own(mount, "a") / "memory.low"
    file.unlink()
    file.mkdir()
    outcomes = {one.change.guest: one for one in control.make(due, journal)}
    assert outcomes["machine"].result == "changed"
    assert outcomes["a"].result == "not applied"
    entry = journal.entries(control.KIND)[str(own(mount, "a"))]
    assert entry.old == entry.new == 0
