"""Which host CPUs a guest can be pinned to."""

import pytest

from kvmctl.model.cpuset import HostCpus
from kvmctl.policy.pinning import unusable

pytestmark = pytest.mark.unit

HOST = HostCpus(present=frozenset(range(8)), online=frozenset({0, 2, 4, 5}))


@pytest.mark.parametrize("cpus", [{0}, {0, 1}, {1, 2, 3}, set(range(8))])
def test_one_that_is_on_line_is_enough(cpus: set[int]) -> None:
    assert unusable(cpus, HOST) == ""


@pytest.mark.parametrize(
    ("cpus", "why"),
    [
        ({8}, "names CPU 8, which this host does not have: it has 0-7"),
        ({0, 9, 10, 12}, "names CPUs 9-10,12, which this host does not have: it has 0-7"),
        ({1}, "names CPU 1, which is off-line: on-line here are 0,2,4-5"),
        ({6, 7}, "names CPUs 6-7, which are off-line: on-line here are 0,2,4-5"),
    ],
)
def test_what_a_host_has_not_or_not_now(cpus: set[int], why: str) -> None:
    assert unusable(cpus, HOST) == why


def test_a_host_with_one_cpu_left() -> None:
    left = HostCpus(present=frozenset({0, 1}), online=frozenset({0}))
    assert unusable({1}, left) == "names CPU 1, which is off-line: on-line here is 0"
