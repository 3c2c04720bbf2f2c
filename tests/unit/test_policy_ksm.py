"""What KSM saves, and why it saves no more."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.host_sample import KsmSample
from kvmctl.model.promise import Promise
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import GIB, MIB
from kvmctl.policy.ksm import explain, pass_seconds, profit, saved
from kvmctl.policy.memory import is_fresh, overcommit_ratio, used

pytestmark = pytest.mark.unit

KSM = KsmSample(
    run=1, pages_to_scan=2000, sleep_millisecs=10, merge_across_nodes=1, full_scans=5, pages_shared=100,
    pages_sharing=900, pages_unshared=50, pages_volatile=10, general_profit=None, use_zero_pages=0,
    ksm_zero_pages=0, smart_scan=1, advisor_mode="none",
)  # fmt: skip
NONE_SAVED = replace(KSM, pages_shared=0, pages_sharing=0)


def guest(name: str, sharing: bool = True, rss: int | None = 256 * MIB) -> GuestSample:
    promise = Promise(1000, math.inf, 0.0, 10, 0, sharing=sharing, swap=True)
    return GuestSample(name, f"uuid of {name}", "running", 1, 1, BalloonSample(rss=rss), promise=promise)


def test_saved_counts_sharing_and_zero_pages() -> None:
    assert saved(KSM) == 900 * 4096
    assert saved(replace(KSM, ksm_zero_pages=100)) == 1000 * 4096
    assert saved(replace(KSM, ksm_zero_pages=None)) == 900 * 4096


def test_profit_is_the_kernels_where_it_tells() -> None:
    assert profit(replace(KSM, general_profit=-5)) == -5
    assert profit(KSM) == 900 * 4096 - (900 + 100 + 50 + 10) * 64


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_profit_never_exceeds_what_is_saved(sharing: int, unshared: int, volatile: int) -> None:
    sample = replace(KSM, pages_sharing=sharing, pages_unshared=unshared, pages_volatile=volatile)
    assert profit(sample) <= saved(sample)


def test_pass_at_the_kernels_defaults() -> None:
    """100 pages every 20 ms are 19.5 MiB a second."""
    assert pass_seconds(replace(KSM, pages_to_scan=100, sleep_millisecs=20), 3 * GIB) == pytest.approx(157.3, abs=0.1)


def test_all_is_well() -> None:
    assert explain(KSM, [guest("a"), guest("b")]) == ("KSM saves 3.5MiB: 1000 pages are kept as 100",)


def test_merging_that_finds_no_equal_pages() -> None:
    assert explain(NONE_SAVED, [guest("a")]) == (
        "KSM saves nothing",
        "its bookkeeping takes 3.8KiB more than it saves (general_profit is negative)",
    )
    none_seen = replace(NONE_SAVED, pages_unshared=0, pages_volatile=0)
    assert explain(none_seen, [guest("a")])[1] == "all memory was looked at: no two pages in it are equal"


@pytest.mark.parametrize(
    ("ksm", "guests", "reason"),
    [
        (replace(NONE_SAVED, run=0), [guest("a")], "it is off (run is 0): kvmctl ksm enable"),
        (replace(NONE_SAVED, run=2), [guest("a")], "it is told to undo all merging (run is 2): kvmctl ksm enable"),
        (NONE_SAVED, [], "no guest is running"),
        (
            NONE_SAVED,
            [guest("a", sharing=False)],
            "no running guest shares its memory: kvmctl set GUEST memory.sharing=true",
        ),
        (KSM, [guest("a"), guest("b", sharing=False)], "b does not share memory (memory.sharing is false)"),
        (
            replace(NONE_SAVED, full_scans=0),
            [guest("a")],
            "the first pass over the guests' memory is not over (full_scans is 0)",
        ),
        (
            replace(KSM, pages_to_scan=100, sleep_millisecs=20),
            [guest("a", rss=4 * GIB), guest("b", rss=None)],
            "one pass over 4GiB takes at least 210 s at 100 pages every 20 ms",
        ),
        (
            replace(KSM, general_profit=-2 * MIB),
            [guest("a")],
            "its bookkeeping takes 2MiB more than it saves (general_profit is negative)",
        ),
        (
            replace(KSM, merge_across_nodes=0),
            [guest("a")],
            "pages merge only within each of the 2 NUMA nodes (merge_across_nodes is 0): "
            "kvmctl ksm enable --merge-across-nodes",
        ),
    ],
)
def test_every_reason_is_named(ksm: KsmSample, guests: list[GuestSample], reason: str) -> None:
    assert reason in explain(ksm, guests, nodes=2)


def test_one_node_makes_merge_across_nodes_no_reason() -> None:
    assert len(explain(replace(KSM, merge_across_nodes=0), [guest("a")], nodes=1)) == 1


def test_huge_pages_never_merge() -> None:
    found = explain(replace(NONE_SAVED, full_scans=0), [guest("a")], hugepages={"a"})
    assert found == ("KSM saves nothing", "the memory of a is on huge pages, which never merge")


def test_many_names_are_cut() -> None:
    many = [guest(f"g{number}", sharing=False) for number in range(8)]
    assert "g0, g1, g2, g3, g4 and 3 more do not share memory" in explain(KSM, [guest("a"), *many])[1]


def test_what_a_switched_off_ksm_could_do_is_not_guessed() -> None:
    found = explain(replace(NONE_SAVED, run=0, full_scans=0, pages_to_scan=1), [guest("a", rss=64 * GIB)])
    assert found == ("KSM saves nothing", "it is off (run is 0): kvmctl ksm enable")


@pytest.mark.parametrize(
    ("update", "period", "fresh"),
    [(None, 5, False), (0, 5, False), (1000, 5, True), (985, 5, True), (984, 5, False), (999, 0, False)],
)
def test_old_statistics_are_not_believed(update: int | None, period: int, fresh: bool) -> None:
    assert is_fresh(BalloonSample(last_update=update), 1000.0, period) is fresh


def test_used_is_unknown_where_a_part_is() -> None:
    # What a guest with `autodeflate` sees is all that it has, whatever its balloon holds.
    assert used(BalloonSample(current=100, available=400, usable=30)) == 70
    assert used(BalloonSample(current=100)) is None
    assert used(BalloonSample(usable=30)) is None


def test_overcommit_ratio_is_of_what_guests_may_grow_to() -> None:
    assert overcommit_ratio([2 * GIB, 4 * GIB], 4 * GIB) == 1.5
    assert overcommit_ratio([], 4 * GIB) == 0.0
    assert overcommit_ratio([2 * GIB, None], 4 * GIB) is None
