"""The host's memory over time: what one tick saw of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """The host and its running guests at one moment. Bytes; None is unknown. Of guests it is their sum."""

    total: int | None
    """What the host has."""
    available: int | None
    state: str | None = None
    """The host's, such as `high` or `soft`."""
    size: int | None = None
    """What the guests may grow to."""
    balloon: int | None = None
    """What their balloons leave them."""
    resident: int | None = None
    """What their processes have in the host's memory; a merged page counts for each guest that has it."""
    shared: int | None = None
    """What of that is merged by KSM."""
    swapped: int | None = None
    ksm_saved: int | None = None
    """What more the host would need, were nothing merged."""


@dataclass(frozen=True, slots=True)
class TrendRecord:
    """A point with the hypervisor that it is of. `time` is seconds since the epoch."""

    time: float
    uri: str
    point: TrendPoint
