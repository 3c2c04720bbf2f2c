import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.host_sample import HostSample, Snapshot
from kvmctl.model.plan import GuestMemory, Memory
from kvmctl.model.sample import GuestSample
from kvmctl.policy.parent import (
    ALL_BUSY,
    DEFAULT_WEIGHT,
    MOST_MEASURED,
    TOLERANCE,
    WEIGHT_RANGE,
    assumed_weight,
    competing_weight,
    cores_used,
    is_due,
    kept_cores,
    measured_weight,
    parent_weight,
)

pytestmark = pytest.mark.unit

versions = st.sampled_from([1, 2])
cpus = st.integers(1, 256)
parts = st.floats(0.01, 0.5)
"""Of all CPUs, what is kept for the host."""


def kernel(weight: int, competing: float, count: int) -> tuple[float, float]:
    """What guests and the others use when all of them want CPU on every CPU."""
    guests = count * weight / (weight + competing)
    return guests, count - guests


@given(versions, cpus, parts, st.integers(1, 100))
def test_guests_get_their_capacity_and_the_others_the_rest(version: int, count: int, part: float, times: int) -> None:
    capacity, competing = count * (1 - part), times * DEFAULT_WEIGHT[version]
    weight = parent_weight(version, capacity, count - capacity, competing)
    assert WEIGHT_RANGE[version][0] <= weight <= WEIGHT_RANGE[version][1]
    if weight < WEIGHT_RANGE[version][1]:
        assert kept_cores(weight, competing, count) == pytest.approx(capacity, rel=0.005)
    else:
        assert kept_cores(weight, competing, count) <= capacity * 1.005


@given(versions, cpus, parts, parts, st.integers(1, 1000), st.integers(1, 1000))
def test_more_capacity_or_more_competition_never_means_less_weight(
    version: int, count: int, one: float, other: float, few: int, more: int
) -> None:
    less, most = sorted((one, other))
    few, more = sorted((few * 100, more * 100))
    assert parent_weight(version, count * (1 - most), count * most, few) <= parent_weight(
        version, count * (1 - less), count * less, few
    )
    assert parent_weight(version, count * (1 - less), count * less, few) <= parent_weight(
        version, count * (1 - less), count * less, more
    )


@pytest.mark.parametrize(
    ("version", "count", "reserve", "competing", "weight"),
    [
        (1, 2, 0.1, 1024, 19_456),
        (1, 2, 0.1, 2048, 38_912),
        (2, 2, 0.1, 300, 5_700),
        (1, 64, 1.28, 64 * 1024, 262_144),
        (2, 64, 1.28, 300, 10_000),
        (2, 2, 0.0, 100, 10_000),
        (1, 2, 1.0, 1024, 1024),
    ],
)
def test_weights(version: int, count: int, reserve: float, competing: int, weight: int) -> None:
    assert parent_weight(version, count - reserve, reserve, competing) == weight


@pytest.mark.parametrize(
    ("busy", "weight", "used"),
    [(1, 19_456, 0.0951), (1, 38_912, 0.0489), (2, 38_912, 0.0982), (2, 19_456, 0.1871), (3, 38_912, 0.1439)],
)
def test_the_law_is_what_was_measured_with_busy_tasks_on_two_cpus(busy: int, weight: int, used: float) -> None:
    """One task is on one CPU, where half of the parent's weight lies."""
    places = min(busy, 2)
    each = 1024 * busy / places
    assert places * each / (each + weight / 2) == pytest.approx(used, rel=0.025)


@pytest.mark.parametrize(("count", "reserve", "lost"), [(64, 1.28, 0.020), (2, 0.1, 0.048)])
def test_what_twice_the_competition_costs(count: int, reserve: float, lost: float) -> None:
    capacity = count - reserve
    weight = capacity / reserve * 1000
    assert 1 - count * weight / (weight + 2000) / capacity == pytest.approx(lost, abs=0.001)


def test_what_is_expected() -> None:
    assert competing_weight(1, [], alone=True) == 1024
    assert competing_weight(1, [1024, 512], alone=True) == 2560
    assert competing_weight(2, [100, 100, 100], alone=False) == 300
    assert competing_weight(2, [], alone=False) == 100
    assert competing_weight(1, [2], alone=False) == 1024


