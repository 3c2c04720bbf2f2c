"""Sentences that are told again and again are told once."""

import pytest

from kvmctl.model.wording import without_amounts

pytestmark = pytest.mark.unit

OLD = "{}: its memory counts whole, what its balloon driver last said is {} s old"
MISSING = "the host is in the state low and {} are missing beyond what balloons give"


def test_what_differs_in_an_amount_or_an_age_is_the_same() -> None:
    assert without_amounts(OLD.format("web1", 16)) == without_amounts(OLD.format("web1", 218))
    assert without_amounts(MISSING.format("35.2MiB")) == without_amounts(MISSING.format("1GiB"))
    assert without_amounts(MISSING.format("0B")) == without_amounts(MISSING.format("512KiB"))


@pytest.mark.parametrize("other", ["web2", "web10", "1", "web-16", "16 s"])
def test_another_guest_is_not_the_same(other: str) -> None:
    assert without_amounts(OLD.format("web1", 16)) != without_amounts(OLD.format(other, 16))
