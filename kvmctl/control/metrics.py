"""`host metrics`: readings of host and guests, and what happened between two of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from kvmctl.host import metrics, sample
from kvmctl.hypervisor import host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.metrics import Flow, GuestRates, GuestReading, HostReading, guest_rates, host_rates


@dataclass(frozen=True, slots=True)
class Reading:
    """`host` is None where the hypervisor is on another machine, `guests` where it does not answer."""

    host: HostReading | None
    guests: tuple[GuestReading, ...] | None


def read(hypervisor: Hypervisor | None) -> Reading:
    """Everything now: two bulk calls and one scan of /proc."""
    local = hypervisor is None or hypervisor.local
    guests = host.guest_readings(hypervisor) if hypervisor else None
    if guests and local:
        samples = sample.with_processes([guest.sample for guest in guests])
        guests = tuple(replace(guest, sample=found) for guest, found in zip(guests, samples, strict=True))
    return Reading(metrics.read() if local else None, guests)


def document(before: Reading, after: Reading) -> dict[str, Any]:
    """What host and guests do, with stable keys: gauges of the later reading, rates between the two."""
    first = {guest.sample.uuid: guest for guest in before.guests or ()}
    rows = [_guest(first.get(guest.sample.uuid), guest) for guest in after.guests or ()]
    return {
        "host": _host(before.host, after.host) if before.host and after.host else None,
        "guests": None if after.guests is None else rows,
    }


def _host(before: HostReading, after: HostReading) -> dict[str, Any]:
    rates = host_rates(before, after)
    return {
        "seconds": rates.seconds,
        "cpus": after.cpus,
        "cpu_busy_percent": rates.busy,
        "cpu_percent": rates.cpu,
        "load": list(after.load),
        "memory_total": after.memory_total,
        "memory_available": after.memory_available,
        "swap_total": after.swap_total,
        "swap_used": after.swap_used,
        "swap_in_per_second": rates.swap.read,
        "swap_out_per_second": rates.swap.written,
        "pressure": {name: asdict(pressure) for name, pressure in after.pressure.items()},
        "disks": {name: _per_second(flow, "read", "written") for name, flow in rates.disks.items()},
        "networks": {name: _per_second(flow, "received", "sent") for name, flow in rates.networks.items()},
        "ksm": asdict(after.ksm) if after.ksm else None,
    }


def _guest(before: GuestReading | None, after: GuestReading) -> dict[str, Any]:
    found, rates = after.sample, guest_rates(before, after)
    process = found.process
    return {
        "name": found.name,
        "uuid": found.uuid,
        "state": found.state,
        "vcpus": found.vcpus,
        "cores": rates.cores,
        "steal": rates.steal,
        "balloon": found.balloon.current,
        "balloon_max": found.balloon.maximum,
        "usable": found.balloon.usable,
        "resident": found.balloon.rss,
        "swapped": process and process.swapped,
        "ksm_merging_pages": process and process.ksm_merging_pages,
        **_guest_flows(rates),
    }


def _guest_flows(rates: GuestRates) -> dict[str, float | None]:
    return {**_per_second(rates.block, "read", "written"), **_per_second(rates.network, "received", "sent")}


def _per_second(flow: Flow | None, first: str, second: str) -> dict[str, float | None]:
    read, written = (flow.read, flow.written) if flow else (None, None)
    return {f"{first}_per_second": read, f"{second}_per_second": written}
