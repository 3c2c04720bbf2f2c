"""What libvirt says of the machine it runs on: versions, size, pools, networks, KSM, guests' counters.

All of it works on another machine's libvirt too. What a driver does not support is None.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import translate
from kvmctl.model.cpuset import HostCpus
from kvmctl.model.metrics import Flow, GuestReading
from kvmctl.model.units import MIB

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Versions:
    """`library` is libvirt in this process, `daemon` the one that answered."""

    library: str
    daemon: str
    hypervisor: str
    """Its kind and version, such as `QEMU 7.2.22`."""


@dataclass(frozen=True, slots=True)
class Node:
    """The machine's size, in hardware threads and bytes. `free` memory does not count caches."""

    name: str
    architecture: str
    cpus: int
    numa_nodes: int
    memory: int
    free: int | None


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool; sizes in bytes, None while it is not active. `path` is a folder for kind `dir`."""

    name: str
    kind: str
    active: bool
    autostart: bool
    path: str | None
    capacity: int | None
    available: int | None


@dataclass(frozen=True, slots=True)
class Network:
    """A virtual network of libvirt."""

    name: str
    active: bool
    autostart: bool


def version_text(number: int) -> str:
    """libvirt's version numbers are a million, a thousand and ones: 9000000 is 9.0.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def versions(hypervisor: Hypervisor) -> Versions:
    """The versions of library, daemon and hypervisor."""
    connection = hypervisor.connection
    number = _supported("ask for the hypervisor's version", connection.getVersion)
    kind = _supported("ask for the hypervisor's kind", connection.getType) or "unknown"
    daemon = _supported("ask for libvirt's version", connection.getLibVersion)
    return Versions(
        library=version_text(libvirt.getVersion()),
        daemon=version_text(daemon) if daemon else "unknown",
        hypervisor=f"{kind} {version_text(number)}" if number else kind,
    )


def node(hypervisor: Hypervisor) -> Node | None:
    """The machine as libvirt describes it."""
    connection = hypervisor.connection
    info = _supported("ask for the host's size", connection.getInfo)
    if info is None:
        return None
    # `getInfo` adds up NUMA nodes, which memory that was added later is not in; this is /proc/meminfo's.
    memory = _supported("ask for the host's memory", lambda: connection.getMemoryStats(-1, 0)) or {}
    return Node(
        name=_supported("ask for the host's name", connection.getHostname) or "unknown",
        architecture=info[0],
        cpus=info[2],
        numa_nodes=info[4],
        memory=memory["total"] * 1024 if "total" in memory else info[1] * MIB,
        free=memory["free"] * 1024 if "free" in memory else None,
    )


def cpus(hypervisor: Hypervisor) -> HostCpus | None:
    """The machine's CPUs, by the numbers that guests are pinned by."""
    found = _supported("ask which CPUs the host has", hypervisor.connection.getCPUMap)
    if found is None:
        return None
    count, online = found[:2]
    return HostCpus(frozenset(range(count)), frozenset(number for number, on in enumerate(online) if on))


def tsc_hz(capabilities_xml: str) -> int | None:
    """The frequency of the time stamp counter in the capabilities XML; None where it is not said."""
    from xml.etree import ElementTree

    # libvirt wrote it.
    counter = ElementTree.fromstring(capabilities_xml).find("host/cpu/counter[@name='tsc']")  # noqa: S314
    text = "" if counter is None else counter.get("frequency", "")
    return int(text) if text.isdigit() else None


def pools(hypervisor: Hypervisor) -> tuple[Pool, ...] | None:
    """All storage pools, by name."""
    found = _supported("list the storage pools", hypervisor.connection.listAllStoragePools)
    return None if found is None else tuple(sorted(map(_pool, found), key=lambda pool: pool.name))


def _pool(handle: Any) -> Pool:
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(handle.XMLDesc(0))  # noqa: S314 - libvirt wrote it
        active = bool(handle.isActive())
        _state, capacity, _allocation, available = handle.info() if active else (None, None, None, None)
        autostart = bool(handle.autostart())
    except libvirt.libvirtError as error:
        raise translate(error, f"read storage pool {handle.name()}") from error
    return Pool(
        handle.name(), root.get("type", ""), active, autostart, root.findtext("target/path"), capacity, available
    )


def networks(hypervisor: Hypervisor) -> tuple[Network, ...] | None:
    """All virtual networks, by name."""
    found = _supported("list the networks", hypervisor.connection.listAllNetworks)
    if found is None:
        return None
    try:
        all_ = [Network(each.name(), bool(each.isActive()), bool(each.autostart())) for each in found]
    except libvirt.libvirtError as error:
        raise translate(error, "read the networks") from error
    return tuple(sorted(all_, key=lambda network: network.name))


def ksm_parameters(hypervisor: Hypervisor) -> dict[str, int] | None:
    """What libvirt tells of KSM, by the kernel's names without libvirt's `shm_`."""
    found = _supported("read the host's memory parameters", hypervisor.connection.getMemoryParameters)
    return None if not found else {name.removeprefix("shm_"): int(value) for name, value in found.items()}


def guest_readings(hypervisor: Hypervisor) -> tuple[GuestReading, ...]:
    """Every guest's counters, sorted by name: two bulk calls, whatever the number of guests."""
    samples = domains.samples(hypervisor, measure=True)
    flows = _flows(hypervisor)
    taken = time.monotonic_ns()
    return tuple(GuestReading(taken, sample, *flows.get(sample.uuid, (None, None))) for sample in samples)


def _flows(hypervisor: Hypervisor) -> dict[str, tuple[Flow | None, Flow | None]]:
    wanted = libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_INTERFACE
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    records = _supported(
        "read the guests' disks and networks", lambda: hypervisor.connection.getAllDomainStats(wanted, flags)
    )
    return {
        domain.UUIDString(): (_flow(stats, "block", "rd", "wr"), _flow(stats, "net", "rx", "tx"))
        for domain, stats in records or ()
    }


def _flow(stats: dict[str, Any], group: str, read: str, written: str) -> Flow | None:
    """The sum over a guest's devices; a CD-ROM drive without a disc has no counters."""
    if f"{group}.count" not in stats:
        return None
    indexes = range(stats[f"{group}.count"])
    return Flow(*(sum(stats.get(f"{group}.{i}.{way}.bytes", 0) for i in indexes) for way in (read, written)))


def _supported(what: str, call: Callable[[], Value]) -> Value | None:
    """What libvirt answers, None where this driver has no such call; other errors are raised as ours."""
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
            return None
        raise translate(error, what) from error
