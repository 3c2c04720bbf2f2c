"""What the kernel's weights miss is made up for, within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.policy.drift import (
    FINEST,
    HORIZON,
    LEAST_FACTOR,
    MOST_FACTOR,
    REMEMBERED,
    UNPAYABLE,
    corrected,
    factors,
    owed,
)

pytestmark = pytest.mark.unit

cores = st.floats(0.01, 8)
windows = st.floats(0.2, 60)


@st.composite
def measured(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, float], float]:
    """What guests were due and what they used, alike in sum, and the window."""
    due = {f"g{number}": value for number, value in enumerate(draw(st.lists(cores, min_size=1, max_size=8)))}
    off = {name: draw(st.floats(0.5, 1.5)) for name in due}
    scale = sum(due.values()) / sum(due[name] * off[name] for name in due)
    return due, {name: due[name] * off[name] * scale for name in due}, draw(windows)


@given(measured())
def test_debts_add_up_to_nothing_and_none_is_more_than_is_remembered(
    found: tuple[dict[str, float], dict[str, float], float],
) -> None:
    due, used, seconds = found
    debts = owed({}, due, used, seconds)
    most = max(seconds, REMEMBERED)
    assert all(abs(debt) <= due[name] * most for name, debt in debts.items())
    if all(abs(debt) < due[name] * most for name, debt in debts.items()):
        assert sum(debts.values()) == pytest.approx(0, abs=1e-6 * seconds * sum(due.values()))


@given(measured(), st.randoms(use_true_random=False))
def test_the_order_of_guests_does_not_matter(
    found: tuple[dict[str, float], dict[str, float], float], random: st.DataObject
) -> None:
    due, used, seconds = found
    names = list(due)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert owed({}, {name: due[name] for name in names}, used, seconds) == pytest.approx(owed({}, due, used, seconds))


@given(measured())
def test_who_got_less_gets_a_larger_weight_and_bounds_hold(
    found: tuple[dict[str, float], dict[str, float], float],
) -> None:
    due, used, seconds = found
    debts = owed({}, due, used, seconds)
    by = factors(debts, due, seconds)
    for name, factor in by.items():
        assert LEAST_FACTOR <= factor <= MOST_FACTOR
        assert (factor > 1) == (debts[name] > 1e-15 * seconds) or factor == pytest.approx(1)


def test_nothing_is_corrected_where_everybody_got_what_was_due() -> None:
    due = {"a": 0.5, "b": 1.5}
    assert owed({}, due, due, 5.0) == {"a": 0.0, "b": 0.0}
    assert factors({"a": 0.0, "b": 0.0}, due, 5.0) == {"a": 1.0, "b": 1.0}
    assert corrected({"a": 3, "b": 9}, {"a": 1.0, "b": 1.0}, 2, 10_000) == {"a": 3, "b": 9}


@given(st.lists(st.floats(-0.06, 0.06), min_size=2, max_size=6), st.integers(1, 4))
def test_a_bias_of_the_kernels_is_gone_after_a_few_windows(biases: list[float], halves: int) -> None:
    """A scheduler that divides by weight, and is then off by a constant part for each guest, ends at what is due."""
    due = {f"g{number}": 0.25 * (number + 1) for number in range(len(biases))}
    total, seconds = sum(due.values()), 2.5 * halves
    debts, by = dict.fromkeys(due, 0.0), dict.fromkeys(due, 1.0)
    used = dict(due)
    for _ in range(12):
        parts = {name: due[name] * by[name] * (1 + bias) for name, bias in zip(due, biases, strict=True)}
        used = {name: part * total / sum(parts.values()) for name, part in parts.items()}
        debts = owed(debts, due, used, seconds)
        by = factors(debts, due, seconds)
    assert used == pytest.approx(due, rel=0.01)


def test_small_weights_are_scaled_up_to_be_corrected_finely() -> None:
    found = corrected({"a": 4, "b": 8}, {"a": 1.01, "b": 0.99}, 2, 10_000)
    assert found["a"] >= FINEST
    assert found["a"] / found["b"] == pytest.approx(4 * 1.01 / (8 * 0.99), rel=0.005)


def test_large_weights_are_scaled_down_into_the_range() -> None:
    found = corrected({"a": 9000, "b": 4500}, {"a": 1.5, "b": 1.5}, 2, 10_000)
    assert found == {"a": 10_000, "b": 5000}


def test_beside_a_weight_that_is_not_ours_nothing_is_scaled() -> None:
    assert corrected({"a": 4, "b": 100}, {"a": 1.0, "b": 1.1}, 2, 10_000, scale=False) == {"a": 4, "b": 110}


def test_what_short_looks_miss_adds_up_and_is_paid_back_over_the_horizon() -> None:
    due, used, debts = {"a": 1.0, "b": 1.0}, {"a": 0.9, "b": 1.1}, {"a": 0.0, "b": 0.0}
    for _ in range(4):
        debts = owed(debts, due, used, 0.25)
    assert debts == pytest.approx({"a": 0.1, "b": -0.1})
    assert factors(debts, due, 0.25) == pytest.approx({"a": 1 + 0.1 / HORIZON, "b": 1 - 0.1 / HORIZON})


def test_who_is_due_all_it_can_use_is_not_owed_what_it_can_never_have() -> None:
    due, used = {"alone": 0.99, "a": 0.5, "b": 0.5}, {"alone": 0.6, "a": 0.7, "b": 0.69}
    ceilings = dict.fromkeys(due, 1.0)
    debts = owed({}, due, used, 5.0, ceilings)
    assert debts["alone"] == pytest.approx(UNPAYABLE * 0.99 + 0.01 * REMEMBERED)
    assert owed({}, due, used, 5.0)["alone"] > 1.9
