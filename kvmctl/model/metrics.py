"""Counters read at one moment, and the rates between two readings. Bytes, seconds and nanoseconds as named;
None is what is not known."""

from dataclasses import dataclass, field

from kvmctl.model.host_sample import KsmSample
from kvmctl.model.sample import GuestSample

OFF = ("stopped", "crashed")
"""States in which a guest has no process, and counters, where there are any, mean nothing."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """One pressure stall file: percent of the last 10 and 60 seconds in which some, or all, tasks waited,
    and the seconds they waited since boot."""

    some_avg10: float
    some_avg60: float
    some_seconds: float
    full_avg10: float | None = None
    full_avg60: float | None = None
    full_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """What went through a disk or a network interface: bytes read or received, written or sent. As counters
    since some start, or, from `rates`, per second."""

    read: float
    written: float


@dataclass(frozen=True, slots=True)
class HostReading:
    """The host's counters and gauges at `taken` monotonic nanoseconds."""

    taken: int
    cpus: int
    cpu_seconds: dict[str, float]
    """Since boot, of all CPUs, by mode as /proc/stat names them."""
    load: tuple[float, float, float]
    memory_total: int
    memory_available: int
    swap_total: int
    swap_used: int
    swap: Flow
    """Bytes swapped in (read) and out (written)."""
    disks: dict[str, Flow]
    networks: dict[str, Flow]
    pressure: dict[str, Pressure]
    """By resource: `cpu`, `memory`, `io`; without those this kernel does not account."""
    ksm: KsmSample | None


@dataclass(frozen=True, slots=True)
class GuestReading:
    """One guest's counters at `taken` monotonic nanoseconds."""

    taken: int
    sample: GuestSample
    block: Flow | None
    network: Flow | None


@dataclass(frozen=True, slots=True)
class HostRates:
    """Between two readings. `cpu` is percent of all CPUs by mode, `busy` all but `idle` and `iowait`."""

    seconds: float
    busy: float | None
    cpu: dict[str, float]
    swap: Flow
    disks: dict[str, Flow] = field(default_factory=dict)
    networks: dict[str, Flow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GuestRates:
    """Between two readings. `cores` is CPU time a second of the whole guest, `steal` what its vCPUs waited for."""

    cores: float | None
    steal: float | None
    block: Flow | None
    network: Flow | None


def host_rates(before: HostReading, after: HostReading) -> HostRates:
    """Rates between two readings of the same host. What appeared in between is left out."""
    seconds = (after.taken - before.taken) / 1e9
    spent = {mode: after.cpu_seconds[mode] - before.cpu_seconds.get(mode, 0.0) for mode in after.cpu_seconds}
    # A kernel may correct idle and iowait downwards.
    spent = {mode: max(0.0, value) for mode, value in spent.items()}
    total = sum(spent.values())
    percent = {mode: 100 * value / total for mode, value in spent.items()} if total else {}
    idle = percent.get("idle", 0.0) + percent.get("iowait", 0.0)
    return HostRates(
        seconds=seconds,
        busy=100 - idle if percent else None,
        cpu=percent,
        swap=_flow(before.swap, after.swap, seconds) or Flow(0, 0),
        disks=_flows(before.disks, after.disks, seconds),
        networks=_flows(before.networks, after.networks, seconds),
    )


def guest_rates(before: GuestReading | None, after: GuestReading) -> GuestRates:
    """Rates between two readings of one guest; all None where it is new, or was off at one of them."""
    if before is None or before.sample.state in OFF or after.sample.state in OFF:
        return GuestRates(None, None, None, None)
    seconds = (after.taken - before.taken) / 1e9
    return GuestRates(
        cores=_rate(_seconds(before.sample.cpu_time), _seconds(after.sample.cpu_time), seconds),
        steal=_rate(_steal(before.sample), _steal(after.sample), seconds),
        block=_flow(before.block, after.block, seconds),
        network=_flow(before.network, after.network, seconds),
    )


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _steal(sample: GuestSample) -> float | None:
    return None if sample.vcpu_delay is None else sum(sample.vcpu_delay) / 1e9


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    """A counter that fell was started anew, so it says nothing of the time before."""
    if before is None or after is None or after < before or seconds <= 0:
        return None
    return (after - before) / seconds


def _flow(before: Flow | None, after: Flow | None, seconds: float) -> Flow | None:
    if before is None or after is None:
        return None
    read, written = _rate(before.read, after.read, seconds), _rate(before.written, after.written, seconds)
    return None if read is None or written is None else Flow(read, written)


def _flows(before: dict[str, Flow], after: dict[str, Flow], seconds: float) -> dict[str, Flow]:
    rates = {name: _flow(before.get(name), flow, seconds) for name, flow in after.items()}
    return {name: flow for name, flow in rates.items() if flow is not None}
