"""One frame of `kvmctl top`: host and running guests at one moment. Amounts of CPU are cores, sizes bytes, parts per
cent; None is unknown."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TopGuest:
    """One running guest."""

    name: str
    uuid: str
    state: str
    vcpus: int
    shares: int | None = None
    limit: float | None = None
    reservation: float | None = None
    entitlement: float | None = None
    """While every guest wants what it does now."""
    bound: str | None = None
    """What decides the entitlement."""
    weight: int | None = None
    """As in the kernel's file."""
    used: float | None = None
    waited: float | None = None
    """Cores that its vCPUs were runnable for and did not run on."""
    steal: float | None = None
    """The same, in per cent of its vCPUs' time."""
    max: int | None = None
    balloon: int | None = None
    resident: int | None = None
    shared: int | None = None
    """What of its resident memory is merged by KSM."""
    swapped: int | None = None
    cpu_pressure: float | None = None
    """Per cent of the last 10 seconds in which some of its threads waited."""
    memory_pressure: float | None = None


@dataclass(frozen=True, slots=True)
class TopHost:
    """The host, and what its guests make of it."""

    cores: int
    capacity: float
    """Cores that the guests may use."""
    reserved: float
    used: float | None = None
    """Cores that all running guests used together."""
    steal: float | None = None
    """Of the time of all the guests' vCPUs."""
    busy: float | None = None
    """Of the time of all the host's CPUs, with what is not its guests'."""
    stolen: float | None = None
    """Of the same, what the host had to leave to other machines, where it is a guest itself."""
    memory_state: str | None = None
    """How short of memory it is, from `high` to `low`."""
    memory_total: int | None = None
    memory_available: int | None = None
    memory_guests: int | None = None
    """What the guests may reserve together."""
    guests_max: int | None = None
    """What the running guests may grow to."""
    overcommit: float | None = None
    """The same as a multiple of the memory for guests."""
    swap_total: int | None = None
    swap_used: int | None = None
    swap_in: float | None = None
    """Bytes a second."""
    swap_out: float | None = None
    ksm_saved: int | None = None
    cpu_pressure: float | None = None
    """Per cent of the last 10 seconds in which some task waited."""
    memory_pressure: float | None = None
    io_pressure: float | None = None


@dataclass(frozen=True, slots=True)
class TopFrame:
    """Everything that is shown at once. `time` is seconds since the epoch; rates are over `seconds`, None in the
    first frame."""

    uri: str
    time: float
    seconds: float | None
    host: TopHost
    guests: tuple[TopGuest, ...]
