"""The sum that a copied image is verified by."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmctl.control.move_copy import BLOCK, Sum
from kvmctl.hypervisor.copying import Piece

pytestmark = pytest.mark.unit

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.integers(1, 3 * BLOCK),
        st.sampled_from([b"\0" * BLOCK, b"x" * BLOCK, b"\0" * (BLOCK - 1), b"y" * (2 * BLOCK + 7)]),
    ),
    max_size=6,
)


def total(pieces: list[Piece]) -> tuple[int, str]:
    found = Sum()
    for piece in pieces:
        found.add(piece)
    return found.result()


def content(pieces: list[Piece]) -> bytes:
    return b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in pieces)


@settings(deadline=None)  # of a megabyte, beside other work
@given(PIECES, st.integers(997, 100_000))
def test_it_is_of_the_content_and_not_of_how_that_came(pieces: list[Piece], size: int) -> None:
    whole = content(pieces)
    cut: list[Piece] = [whole[begin : begin + size] for begin in range(0, len(whole), size)]
    assert total(pieces) == total(cut)
    assert total(pieces)[0] == len(whole)


@settings(deadline=None)  # of a megabyte, beside other work
@given(PIECES, st.data())
def test_every_byte_counts(pieces: list[Piece], data: st.DataObject) -> None:
    other = bytearray(content(pieces) or b"\0")
    at = data.draw(st.integers(0, len(other) - 1))
    before = total([bytes(other)])
    other[at] ^= 1
    assert total([bytes(other)]) != before
    assert total([bytes(other), 1]) != total([bytes(other)])
