"""One reading of host and guests in Prometheus' text format, for node_exporter's textfile collector.

Counters are given as they are: rates are Prometheus' own business. What is not known has no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvmctl.host.files import PAGE_SIZE
from kvmctl.model.host_sample import KsmSample
from kvmctl.model.metrics import Flow, GuestReading, HostReading, Pressure

Values: TypeAlias = Mapping[str, float | None]
"""The value of each label; an unlabelled metric has the one label value ``""``."""


class _Families(Collector):
    """A collector of what was read already: nothing is measured while Prometheus' client writes."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposition(host: HostReading | None, guests: Sequence[GuestReading] | None) -> bytes:
    """The text format of one reading. `host` is None for a hypervisor on another machine, `guests` where
    the hypervisor did not answer."""
    registry = CollectorRegistry()
    registry.register(_Families([*_up(guests), *(_host(host) if host else ()), *_guests(guests or ())]))
    text: bytes = generate_latest(registry)
    return text


def _gauge(name: str, text: str, values: Values, label: str = "") -> Iterator[Metric]:
    yield from _family(GaugeMetricFamily(f"kvmctl_{name}", text, labels=[label] if label else []), values)


def _counter(name: str, text: str, values: Values, label: str = "") -> Iterator[Metric]:
    yield from _family(CounterMetricFamily(f"kvmctl_{name}", text, labels=[label] if label else []), values)


