from __future__ import annotations

import pytest

from kvmctl.cli.meter import duration, line

pytestmark = pytest.mark.unit

MIB = 1 << 20


def test_what_share_rate_and_time_left() -> None:
    assert line("copy", 25 * MIB, 100 * MIB, 5.0) == "copy  25% of 100MiB  5MiB/s  15 s left"
    assert line("copy", 100 * MIB, 100 * MIB, 5.0) == "copy  100% of 100MiB  20MiB/s"
    assert line("copy", 0, 100 * MIB, 0.0) == "copy  0% of 100MiB  0B/s"
    assert line("save", 0, 0, 9.0) == "save"
    assert line("copy", 300 * MIB, 100 * MIB, 5.0).startswith("copy  100%")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1 s"), (59.4, "59 s"), (60, "1 min 0 s"), (185, "3 min 5 s"), (7621, "2 h 7 min")]
)
def test_a_time_as_people_read_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
