import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.policy.parent import DEFAULT_WEIGHT, WEIGHT_RANGE
from kvmctl.policy.threads import thread_weights

pytestmark = pytest.mark.unit


@given(st.sampled_from([1, 2]), st.integers(2, 10_000), st.integers(1, 64))
def test_a_vcpu_gets_ten_elevenths_beside_all_helpers(version: int, vcpu: int, helpers: int) -> None:
    found = thread_weights(version, vcpu, helpers)
    least, most = WEIGHT_RANGE[version]
    assert least <= found.helper <= most
    assert least <= found.vcpu <= most
    assert found.vcpu / (found.vcpu + helpers * found.helper) >= 10 / 11
    assert found.vcpu >= vcpu
    assert found.vcpu == vcpu or found.raised or vcpu < DEFAULT_WEIGHT[version]


@given(st.sampled_from([1, 2]), st.integers(2, 10_000), st.integers(1, 64))
def test_the_second_time_nothing_is_left_to_do(version: int, vcpu: int, helpers: int) -> None:
    found = thread_weights(version, vcpu, helpers)
    assert thread_weights(version, found.vcpu, helpers) == found


@pytest.mark.parametrize(
    ("version", "helpers", "helper", "vcpu"),
    [(1, 1, 102, 1024), (1, 2, 51, 1024), (1, 52, 2, 1040), (2, 1, 10, 100), (2, 10, 1, 100), (2, 11, 1, 110)],
)
def test_weights(version: int, helpers: int, helper: int, vcpu: int) -> None:
    found = thread_weights(version, DEFAULT_WEIGHT[version], helpers)
    assert (found.helper, found.vcpu) == (helper, vcpu)