def _family(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Iterator[Metric]:
    for label, value in values.items():
        if value is not None:
            family.add_metric([label] if label else [], value)
    if family.samples:
        yield family


def _up(guests: Sequence[GuestReading] | None) -> Iterator[Metric]:
    yield from _gauge("up", "Whether the hypervisor answered.", {"": float(guests is not None)})


def _host(host: HostReading) -> Iterator[Metric]:
    yield from _gauge("host_cpus", "Hardware threads of the host.", {"": host.cpus})
    yield from _counter("host_cpu_seconds", "CPU time of the host since boot, by mode.", host.cpu_seconds, "mode")
    load = dict(zip(("1", "5", "15"), host.load, strict=True))
    yield from _gauge("host_load", "Load average of the host, by minutes.", load, "minutes")
    yield from _gauge("host_memory_size_bytes", "Memory of the host.", {"": host.memory_total})
    yield from _gauge("host_memory_available_bytes", "Memory available on the host.", {"": host.memory_available})
    yield from _gauge("host_swap_size_bytes", "Swap space of the host.", {"": host.swap_total})
    yield from _gauge("host_swap_used_bytes", "Swap space in use.", {"": host.swap_used})
    yield from _counter("host_swap_in_bytes", "Bytes swapped in since boot.", {"": host.swap.read})
    yield from _counter("host_swap_out_bytes", "Bytes swapped out since boot.", {"": host.swap.written})
    yield from _flows("host_disk", ("read", "written"), "disk", host.disks, "device")
    yield from _flows("host_network", ("received", "sent"), "network interface", host.networks, "device")
    yield from _pressure(host.pressure)
    yield from _ksm(host.ksm) if host.ksm else ()


def _flows(
    prefix: str, ways: tuple[str, str], what: str, flows: Mapping[str, Flow | None], label: str
) -> Iterator[Metric]:
    for way, part in zip(ways, ("read", "written"), strict=True):
        values = {name: getattr(flow, part) for name, flow in flows.items() if flow is not None}
        yield from _counter(f"{prefix}_{way}_bytes", f"Bytes {way}, by {what}.", values, label)


def _pressure(pressure: Mapping[str, Pressure]) -> Iterator[Metric]:
    some = {name: value.some_seconds for name, value in pressure.items()}
    full = {name: value.full_seconds for name, value in pressure.items()}
    yield from _counter("host_pressure_some_seconds", "Time some tasks waited for a resource.", some, "resource")
    yield from _counter("host_pressure_full_seconds", "Time all tasks waited for a resource.", full, "resource")


def _ksm(ksm: KsmSample) -> Iterator[Metric]:
    yield from _gauge("host_ksm_run", "KSM's switch: 0 stopped, 1 merging, 2 unmerged.", {"": ksm.run})
    yield from _gauge("host_ksm_shared_bytes", "Memory that merged pages use.", {"": ksm.pages_shared * PAGE_SIZE})
    yield from _gauge("host_ksm_sharing_bytes", "Memory that merging saves.", {"": ksm.pages_sharing * PAGE_SIZE})
    yield from _gauge("host_ksm_profit_bytes", "What merging saves less its own need.", {"": ksm.general_profit})
    yield from _counter("host_ksm_full_scans", "Passes over all mergeable memory.", {"": ksm.full_scans})


def _guests(guests: Sequence[GuestReading]) -> Iterator[Metric]:
    state = GaugeMetricFamily("kvmctl_guest_state", "1 for the state the guest is in.", labels=["guest", "state"])
    for guest in guests:
        state.add_metric([guest.sample.name, guest.sample.state], 1)
    yield from [state] if guests else []
    yield from _guest_cpu(guests)
    yield from _guest_memory(guests)
    block = {guest.sample.name: guest.block for guest in guests}
    network = {guest.sample.name: guest.network for guest in guests}
    yield from _flows("guest_block", ("read", "written"), "guest", block, "guest")
    yield from _flows("guest_network", ("received", "sent"), "guest", network, "guest")


def _guest_cpu(guests: Sequence[GuestReading]) -> Iterator[Metric]:
    time = {g.sample.name: None if g.sample.cpu_time is None else g.sample.cpu_time / 1e9 for g in guests}
    delays = {g.sample.name: g.sample.vcpu_delay for g in guests}
    steal = {name: None if delay is None else sum(delay) / 1e9 for name, delay in delays.items()}
    weight = {g.sample.name: g.sample.process.weight for g in guests if g.sample.process}
    yield from _gauge("guest_vcpus", "vCPUs of the guest.", {g.sample.name: g.sample.vcpus for g in guests}, "guest")
    yield from _counter("guest_cpu_seconds", "CPU time of the guest, with its emulator.", time, "guest")
    yield from _counter("guest_steal_seconds", "Time vCPUs were runnable and did not run.", steal, "guest")
    yield from _gauge("guest_cpu_weight", "The guest's weight in the kernel's scheduler.", weight, "guest")


def _guest_memory(guests: Sequence[GuestReading]) -> Iterator[Metric]:
    balloons = {g.sample.name: g.sample.balloon for g in guests}
    processes = {g.sample.name: g.sample.process for g in guests if g.sample.process}
    current = {name: balloon.current for name, balloon in balloons.items()}
    maximum = {name: balloon.maximum for name, balloon in balloons.items()}
    usable = {name: balloon.usable for name, balloon in balloons.items()}
    resident = {name: balloon.rss for name, balloon in balloons.items()}
    swapped = {name: process.swapped for name, process in processes.items()}
    merging = {name: process.ksm_merging_pages for name, process in processes.items()}
    merged = {name: None if pages is None else pages * PAGE_SIZE for name, pages in merging.items()}
    yield from _gauge("guest_balloon_bytes", "What the guest's balloon leaves it.", current, "guest")
    yield from _gauge("guest_balloon_maximum_bytes", "What the balloon can give back up to.", maximum, "guest")
    yield from _gauge("guest_usable_bytes", "MemAvailable inside the guest.", usable, "guest")
    yield from _gauge("guest_resident_bytes", "Resident memory of the guest's process.", resident, "guest")
    yield from _gauge("guest_swapped_bytes", "Memory of the guest's process in the host's swap.", swapped, "guest")
    yield from _gauge("guest_ksm_merged_bytes", "Memory of the guest that is merged pages.", merged, "guest")
