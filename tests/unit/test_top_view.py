from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.cli.top_view import View, is_cut_off, keys, matches
from kvmctl.model.top import TopGuest

pytestmark = pytest.mark.unit


def guest(name: str, used: float | None = 0.0, resident: int | None = 0, steal: float | None = 0.0) -> TopGuest:
    return TopGuest(name, f"uuid-{name}", "running", 2, used=used, resident=resident, steal=steal)


GUESTS = [
    guest("web2", used=0.5, resident=300, steal=1.0),
    guest("db", used=1.5, resident=100, steal=None),
    guest("web1", used=0.5, resident=None, steal=9.0),
    guest("Cache", used=None, resident=200, steal=2.0),
]


def names(view: View) -> list[str]:
    return [one.name for one in view.shown(GUESTS)]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("c", ["db", "web1", "web2", "Cache"]),
        ("m", ["web2", "Cache", "db", "web1"]),
        ("n", ["Cache", "db", "web1", "web2"]),
        ("s", ["web1", "Cache", "web2", "db"]),
    ],
)
def test_a_key_sorts_the_largest_first_the_unknown_last_and_equal_ones_by_name(key: str, order: list[str]) -> None:
    view = View(rows=10)
    assert not view.press(key)
    assert names(view) == order


@given(st.permutations(GUESTS), st.sampled_from(["cpu", "memory", "name", "steal"]))
def test_the_order_in_which_guests_come_does_not_matter(guests: list[TopGuest], sort: str) -> None:
    assert View(sort=sort, rows=10).shown(guests) == View(sort=sort, rows=10).shown(GUESTS)


def test_a_typed_filter_counts_at_once_and_escape_gives_the_former_one_back() -> None:
    view = View(sort="name", rows=10)
    for key in keys("/WEB"):
        view.press(key)
    assert names(view) == ["web1", "web2"]
    assert view.typing
    for key in keys("q\x7f1\r"):
        assert not view.press(key), "a q in a filter is a letter"
    assert (view.filter, view.typing, names(view)) == ("WEB1", False, ["web1"])
    for key in keys("/\x15db\x1b"):
        view.press(key)
    assert (view.filter, view.typing) == ("WEB1", False)
    view.press("\x1b")
    assert len(names(view)) == 4


@pytest.mark.parametrize(
    ("pattern", "passes"),
    [("", True), ("eb", True), ("WEB-1", True), ("web?1", True), ("eb*", False), ("*1", True), ("[x]", False)],
)
def test_a_filter_is_a_part_or_a_glob(pattern: str, passes: bool) -> None:
    assert matches("web-1", pattern) == passes


def test_arrows_and_pages_scroll_and_stop_at_the_ends() -> None:
    guests = [guest(f"g{number:02}") for number in range(20)]
    view = View(sort="name", rows=8)

    def at(text: str) -> list[int]:
        for key in keys(text):
            view.press(key)
        return [int(one.name[1:]) for one in view.shown(guests)]

    assert at("") == list(range(8))
    assert at("\x1b[B\x1b[B\x1bOA") == list(range(1, 9))
    assert at("\x1b[6~") == list(range(9, 17))
    assert at("\x1b[6~\x1b[6~") == list(range(12, 20))
    assert at("\x1b[A") == list(range(11, 19))
    assert at("\x1b[F") == list(range(12, 20))
    assert at("\x1b[5~") == list(range(4, 12))
    assert at("\x1b[H\x1b[A") == list(range(8))


def test_a_list_that_became_shorter_is_shown_to_its_end() -> None:
    view = View(sort="name", rows=3, offset=17)
    assert [one.name for one in view.shown([guest(f"g{number}") for number in range(5)])] == ["g2", "g3", "g4"]
    assert view.shown([]) == []


@given(st.text())
def test_no_key_breaks_anything_and_only_q_ends_it(text: str) -> None:
    view = View(rows=2)
    for key in keys(text):
        typing = view.typing
        assert view.press(key) == (key in "qQ" and not typing)
        view.shown(GUESTS)


def test_a_key_of_several_characters_is_one_key() -> None:
    assert keys("a\x1b[A\x1b[5~\x1bOB\x1bq") == ["a", "\x1b[A", "\x1b[5~", "\x1bOB", "\x1b", "q"]
    assert [is_cut_off(text) for text in ("\x1b", "a\x1b[", "\x1b[5", "\x1bO", "\x1b[A", "q", "")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip
