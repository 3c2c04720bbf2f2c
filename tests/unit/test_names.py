import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.names import MAX_NAME, check_name
from tests.strategies import guest_names

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["web1", "1a", "_x", "a.b", "vm+1", "a-b", "A", "a" * MAX_NAME])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        ("a/b", "not usable"),
        ("..", "not usable"),
        (".hidden", "not usable"),
        ("-rf", "not usable"),
        ("--force", "not usable"),
        (" ", "not usable"),
        ("a b", "not usable"),
        ("1", "all digits"),
        ("0042", "all digits"),
        ('a<b>&"c"', "not usable"),
        ("a\n", "not usable"),
        ('a<b>&"c"\nd', "not usable"),
        ("a\0", "not usable"),
        ("é", "not usable"),
        ("１", "not usable"),
        ("a" * 64, "64 characters"),
        ("a" * 300, "300 characters"),
        ("a\ud800", "not usable"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_name(name)


@given(guest_names)
def test_the_names_of_the_tests_are_good(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=80))
def test_whatever_passes_is_safe_in_a_path_and_an_argument(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/\\ <>&\"'$`;|*?~\n")
    assert not name.startswith(("-", "."))
    assert not name.isdigit()
