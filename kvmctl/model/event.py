"""Something that happened to a guest, as the hypervisor told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KINDS = (
    "lifecycle",
    "balloon",
    "reboot",
    "watchdog",
    "io-error",
    "control-error",
    "memory-failure",
    "device",
    "agent",
    "metadata",
    "tuning",
    "migration",
    "job",
)
"""What can be followed, each for itself."""


@dataclass(frozen=True)
class Event:
    """One event: `time` in seconds since 1970, `event` in one word, `detail` in words for people.

    `values` is the same for programs, by keys that stay: bytes, seconds, names.
    """

    time: float
    guest: str
    uuid: str
    event: str
    detail: str | None
    values: Mapping[str, object]
