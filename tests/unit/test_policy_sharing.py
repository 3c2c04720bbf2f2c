"""How fast KSM is to work."""

import math
from dataclasses import replace

import pytest

from kvmctl.model.host_sample import HostSample, KsmSample, Snapshot
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.promise import Promise
from kvmctl.model.reclaim import KsmAim, ReclaimGuest, ReclaimMemory
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import GIB, MIB
from kvmctl.policy import sharing
from kvmctl.policy.ksm import PAGE

pytestmark = pytest.mark.unit

POLICY = MemoryPolicy(reserve=200 * MIB)


def ksm(saved: int, scans: int, run: int = 1) -> KsmSample:
    return KsmSample(run, 100, 20, 1, scans, 10, saved // PAGE, 0, 0, None, None, None, None, None)


def guest(name: str, *, shares: bool = True, size: int = GIB) -> GuestSample:
    promise = Promise(1000, math.inf, 0.0, 5120, 0, sharing=shares, swap=True)
    return GuestSample(name, name, "running", 1, 1, balloon=BalloonSample(maximum=size), run=1, promise=promise)


def aim(
    found: KsmSample, *guests: GuestSample, before: ReclaimMemory | None = None, state: str = "clear"
) -> tuple[ReclaimMemory, KsmAim | None]:
    host = HostSample(2, None, 4 * GIB, GIB, 0, 0, 1, ksm=found)
    now = Snapshot("qemu:///system", 10**11, 0.0, "boot", guests, host)
    known = {one.uuid: ReclaimGuest(1) for one in guests}
    return sharing.decide(now, before, ReclaimMemory(10**11, "boot", state, guests=known), POLICY)


def settled(saved: int, scans: int, *names: str) -> ReclaimMemory:
    guests = {name: ReclaimGuest(1) for name in names}
    return ReclaimMemory(10**11 - 10**9, "boot", "clear", saved=saved, grown_scan=scans, guests=guests)


def test_new_guests_are_looked_through_in_a_hurry() -> None:
    memory, found = aim(ksm(0, 5), guest("a"))
    assert found is not None
    assert found.hurry
    assert found.scan_seconds == sharing.SCAN_SECONDS["clear"]
    assert memory.grown_scan == 5


def test_after_two_passes_that_found_nothing_the_next_are_slow() -> None:
    before = settled(100 * MIB, 5, "a")
    _memory, found = aim(ksm(100 * MIB, 7), guest("a"), before=before)
    assert found is not None
    assert not found.hurry
    assert found.scan_seconds == sharing.SLOW_SCAN
    _memory, found = aim(ksm(100 * MIB, 6), guest("a"), before=before)
    assert found is not None
    assert found.hurry, "one pass looks at what has changed, the next merges it"


def test_a_find_and_a_new_guest_make_it_hurry_again() -> None:
    before = settled(100 * MIB, 5, "a")
    memory, found = aim(ksm(150 * MIB, 9), guest("a"), before=before)
    assert found is not None
    assert found.hurry
    assert (memory.saved, memory.grown_scan) == (150 * MIB, 9)
    _memory, found = aim(ksm(100 * MIB, 9), guest("a"), guest("b"), before=before)
    assert found is not None
    assert found.hurry


def test_a_host_that_is_short_is_looked_through_more_often() -> None:
    slow = {}
    for state in ("clear", "soft", "low"):
        _memory, found = aim(ksm(100 * MIB, 9), guest("a"), before=settled(100 * MIB, 5, "a"), state=state)
        assert found is not None
        slow[state] = found.scan_seconds
    assert slow["clear"] > slow["soft"] == slow["low"]


def test_on_a_host_with_plenty_it_is_not_touched_unless_guests_may_grow_to_more() -> None:
    assert aim(ksm(0, 5), guest("a"), state="high")[1] is None
    found = aim(ksm(0, 5), *(guest(name) for name in "abcde"), state="high")[1]
    assert found is not None
    assert found.run


def test_nobody_who_shares_means_nothing_to_do() -> None:
    assert aim(ksm(0, 5), guest("a", shares=False))[1] is None


def test_what_costs_more_than_it_saves_rests() -> None:
    costly = replace(ksm(0, 5), pages_unshared=1000)
    memory, found = aim(costly, guest("a"))
    assert found is not None
    assert found.run, "its first passes find nothing yet"
    memory, found = aim(replace(costly, full_scans=7), guest("a"), before=memory)
    assert found is not None
    assert not found.run
    _memory, again = aim(replace(costly, full_scans=7, run=0), guest("a"), before=memory)
    assert again is not None
    assert not again.run, "it has not rested long enough"
    rested = replace(memory, unprofitable_until=0)
    _memory, again = aim(replace(costly, full_scans=7, run=0), guest("a"), before=rested)
    assert again is not None
    assert again.run


def test_a_counter_of_passes_that_began_anew_is_no_settled_one() -> None:
    _memory, found = aim(ksm(100 * MIB, 1), guest("a"), before=settled(100 * MIB, 50, "a"))
    assert found is not None
    assert found.hurry


def test_a_hurry_ends_with_the_need_for_it() -> None:
    memory, found = aim(ksm(100 * MIB, 5), guest("a", size=8 * GIB), state="high")
    assert found is not None
    assert found.hurry
    memory, found = aim(ksm(100 * MIB, 6), guest("a"), before=memory, state="high")
    assert found is not None
    assert (found.run, found.hurry, found.scan_seconds) == (True, False, sharing.SLOW_SCAN)
    _memory, found = aim(ksm(100 * MIB, 7), guest("a"), before=memory, state="high")
    assert found is None, "it was told once, and is its owner's then"
