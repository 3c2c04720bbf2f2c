import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.model.units import (
    GIB,
    KIB,
    MAX_SIZE,
    MIB,
    TIB,
    format_cores,
    format_size,
    human_size,
    parse_cores,
    parse_size,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1K", KIB),
        ("1KiB", KIB),
        ("512M", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("2G", 2 * GIB),
        ("2 GiB", 2 * GIB),
        ("3T", 3 * TIB),
        ("3TiB", 3 * TIB),
        ("1KB", 1000),
        ("2MB", 2_000_000),
        ("2GB", 2_000_000_000),
        ("1TB", 10**12),
        ("0MiB", 0),
        ("007MiB", 7 * MIB),
        ("1048576TiB", MAX_SIZE),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.5G", "whole number"),
        ("4Gi", "unknown unit 'Gi'"),
        ("-1", "not a size"),
        ("-1MiB", "not a size"),
        ("0", "no unit"),
        ("1024", "no unit"),
        ("4Ｇ", "not a size"),
        ("４G", "not a size"),
        ("1e3M", "not a size"),
        ("99999999999G", "larger than any host"),
        ("9" * 5000 + "MiB", "larger than any host"),
        ("9" * 5000, "no unit"),
        ("1048577TiB", "larger than any host"),
        ("", "not a size"),
        ("MiB", "not a size"),
        ("1 MiB ", "not a size"),
        ("1  MiB", "not a size"),
        ("1\nMiB", "not a size"),
        ("1mib", "unknown unit"),
        ("0x10M", "not a size"),
        ("1_000M", "not a size"),
        ("1,5G", "not a size"),
    ],
)
def test_a_size_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


@given(st.integers(0, MAX_SIZE // KIB).map(lambda number: number * KIB))
def test_a_size_in_whole_kib_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(1, MAX_SIZE))
def test_a_size_is_written_exactly_or_not_read_back(size: int) -> None:
    text = format_size(size)
    if size % KIB:
        with pytest.raises(ValueError, match="whole number"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0MiB"), (1536 * MIB, "1536MiB"), (GIB, "1GiB"), (1000, "0.9765625KiB"), (10**9 + 1, "976562.5009765625KiB")],
)
def test_exact_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1536 * MIB, "1.5GiB"), (512 * MIB, "512MiB"), (5 * TIB, "5TiB")],
)
def test_sizes_in_tables(size: int | None, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("1.5", 1.5),
        ("150%", 1.5),
        ("2400MHz", 1.2),
        ("2.4GHz", 1.2),
        ("0", 0),
        ("7%", 0.07),
        ("2 GHz", 1.0),
    ],
)
def test_cores(text: str, cores: float) -> None:
    assert parse_cores(text, base_mhz=2000) == cores


@pytest.mark.parametrize(
    "text", ["", "-1", "1e3", "nan", "inf", "1.5.0", ".5", "1.", "150 %%", "２", "1,5", "0x1", "1" * 30]
)
def test_an_amount_of_cpu_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount of CPU"):
        parse_cores(text, base_mhz=2000)


@pytest.mark.parametrize("base_mhz", [None, 0.0])
def test_a_clock_needs_a_base_clock(base_mhz: float | None) -> None:
    with pytest.raises(ValueError, match="base clock is unknown"):
        parse_cores("2400MHz", base_mhz)
    assert parse_cores("150%", base_mhz) == 1.5


@pytest.mark.parametrize(
    ("cores", "text"), [(2.0, "2"), (0.5, "0.5"), (1 / 3, "0.333"), (0.0, "0"), (100.0, "100"), (math.inf, "unlimited")]
)
def test_cores_as_text(cores: float, text: str) -> None:
    assert format_cores(cores) == text


@given(st.integers(0, 10**7))
def test_cores_in_thousandths_are_read_back(thousandths: int) -> None:
    assert parse_cores(format_cores(thousandths / 1000)) == thousandths / 1000