@given(versions, cpus, parts, st.floats(1, MOST_MEASURED), st.floats(0.2, 5))
def test_one_measurement_finds_the_right_weight_and_the_second_changes_nothing(
    version: int, count: int, part: float, times: float, first: float
) -> None:
    """Whatever the parent weighs at first, and as much as `times` what was expected competes with it."""
    expected, capacity = 10 * DEFAULT_WEIGHT[version], count * (1 - part)
    real = times * expected
    present = max(WEIGHT_RANGE[version][0], round(first * parent_weight(version, capacity, count - capacity, expected)))
    for _ in range(2):
        measured = measured_weight(present, *kernel(present, real, count), count)
        wanted = parent_weight(version, capacity, count - capacity, assumed_weight(expected, measured))
        assert measured == pytest.approx(real, rel=0.01)
        present, before = wanted, present
    assert not is_due(before, wanted, keep_more=False)
    if wanted < WEIGHT_RANGE[version][1]:
        assert kernel(wanted, real, count)[0] == pytest.approx(capacity, rel=0.01)


def test_nothing_is_measured_while_cpus_are_idle() -> None:
    assert measured_weight(1024, 0.5, 0.4, 2) is None
    assert measured_weight(1024, 0.0, 2.0, 2) is None
    assert measured_weight(1024, 2 * ALL_BUSY - 0.5, 0.5, 2) is not None
    assert assumed_weight(2048, None) == 2048


def test_what_takes_cpu_whatever_weighs_how_much_does_not_raise_the_weight_without_end() -> None:
    """Half a core of interrupts, tick after tick."""
    present = 38_912
    for _ in range(20):
        measured = measured_weight(present, 1.5, 0.5, 2)
        present = parent_weight(1, 1.9, 0.1, assumed_weight(2048, measured))
    assert present == MOST_MEASURED * 38_912


def snapshot(busy: int | None, *guests: tuple[str, int, int | None, str]) -> Snapshot:
    """Seconds of CPU of the whole host, and of guests: UUID, run, seconds, state."""
    host = HostSample(
        cpus=2, base_mhz=None, memory_total=1, memory_available=1, swap_total=0, swap_free=0, cgroup_version=1,
        busy=None if busy is None else busy * 10**9,
    )  # fmt: skip
    samples = tuple(
        GuestSample(uuid, uuid, state, 1, 1, run=run, cpu_time=None if time is None else time * 10**9)
        for uuid, run, time, state in guests
    )
    return Snapshot("qemu:///system", 0, 0.0, "boot", samples, host)


BEFORE = Memory(0, "boot", 100 * 10**9, None, {"a": GuestMemory(7, 10 * 10**9, (), None)})


def test_what_was_used_is_the_guests_and_the_rest() -> None:
    assert cores_used(snapshot(110, ("a", 7, 18, "running")), BEFORE, 5) == (1.6, 0.4)
    assert cores_used(snapshot(110, ("a", 7, 18, "running"), ("off", 0, None, "stopped")), BEFORE, 5) == (1.6, 0.4)
    assert cores_used(snapshot(107, ("a", 7, 18, "running")), BEFORE, 5) == (1.6, 0.0)


@pytest.mark.parametrize(
    ("now", "before", "seconds"),
    [
        (snapshot(110, ("a", 7, 18, "running")), None, 5),
        (snapshot(110, ("a", 7, 18, "running")), BEFORE, 0),
        (snapshot(None, ("a", 7, 18, "running")), BEFORE, 5),
        (snapshot(110, ("a", 8, 18, "running")), BEFORE, 5),
        (snapshot(110, ("a", 7, None, "running")), BEFORE, 5),
        (snapshot(110, ("a", 7, 18, "running"), ("b", 1, 3, "running")), BEFORE, 5),
    ],
)
def test_what_was_used_is_unknown(now: Snapshot, before: Memory | None, seconds: float) -> None:
    assert cores_used(now, before, seconds) is None


@given(st.integers(2, 262_144), st.integers(2, 262_144))
def test_what_is_near_enough_is_left(present: int, wanted: int) -> None:
    near = abs(present - wanted) <= TOLERANCE * wanted
    assert is_due(present, wanted, keep_more=False) is not near
    assert is_due(present, wanted, keep_more=True) is (not near and present < wanted)
    assert is_due(None, wanted, keep_more=True)
