"""What is reserved is never more than there is, and the refusal shows the sum."""

import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.promise import Promise
from kvmctl.model.units import GIB, MIB
from kvmctl.policy.admission import admit_cpu, admit_memory, admit_overcommit, admit_state, admit_unshare
from kvmctl.policy.memory import host_reserve

pytestmark = pytest.mark.unit


def cpu(reservation: float) -> Promise:
    return Promise(1000, math.inf, reservation, 10, 0, sharing=True, swap=True)


def memory(reservation: int) -> Promise:
    return Promise(1000, math.inf, 0.0, 10, reservation, sharing=True, swap=True)


def test_a_refusal_shows_the_sum() -> None:
    verdict = admit_cpu({"web1": cpu(0.5), "web2": cpu(1.0), "idle": cpu(0.0)}, {"new": cpu(1.0)}, 2.0)
    assert not verdict.admitted
    assert (verdict.sum, verdict.capacity) == (2.5, 2.0)
    assert verdict.arithmetic == "web1 0.5 + web2 1 + new 1 = 2.5 > 2 cores"


def test_what_fits_exactly_is_admitted() -> None:
    verdict = admit_cpu({"web1": cpu(0.5)}, {"new": cpu(1.5)}, 2.0)
    assert verdict.admitted
    assert verdict.arithmetic == "web1 0.5 + new 1.5 = 2 <= 2 cores"


def test_what_the_host_keeps_is_named() -> None:
    verdict = admit_cpu({"web1": cpu(0.5)}, {"new": cpu(1.5)}, 2, 0.1)
    assert (verdict.admitted, verdict.capacity) == (False, 1.9)
    assert verdict.arithmetic == "web1 0.5 + new 1.5 = 2 > 1.9 cores (2 of the host less 0.1 that it keeps)"
    assert admit_cpu({"web1": cpu(0.5)}, {"new": cpu(1.4)}, 2, 0.1).admitted


def test_floats_refuse_nobody() -> None:
    running = {f"g{number}": cpu(0.1) for number in range(19)}
    assert sum(0.1 for _ in range(20)) > 2.0
    assert admit_cpu(running, {"new": cpu(0.1)}, 2.0).admitted


def test_a_candidate_takes_the_place_of_its_running_self() -> None:
    verdict = admit_cpu({"web1": cpu(1.5), "web2": cpu(0.5)}, {"web1": cpu(1.0)}, 2.0)
    assert (verdict.admitted, verdict.sum) == (True, 1.5)


def test_what_makes_it_no_worse_is_admitted_on_a_host_that_promised_too_much() -> None:
    running = {"web1": cpu(2.0), "web2": cpu(1.0)}
    assert admit_cpu(running, {"web2": cpu(0.5)}, 2.0).admitted
    assert admit_cpu(running, {"new": cpu(0.0)}, 2.0).admitted
    assert not admit_cpu(running, {"new": cpu(0.001)}, 2.0).admitted


def test_nothing_reserved() -> None:
    assert admit_cpu({}, {"new": cpu(0.0)}, 2.0).arithmetic == "nothing = 0 <= 2 cores"


@given(st.lists(st.integers(0, 4000), max_size=8), st.lists(st.integers(0, 4000), max_size=8), st.integers(1, 16))
def test_admitted_means_that_the_sum_fits_or_does_not_grow(running: list[int], new: list[int], cores: int) -> None:
    there = {f"r{number}": cpu(value / 1000) for number, value in enumerate(running)}
    asked = {f"n{number}": cpu(value / 1000) for number, value in enumerate(new)}
    expected = sum(running) + sum(new) <= cores * 1000 or not sum(new)
    assert admit_cpu(there, asked, float(cores)).admitted == expected


def test_memory_leaves_the_host_its_reserve() -> None:
    verdict = admit_memory({"web1": memory(1 * GIB)}, {"new": memory(3 * GIB)}, 4 * GIB)
    assert not verdict.admitted
    assert (
        verdict.arithmetic
        == "web1 1024 + new 3072 = 4096 > 3850 MiB (4096 MiB of the host less 246 that are not for guests)"
    )
    assert admit_memory({"web1": memory(1 * GIB)}, {"new": memory(3850 * MIB - 1 * GIB)}, 4 * GIB).admitted
    assert not admit_memory({"web1": memory(1 * GIB)}, {"new": memory(3851 * MIB - 1 * GIB)}, 4 * GIB).admitted


def test_memory_that_was_promised_too_often_can_be_given_back() -> None:
    running = {"web1": memory(3 * GIB), "web2": memory(2 * GIB)}
    assert admit_memory(running, {"web2": memory(1536 * MIB)}, 4 * GIB).admitted
    assert not admit_memory(running, {"web2": memory(2049 * MIB)}, 4 * GIB).admitted


