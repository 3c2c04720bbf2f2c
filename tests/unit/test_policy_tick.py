"""One tick's decision: what is changed, what is left, and that a second look at the same changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.host_sample import HostSample, ProcessSample, Snapshot
from kvmctl.model.hostpolicy import CpuPolicy, HostPolicy
from kvmctl.model.plan import Memory, Plan
from kvmctl.model.promise import Promise
from kvmctl.model.sample import GuestSample
from kvmctl.policy.drift import UNPAYABLE
from kvmctl.policy.tick import decide, window

pytestmark = pytest.mark.unit

SECOND = 1_000_000_000
POLICY = HostPolicy()


def guest(
    name: str,
    *,
    shares: int = 1000,
    reservation: float = 0.0,
    limit: float = math.inf,
    vcpus: int = 1,
    weight: int | None = 1000,
    used: float = 0.0,
    waited: float = 0.0,
    rebalance: bool = True,
    state: str = "running",
) -> GuestSample:
    """`used` and `waited` are seconds since the guest was started, of all vCPUs together."""
    return GuestSample(
        name,
        f"uuid-{name}",
        state,
        vcpus,
        vcpus,
        cpu_time=round(used * SECOND),
        vcpu_time=tuple(round(used * SECOND / vcpus) for _ in range(vcpus)),
        vcpu_delay=tuple(round(waited * SECOND / vcpus) for _ in range(vcpus)),
        persistent=True,
        run=7,
        promise=Promise(shares, limit, reservation, 10, 0, sharing=True, swap=True, rebalance=rebalance),
        process=ProcessSample(1, weight),
    )


def snapshot(*guests: GuestSample, seconds: float = 100.0, cpus: int = 2, busy: float | None = None) -> Snapshot:
    spent = sum(guest.cpu_time or 0 for guest in guests) if busy is None else round(busy * SECOND)
    host = HostSample(cpus, None, 0, 0, 0, 0, 1, online=frozenset(range(cpus)), busy=spent)
    return Snapshot("qemu:///system", round(seconds * SECOND), 0.0, "boot", guests, host)


def weights(now: Snapshot, plan: Plan) -> dict[str, int]:
    """What the guests would weigh once the plan is done."""
    before = {guest.name: guest.process.weight for guest in now.guests if guest.process}
    after = {change.guest: change.new for change in plan.changes if change.how == "live"}
    return {name: int(str(after.get(name, weight))) for name, weight in before.items()}


def done(now: Snapshot, plan: Plan) -> Snapshot:
    """The same moment, after the plan was applied."""
    new = weights(now, plan)
    guests = tuple(
        replace(guest, process=replace(guest.process, weight=new[guest.name])) if guest.process else guest
        for guest in now.guests
    )
    return replace(now, guests=guests)


def test_without_a_memory_weights_are_what_they_are_worth_when_all_are_hungry() -> None:
    now = snapshot(guest("a", shares=2000), guest("b"), guest("c", reservation=0.8))
    found = weights(now, decide(now, None, POLICY))
    assert found["a"] == 2 * found["b"]
    assert found["c"] / sum(found.values()) >= 0.8 / 1.75


def test_a_tick_on_a_host_without_guests_is_empty() -> None:
    plan = decide(snapshot(), None, POLICY)
    assert (plan.changes, plan.notes) == ((), ())


def test_what_a_hungry_guest_was_owed_is_in_its_next_weight_with_the_reason() -> None:
    first = snapshot(*(guest(name) for name in "abcd"))
    memory = decide(first, None, POLICY).memory
    later = snapshot(
        guest("a", used=2.0, waited=3.0), *(guest(name, used=2.6, waited=2.4) for name in "bcd"), seconds=105
    )
    plan = decide(later, memory, POLICY)
    found = weights(later, plan)
    assert found["a"] > found["b"] == found["c"] == found["d"]
    assert "so corrected by +" in next(change.reason for change in plan.changes if change.guest == "a")


def test_correction_can_be_switched_off() -> None:
    first = snapshot(*(guest(name) for name in "abcd"))
    off = HostPolicy(CpuPolicy(correct="off"))
    memory = decide(first, None, off).memory
    later = snapshot(guest("a", used=2.0, waited=3.0), *(guest(n, used=2.6, waited=2.4) for n in "bcd"), seconds=105)
    assert decide(later, memory, off).changes == ()


def test_a_sleeping_guest_is_owed_nothing_and_its_unused_reservation_is_for_the_hungry() -> None:
    first = snapshot(guest("asleep", reservation=1.0), guest("a", shares=2000), guest("b"), guest("c"))
    plan = decide(first, None, POLICY)
    first = done(first, plan)
    later = snapshot(
        replace(guest("asleep", reservation=1.0, used=0.1), process=first.guests[0].process),
        guest("a", shares=2000, used=2.4, waited=2.6),
        guest("b", used=1.2, waited=3.8),
        guest("c", used=1.2, waited=3.8),
        seconds=105,
        busy=4.9,
    )
    second = decide(later, plan.memory, POLICY)
    assert second.memory.guests["uuid-asleep"].owed == 0
    found = weights(later, second)
    assert found["a"] / found["b"] == pytest.approx(2, rel=0.03)
    assert found["asleep"] / sum(found.values()) >= 1.0 / 2.0 * 0.999


def test_a_guest_that_wakes_up_still_has_its_reservation() -> None:
    """Its weight is worth the reservation also while it wants nothing, so nobody has to notice that it woke up."""
    first = snapshot(guest("asleep", shares=1, reservation=0.9), *(guest(name, shares=10_000) for name in "abc"))
    memory = decide(first, None, POLICY).memory
    later = snapshot(
        guest("asleep", shares=1, reservation=0.9, used=0.01),
        *(guest(name, shares=10_000, used=3.3, waited=1.7) for name in "abc"),
        seconds=105,
        busy=10.0,
    )
    found = weights(later, decide(later, memory, POLICY))
    assert found["asleep"] / sum(found.values()) >= 0.9 / 2.0 * 0.999


def test_counters_that_began_anew_measure_nothing() -> None:
    first = snapshot(guest("a", used=50.0), guest("b", used=50.0))
    memory = decide(first, None, POLICY).memory
    again = snapshot(replace(guest("a", used=1.0), run=8), guest("b", used=53.0, waited=2.0), seconds=105)
    plan = decide(again, memory, POLICY)
    assert plan.memory.guests["uuid-a"].owed == 0
    assert plan.changes == ()


@pytest.mark.parametrize(("boot", "seconds"), [("other", 105.0), ("boot", 100.1), ("boot", 90.0), ("boot", 100_000.0)])
def test_a_memory_that_does_not_fit_is_no_window(boot: str, seconds: float) -> None:
    """Another boot, a moment ago, a clock that went back, or so long ago that it says nothing."""
    memory = replace(decide(snapshot(guest("a")), None, POLICY).memory, boot=boot)
    assert window(snapshot(guest("a"), seconds=seconds), memory) == 0


def test_unknown_is_not_zero() -> None:
    """A guest without counters counts as hungry, and keeps the others from being corrected by halves."""
    first = snapshot(*(guest(name) for name in "abc"))
    memory = decide(first, None, POLICY).memory
    blind = replace(guest("a"), cpu_time=None, vcpu_delay=None)
    later = snapshot(blind, guest("b", used=1.0, waited=4.0), guest("c", used=4.0, waited=1.0), seconds=105)
    plan = decide(later, memory, POLICY)
    assert plan.changes == ()
    assert plan.memory.guests["uuid-a"].demand is None


def test_a_guest_whose_definition_could_not_be_read_is_left_and_named() -> None:
    plan = decide(snapshot(replace(guest("a", weight=5), promise=None), guest("b")), None, POLICY)
    assert "a" not in {change.guest for change in plan.changes}
    assert plan.notes == ("a: its definition could not be read, so it is left as it is",)


def test_a_guest_whose_cgroup_vanished_is_left_and_named() -> None:
    plan = decide(snapshot(guest("a", weight=None), guest("b", weight=7)), None, POLICY)
    assert [change.guest for change in plan.changes] == ["b"]
    assert plan.notes == ("a: its weight cannot be read, so it is left as it is",)
    assert decide(snapshot(guest("a", weight=None)), None, POLICY).notes == ()


@pytest.mark.parametrize(
    "left", [guest("a", weight=5, rebalance=False), replace(guest("a", weight=5), persistent=False)]
)
def test_a_guest_that_opted_out_or_is_transient_keeps_its_weight(left: GuestSample) -> None:
    plan = decide(snapshot(left, guest("b", weight=7)), None, POLICY)
    assert [change.guest for change in plan.changes] == ["b"]


def test_what_somebody_else_set_is_said_and_corrected_or_respected() -> None:
    now = snapshot(replace(guest("a", weight=77), weight_set=1000), guest("b"))
    corrected = decide(now, None, POLICY).changes
    assert [(change.how, change.new) for change in corrected] == [("live", 1000)]
    assert corrected[0].reason.startswith("it was last given 1000, and somebody else set 77; ")
    respected = decide(now, None, HostPolicy(CpuPolicy(foreign="respect"))).changes
    assert [(change.how, change.new) for change in respected] == [("refused", 1000)]


def test_reservations_that_no_longer_fit_are_said_and_shared() -> None:
    """A core went off-line."""
    now = snapshot(guest("a", reservation=0.9), guest("b", reservation=0.9), cpus=1)
    plan = decide(now, None, POLICY)
    assert any(note.startswith("1.8 cores are reserved of the 0.75 that guests can have") for note in plan.notes)
    found = weights(now, plan)
    assert found["a"] == found["b"]


def test_cpu_that_the_host_does_not_use_is_for_the_guests() -> None:
    """A reserve is what the host gets when it wants it: what a reservation is worth follows what is really there."""
    names = "abcd"
    first = snapshot(guest("a", reservation=0.8), *(guest(name) for name in names[1:]))
    memory = decide(first, None, POLICY).memory
    used = {"a": 4.0, "b": 2.0, "c": 2.0, "d": 2.0}
    quiet = snapshot(
        guest("a", reservation=0.8, used=used["a"], waited=1.0),
        *(guest(name, used=used[name], waited=3.0) for name in names[1:]),
        seconds=105,
        busy=10.0,
    )
    plan = decide(quiet, memory, POLICY)
    assert plan.memory.others == 0
    found = weights(quiet, plan)
    assert found["a"] / sum(found.values()) == pytest.approx(0.4, rel=0.01)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """Two looks at the same guests, five seconds apart."""
    count = draw(st.integers(0, 6))
    kinds = [
        {
            "shares": draw(st.integers(1, 10_000)),
            "reservation": draw(st.floats(0, 1.8 / max(1, count))),
            "limit": draw(st.sampled_from([math.inf, 0.9, 0.5])),
            "vcpus": draw(st.integers(1, 3)),
            "weight": draw(st.integers(2, 10_000)),
            "rebalance": draw(st.booleans()),
            "state": draw(st.sampled_from(["running", "running", "paused"])),
        }
        for _ in range(count)
    ]
    moves = [(draw(st.floats(0, 5)), draw(st.floats(0, 5))) for _ in range(count)]
    first = snapshot(*(guest(f"g{n}", **kind) for n, kind in enumerate(kinds)))  # type: ignore[arg-type]
    second = snapshot(
        *(
            guest(f"g{n}", used=moves[n][0], waited=moves[n][1], **kind)  # type: ignore[arg-type]
            for n, kind in enumerate(kinds)
        ),
        seconds=105,
        busy=draw(st.floats(0, 10)),
    )
    return first, second


@given(hosts())
def test_a_second_decision_on_what_was_done_changes_nothing(pair: tuple[Snapshot, Snapshot]) -> None:
    first, second = pair
    plan = decide(first, None, POLICY)
    assert decide(done(first, plan), plan.memory, POLICY).changes == ()
    plan = decide(second, plan.memory, POLICY)
    assert decide(done(second, plan), plan.memory, POLICY).changes == ()


@given(hosts(), st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(pair: tuple[Snapshot, Snapshot], random: st.DataObject) -> None:
    def shuffled(now: Snapshot) -> Snapshot:
        guests = list(now.guests)
        random.shuffle(guests)  # type: ignore[attr-defined]
        return replace(now, guests=tuple(guests))

    first, second = pair
    memory = decide(first, None, POLICY).memory
    one = decide(second, memory, POLICY)
    other = decide(shuffled(second), decide(shuffled(first), None, POLICY).memory, POLICY)
    assert {c.guest: c.new for c in one.changes} == pytest.approx({c.guest: c.new for c in other.changes}, abs=1)


@given(hosts())
def test_every_change_has_a_reason_and_is_of_a_guest_that_may_be_changed(pair: tuple[Snapshot, Snapshot]) -> None:
    first, second = pair
    plan = decide(second, decide(first, None, POLICY).memory, POLICY)
    mine = {guest.name for guest in second.guests if guest.promise and guest.promise.rebalance}
    assert {change.guest for change in plan.changes} <= mine
    assert all(change.reason for change in plan.changes)
    assert isinstance(plan.memory, Memory)


def test_in_a_short_window_a_waiting_guest_is_hungry_though_its_account_is_behind() -> None:
    first = snapshot(*(guest(name) for name in "abcd"))
    memory = decide(first, None, POLICY).memory
    # 0.23 s of 0.3 s: the kernel counts the rest when the vCPU runs again.
    later = snapshot(
        guest("a", used=0.05, waited=0.18), *(guest(name, used=0.18, waited=0.12) for name in "bcd"), seconds=100.3
    )
    found = decide(later, memory, POLICY).memory.guests["uuid-a"]
    assert found.demand == 1.0
    assert found.owed > 0
    assert found.factor > 1


def test_a_guest_that_does_not_reach_its_limit_is_owed_the_rest() -> None:
    def at(seconds: float, used: float, waited: float) -> Snapshot:
        others = (guest(name, used=1.575 * used / 0.35, waited=seconds) for name in "bc")
        return snapshot(guest("a", limit=0.4, used=used, waited=waited), *others, seconds=100 + seconds)

    memory = decide(at(0, 0, 0), None, POLICY).memory
    found = decide(at(5, 5 * 0.35, 5 * 0.65), memory, POLICY).memory.guests["uuid-a"]
    assert found.owed == pytest.approx(UNPAYABLE * 0.4, rel=0.01)
    assert found.factor > 1.04
