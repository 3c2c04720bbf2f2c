import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.cpuset import MAX_ID, format_cpuset, parse_cpuset
from tests.strategies import cpusets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0", {0}),
        ("0-3,8,^2", {0, 1, 3, 8}),
        ("0-3, 8", {0, 1, 2, 3, 8}),
        ("4-4", {4}),
        ("0-7,^2-5", {0, 1, 6, 7}),
        ("1,^1,1", {1}),
        ("4095", {4095}),
    ],
)
def test_reads(text: str, ids: set[int]) -> None:
    assert parse_cpuset(text) == ids


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a set"),
        ("a", "not a set"),
        ("1,,2", "not a set"),
        ("-1", "not a set"),
        ("1-", "not a set"),
        ("1 2", "not a set"),
        ("１", "not a set"),
        ("3-1", "runs backwards: 3-1"),
        ("4096", f"the highest number possible is {MAX_ID}"),
        ("0-99999999", "names CPU 99999999"),
        ("^1", "takes out 1"),
        ("^2,0-3", "takes out 2"),
        ("0-3,^5", "takes out 5"),
        ("1,^1", "without any CPU"),
    ],
)
def test_refuses_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("^", r"\^")):
        parse_cpuset(text)


@pytest.mark.parametrize(
    ("ids", "text"), [(set(), ""), ({1}, "1"), ({0, 1}, "0-1"), ({8, 0, 1, 3}, "0-1,3,8"), ({2, 4, 6}, "2,4,6")]
)
def test_writes_the_canonical_form(ids: set[int], text: str) -> None:
    assert format_cpuset(ids) == text


@given(cpusets)
def test_what_is_written_is_read_back(ids: frozenset[int]) -> None:
    assert parse_cpuset(format_cpuset(ids)) == ids


@given(st.text(st.sampled_from("0123456789,-^ "), max_size=30) | st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        ids = parse_cpuset(text)
    except ValueError:
        return
    assert ids
    assert parse_cpuset(format_cpuset(ids)) == ids