def test_memory_for_guests_may_be_less_than_the_host_leaves() -> None:
    assert not admit_memory({}, {"new": memory(2 * GIB)}, 4 * GIB, room=2 * GIB - 1).admitted


def test_what_is_pinned_counts_as_reserved_whole() -> None:
    pinned = replace(memory(1 * GIB), memory_max=3 * GIB, memory_pinned=3 * GIB)
    assert not admit_memory({"web1": memory(1 * GIB)}, {"new": pinned}, 4 * GIB).admitted
    assert "new 3072" in admit_memory({}, {"new": pinned}, 4 * GIB).arithmetic
    assert not admit_memory({"web1": pinned}, {"new": memory(1 * GIB)}, 4 * GIB).admitted


def grows(size: int) -> Promise:
    return replace(memory(0), memory_max=size)


def test_guests_may_grow_to_the_ceiling_and_no_further() -> None:
    running = {"web1": grows(3 * GIB)}
    assert admit_overcommit(running, {"new": grows(3 * GIB)}, 4 * GIB, 1.5).admitted
    verdict = admit_overcommit(running, {"new": grows(3 * GIB + MIB)}, 4 * GIB, 1.5)
    assert not verdict.admitted
    assert verdict.arithmetic == "web1 3072 + new 3073 = 6145 > 6144 MiB (150% of the 4096 MiB for guests)"
    assert admit_overcommit(running, {"new": grows(300 * GIB)}, 4 * GIB, 100.0).admitted


def test_what_runs_beyond_the_ceiling_may_be_made_smaller() -> None:
    running = {"web1": grows(8 * GIB)}
    assert admit_overcommit(running, {"web1": grows(7 * GIB)}, 4 * GIB, 1.5).admitted
    assert not admit_overcommit(running, {"web1": grows(9 * GIB)}, 4 * GIB, 1.5).admitted


def test_free_memory_and_swap_cover_a_part_of_what_would_be_needed_back() -> None:
    assert admit_unshare(2 * GIB, 2 * GIB, 0.25, 512 * MIB, 512 * MIB).admitted
    verdict = admit_unshare(2 * GIB, 2 * GIB, 0.25, 512 * MIB, 511 * MIB)
    assert not verdict.admitted
    assert verdict.arithmetic.startswith("25% of (2048 merged + 2048 ballooned away) = 1024 > 1023 MiB")


def test_what_is_given_back_now_counts_whole_and_not_twice() -> None:
    assert admit_unshare(0, 2 * GIB, 0.25, GIB + 256 * MIB, 0, growth=GIB).admitted
    verdict = admit_unshare(0, 2 * GIB, 0.25, GIB + 256 * MIB - 1, 0, growth=GIB)
    assert not verdict.admitted
    assert verdict.arithmetic == (
        "1024 to be given back now + 25% of (0 merged + 1024 ballooned away) = 1280 > 1279 MiB "
        "(1279 available + 0 of swap)"
    )
    assert admit_unshare(0, 0, 0.25, GIB, 0, growth=GIB).admitted, "what was never ballooned away is not owed"


@given(st.integers(0, GIB), st.integers(0, GIB), st.integers(0, 2 * GIB), st.integers(0, GIB), st.integers(0, GIB))
def test_more_growth_is_never_easier_to_admit(
    shared: int, ballooned: int, available: int, growth: int, more: int
) -> None:
    less = admit_unshare(shared, ballooned, 0.25, available, 0, growth)
    assert less.admitted or not admit_unshare(shared, ballooned, 0.25, available, 0, growth + more).admitted


def test_nothing_is_started_where_memory_is_low() -> None:
    assert admit_state(64 * MIB, 200 * MIB).admitted
    assert not admit_state(63 * MIB, 200 * MIB).admitted


def test_what_a_start_takes_at_once_has_to_be_there_but_for_what_may_be_swapped() -> None:
    assert admit_state(384 * MIB, 200 * MIB, 320 * MIB).admitted
    short = admit_state(383 * MIB, 200 * MIB, 320 * MIB)
    assert not short.admitted
    assert short.arithmetic == "383 - 320 to begin with = 63 MiB available < 64, 32% of the 200 that the host keeps"
    assert admit_state(224 * MIB, 200 * MIB, 320 * MIB, 8192 * MIB).admitted
    assert not admit_state(223 * MIB, 200 * MIB, 320 * MIB, 8192 * MIB).admitted
    assert not admit_state(224 * MIB, 200 * MIB, 320 * MIB, 100 * MIB).admitted


def test_a_refusal_of_many_names_who_asks_and_the_largest_and_sums_the_rest() -> None:
    running = {f"g{number}": memory(number * MIB) for number in range(1, 41)}
    verdict = admit_memory(running, {"small": memory(MIB)}, 1 * GIB, room=512 * MIB)
    assert verdict.arithmetic.startswith(
        "35 guests 630 + g36 36 + g37 37 + g38 38 + g39 39 + g40 40 + small 1 = 821 > 512 MiB ("
    )


_ANY = st.integers(0, 1 << 42)


def numbers(arithmetic: str) -> tuple[list[int], int, str, int]:
    """The terms of a refusal's sum, the sum, the relation and what it is compared with."""
    found = re.fullmatch(r"(?:(.*) = )?(\d+) (?:MiB available )?([<>]=?) (\d+)\b.*", arithmetic)
    assert found, arithmetic
    terms = [int(re.findall(r"\d+", term)[-1]) for term in (found[1] or "").split(" + ") if term != "nothing"]
    return terms, int(found[2]), found[3], int(found[4])


@given(st.lists(_ANY, min_size=1, max_size=12), _ANY, _ANY, st.floats(1.0, 100.0))
def test_every_refusal_adds_up_as_it_is_shown(sizes: list[int], total: int, less: int, ratio: float) -> None:
    running = {"n" + "a" * count: replace(memory(size), memory_max=size) for count, size in enumerate(sizes, 1)}
    asked = {"n": replace(memory(sizes[0]), memory_max=sizes[0])}
    room = max(0, total - less)
    verdicts = [admit_memory(running, asked, total, room), admit_overcommit(running, asked, room, ratio)]
    for verdict in verdicts:
        terms, needed, relation, capacity = numbers(verdict.arithmetic)
        assert sum(terms) == needed == verdict.sum / MIB
        assert capacity == verdict.capacity / MIB
        assert (relation == ">") == (needed > capacity)
        assert verdict.admitted or relation == ">"
    host, kept = map(int, re.findall(r"(\d+) MiB of the host less (-?\d+)", verdicts[0].arithmetic)[0])
    assert host - kept == numbers(verdicts[0].arithmetic)[3]


@given(_ANY, _ANY, st.integers(0, 10_000), _ANY, _ANY, _ANY)
def test_what_would_be_needed_back_adds_up_as_it_is_shown(
    shared: int, ballooned: int, cover: int, available: int, swap: int, growth: int
) -> None:
    verdict = admit_unshare(shared, ballooned, cover / 10_000, available, swap, growth)
    found = re.fullmatch(
        r"(?:(\d+) to be given back now \+ )?([\d.]+)% of \((\d+) merged \+ (\d+) ballooned away\) = "
        r"(\d+) (<=|>) (\d+) MiB \((\d+) available \+ (\d+) of swap\)",
        verdict.arithmetic,
    )
    assert found, verdict.arithmetic
    now, merged, away, needed, there, free, of_swap = (int(found[n] or 0) for n in (1, 3, 4, 5, 7, 8, 9))
    assert needed == now + math.ceil(Fraction(found[2]) / 100 * (merged + away))
    assert there == free + of_swap
    assert (found[6] == "<=") == (needed <= there) == verdict.admitted


@given(_ANY, _ANY, _ANY, _ANY)
def test_what_is_available_adds_up_as_it_is_shown(available: int, reserve: int, taken: int, swap: int) -> None:
    verdict = admit_state(available, reserve, taken, swap)
    found = re.fullmatch(
        r"(\d+)(?: - (\d+) to begin with)?(?: \+ (\d+) to swap)?(?: = (-?\d+))? MiB available (<|>=) (\d+), "
        r"32% of the (\d+) that the host keeps",
        verdict.arithmetic,
    )
    assert found, verdict.arithmetic
    there, begun, swapped, least, kept = (int(found[number] or 0) for number in (1, 2, 3, 6, 7))
    left = there - begun + swapped
    assert found[4] is None or int(found[4]) == left
    assert (found[5] == ">=") == (left >= least) == verdict.admitted
    assert abs(least - 0.32 * kept) <= 1


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(0, 0), (1 * GIB, 62), (4 * GIB, 246), (12 * GIB, 574), (28 * GIB, 902), (100 * GIB, 1639)],
)
def test_the_hosts_reserve_slides_as_that_of_esxi(total: int, reserve: int) -> None:
    assert host_reserve(total) == reserve * MIB


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 40))
def test_the_hosts_reserve_grows_with_the_host_and_is_a_small_part(total: int, more: int) -> None:
    assert host_reserve(total) <= host_reserve(total + more)
    assert host_reserve(total) <= total * 0.06 + MIB
