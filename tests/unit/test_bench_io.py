"""The arithmetic of the I/O bench."""

from __future__ import annotations

import struct

import pytest

from tests.bench.io import CEILINGS, show
from tests.bench.ioguest import Done, _checksum

pytestmark = pytest.mark.unit


def test_what_was_done_as_rates() -> None:
    done = Done(operations=500, bytes=1 << 20, seconds=2.0, cpu=0.5)
    assert (done.iops, done.rate) == (250.0, 524288.0)


def test_an_echo_request_with_its_checksum_sums_to_nothing() -> None:
    header = struct.pack("!BBHHH", 8, 0, 0, 0x1234, 7) + bytes(48)
    whole = header[:2] + struct.pack("!H", _checksum(header)) + header[4:]
    assert _checksum(whole) == 0


def test_the_table_compares_medians(capsys: pytest.CaptureFixture[str]) -> None:
    found = show({"emulated": [{"x": 1.0}, {"x": 9.0}, {"x": 2.0}], "paravirtual": [{"x": 6.0}, {"x": 4.0}]})
    assert found == {"x": {"emulated": 2.0, "paravirtual": 5.0, "ratio": 2.5}}
    assert "2.50" in capsys.readouterr().out


def test_each_ceiling_is_written_as_the_number_that_is_expected() -> None:
    from kvmctl.model.entries import assignment
    from kvmctl.model.fields import Context

    for _what, field, wanted, written, _read in CEILINGS:
        assert assignment(field, written, Context()).value == wanted
