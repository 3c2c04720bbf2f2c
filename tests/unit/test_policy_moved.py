"""Where a guest is after a move that may have been cut off."""

from __future__ import annotations

import itertools

import pytest

from kvmctl.model.migration import Presence
from kvmctl.policy.moved import UNKNOWN, Seen, settle

pytestmark = pytest.mark.unit

ON = Presence(True, "running", True)
PAUSED = Presence(True, "paused", True)
TRANSIENT = Presence(True, "running", False)
ARRIVING = Presence(True, "paused", False, moving_in=True)
OFF = Presence(False, "stopped", True)
ALL: tuple[Seen, ...] = (ON, PAUSED, TRANSIENT, ARRIVING, OFF, None, UNKNOWN)


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [
        (None, ON, "moved"),
        (OFF, ON, "moved"),
        (OFF, TRANSIENT, "moved"),
        (None, OFF, "moved"),
        (ON, None, "stayed"),
        (ON, UNKNOWN, "stayed"),
        (ON, OFF, "stayed"),
        (ON, ARRIVING, "stayed"),
        (PAUSED, None, "stayed"),
        (OFF, None, "stayed"),
        (ON, ON, "unclear"),
        (PAUSED, ON, "unclear"),
        (None, None, "gone"),
        (UNKNOWN, ON, "unclear"),
        (None, UNKNOWN, "unclear"),
        (PAUSED, UNKNOWN, "unclear"),
    ],
)
def test_places(source: Seen, target: Seen, place: str) -> None:
    assert settle(source, target, False).place == place


def test_what_is_left_to_do() -> None:
    assert settle(OFF, TRANSIENT, False).define_at_target
    assert settle(OFF, TRANSIENT, False).undefine_source
    assert not settle(None, ON, False).undefine_source
    assert settle(ON, OFF, False).undefine_target
    assert settle(OFF, OFF, True).place == "moved"
    assert settle(OFF, OFF, True).undefine_source
    assert settle(OFF, OFF, False).undefine_target


@pytest.mark.parametrize(("source", "target"), list(itertools.product(ALL, ALL)))
@pytest.mark.parametrize("offline", [False, True])
def test_no_guest_is_lost(source: Seen, target: Seen, offline: bool) -> None:
    found = settle(source, target, offline)
    assert bool(found.text) == (found.place in ("unclear", "gone"))
    if found.undefine_source:
        assert isinstance(target, Presence), "the only definition is kept"
        assert isinstance(source, Presence)
        assert not source.active
    if found.undefine_target:
        assert isinstance(source, Presence)
        assert isinstance(target, Presence)
        assert not target.active
    assert not (found.undefine_source and found.undefine_target)
