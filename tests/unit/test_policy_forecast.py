"""How long a move takes, reckoned: rounds that shrink, and guests that change as fast as is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.units import MIB
from kvmctl.policy.forecast import DOWNTIME, forecast

pytestmark = pytest.mark.unit

sizes = st.integers(0, 1 << 40)
rates = st.integers(0, 1 << 36)
speeds = st.integers(1 << 20, 1 << 36)


def test_an_idle_guest_takes_one_round() -> None:
    found = forecast(1000 * MIB, 0, 100 * MIB, None, overhead=1.5)
    assert found.seconds == pytest.approx(11.5)
    assert (found.rounds, found.downtime, found.converges) == (1, 0.0, True)
    assert found.sent == 1000 * MIB


def test_a_busy_guest_takes_several() -> None:
    # 10 s, in which 500 MiB change; 5 s: 250; 2.5 s: 125; 1.25: 62.5; 0.625: 31.25, which fits into 0.5 s.
    found = forecast(1000 * MIB, 50 * MIB, 100 * MIB, 0.5)
    assert found.rounds == 5
    assert found.downtime == pytest.approx(0.3125)
    assert found.seconds == pytest.approx(10 + 5 + 2.5 + 1.25 + 0.625 + 0.3125)


def test_a_guest_that_changes_as_fast_does_not_end() -> None:
    assert not forecast(1000 * MIB, 100 * MIB, 100 * MIB, None).converges
    assert forecast(1000 * MIB, 100 * MIB, 100 * MIB, 60).converges


def test_one_changed_page_of_a_sample_is_no_rate() -> None:
    slow = MIB
    assert forecast(400 << 10, 2 * MIB, slow, None).converges
    assert not forecast(400 << 10, 4 * MIB, slow, None).converges


def test_one_that_is_slowed_down_does() -> None:
    plain, slowed = (forecast(100 * MIB, 24 * MIB, 16 * MIB, None, auto_converge=one) for one in (False, True))
    assert not plain.converges
    assert slowed.converges
    assert slowed.throttled >= 20
    assert slowed.seconds > plain.seconds
    # Half of what it changes goes over: nothing is to be slowed down.
    assert forecast(1000 * MIB, 40 * MIB, 100 * MIB, None, auto_converge=True).throttled == 0


def test_one_that_goes_on_at_the_target_has_one_round() -> None:
    found = forecast(100 * MIB, 24 * MIB, 16 * MIB, None, post_copy=True)
    assert (found.converges, found.rounds, found.downtime) == (True, 1, 0.0)
    assert found.seconds == pytest.approx(2 * 100 / 16)
    assert forecast(100 * MIB, 0, 16 * MIB, None, post_copy=True) == forecast(100 * MIB, 0, 16 * MIB, None)


def test_what_fits_into_the_downtime_needs_no_round() -> None:
    found = forecast(10 * MIB, 1 << 40, 100 * MIB, None)
    assert (found.rounds, found.converges) == (0, True)
    assert found.downtime < DOWNTIME


def test_disks_come_before() -> None:
    plain, copied = forecast(MIB, 0, MIB, None), forecast(MIB, 0, MIB, None, disks=10 * MIB)
    assert copied.seconds == pytest.approx(plain.seconds + 10)
    assert copied.sent == plain.sent + 10 * MIB


@given(sizes, st.none() | rates, speeds, st.none() | st.floats(0.001, 100), sizes)
def test_laws(memory: int, rate: int | None, speed: int, downtime: float | None, disks: int) -> None:
    found = forecast(memory, rate, speed, downtime, disks)
    assert found.seconds >= (memory + disks) / speed * 0.999
    assert found.sent >= memory + disks
    assert not found.converges or found.downtime <= (DOWNTIME if downtime is None else downtime)
    assert forecast(memory, rate, 2 * speed, downtime, disks).downtime <= max(found.downtime, DOWNTIME, downtime or 0)
    if not rate:
        assert found.converges
    slowed = forecast(memory, rate, speed, downtime, disks, auto_converge=True)
    assert not found.converges or slowed.converges
    assert 0 <= slowed.throttled <= 99
    assert forecast(memory, rate, speed, downtime, disks, post_copy=True).converges
