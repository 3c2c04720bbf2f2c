"""A guest's balloon driver is believed as far as what it says can be, and as what it is told comes about."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.reclaim import ReclaimGuest
from kvmctl.model.sample import BalloonSample
from kvmctl.model.units import MIB
from kvmctl.policy import driver

pytestmark = pytest.mark.unit

SECOND = 10**9
STUCK = round(driver.STUCK_SECONDS * SECOND)
SAID = BalloonSample(current=512 * MIB, maximum=512 * MIB, available=500 * MIB, usable=300 * MIB, last_update=1)


def test_what_can_be_is_believed() -> None:
    assert driver.impossible(SAID) == ""
    assert driver.impossible(replace(SAID, usable=None)) == ""
    assert driver.impossible(replace(SAID, available=None)) == ""


@pytest.mark.parametrize(
    "lie",
    [replace(SAID, usable=513 * MIB, available=600 * MIB), replace(SAID, usable=501 * MIB), replace(SAID, current=0)],
)
def test_what_cannot_be_is_not(lie: BalloonSample) -> None:
    assert "usable" in driver.impossible(lie)


@pytest.mark.parametrize("current", [513 * MIB, (1 << 64) - 4096])
def test_a_balloon_that_gives_more_than_there_is_is_not_believed(current: int) -> None:
    assert "more memory than it was started with" in driver.impossible(replace(SAID, current=current))


def after(memory: ReclaimGuest, *looks: tuple[int, int]) -> ReclaimGuest:
    """What is remembered after looks at the balloon: what it leaves in MiB, and when in seconds."""
    for actual, taken in looks:
        memory = driver.followed(memory, actual * MIB, taken * SECOND)
    return memory


ASKED = driver.told(after(ReclaimGuest(1), (512, 100)), 400 * MIB, 100 * SECOND)


def test_a_balloon_that_stands_still_is_stuck_and_one_that_crawls_is_not() -> None:
    still = after(ASKED, (512, 110), (512, 121))
    assert driver.is_stuck(still, 121 * SECOND)
    assert not driver.is_stuck(after(ASKED, (512, 119)), 119 * SECOND)
    crawls = after(ASKED, (510, 115), (508, 130), (506, 145))
    assert not driver.is_stuck(crawls, 145 * SECOND)
    assert driver.is_stuck(after(crawls, (506, 166)), 166 * SECOND)


def test_to_be_told_again_is_no_new_beginning() -> None:
    again = driver.told(after(ASKED, (512, 110)), 380 * MIB, 110 * SECOND)
    assert driver.is_stuck(after(again, (512, 121)), 121 * SECOND)


def test_a_balloon_that_arrived_or_was_let_go_is_not_stuck() -> None:
    for actual in (400, 399):
        arrived = after(ASKED, (actual, 115), (actual, 200))
        assert arrived.target is None
        assert not driver.is_stuck(arrived, 200 * SECOND)
    released = driver.told(ASKED, 512 * MIB, 110 * SECOND)
    assert not driver.is_stuck(after(released, (512, 150)), 150 * SECOND)


def test_a_stuck_balloon_is_tried_again_after_a_while() -> None:
    still = after(ASKED, (512, 121))
    assert driver.is_stuck(still, 121 * SECOND)
    later = 100 + round(driver.AGAIN_SECONDS) + 1
    assert not driver.is_stuck(after(still, (512, later)), later * SECOND)


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 10)), max_size=20))
def test_a_balloon_that_takes_more_at_every_look_is_never_stuck(steps: list[tuple[int, int]]) -> None:
    memory, taken, actual = ASKED, 100, 512
    for more, seconds in steps:
        taken, actual = taken + seconds, max(1, actual - more)
        memory = after(memory, (actual, taken))
        assert not driver.is_stuck(memory, taken * SECOND)


def test_a_balloon_that_takes_and_gives_back_again_and_again_is_stuck() -> None:
    begun = driver.told(ReclaimGuest(1, actual=384 * MIB), 160 * MIB, 0)
    looks = [(240 + second % 2, second) for second in range(1, 30)]
    assert driver.is_stuck(after(begun, *looks), 30 * SECOND)
    slow = [(384 - second, 15 * second) for second in range(1, 9)]
    assert not driver.is_stuck(after(begun, *slow), 8 * 15 * SECOND + SECOND)
