"""`host show`: what this host is, as one document with stable keys. Bytes, cores and MHz as numbers.

What libvirt knows is there for every hypervisor; what the kernel knows only for one on this machine.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeVar

from kvmctl import __version__
from kvmctl.control import hostpolicy
from kvmctl.control.clock import clock_of
from kvmctl.host import accelerator, cgroup, cpu, ksm, mdev, memory, pci, virtualization
from kvmctl.hypervisor import domains, host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import NotFoundError
from kvmctl.model.hostpolicy import MemoryPolicy, capacity, cpu_reserve
from kvmctl.model.metrics import OFF
from kvmctl.model.promise import Promise
from kvmctl.model.sample import GuestSample
from kvmctl.policy.ksm import saved
from kvmctl.policy.memory import host_reserve, reserve_of
from kvmctl.policy.reclaim import guests_memory
from kvmctl.xml.metadata import promise

Number = TypeVar("Number", int, float)


def facts(hypervisor: Hypervisor | None) -> dict[str, Any]:
    """The document. Without a hypervisor it holds this machine alone; where the hypervisor is elsewhere,
    what only that machine's kernel knows is None. Raises UsageError for a policy file that cannot be used."""
    local = hypervisor is None or hypervisor.local
    node = host.node(hypervisor) if hypervisor else None
    policy = hostpolicy.find() if local else None
    return {
        "uri": hypervisor.uri if hypervisor else None,
        "local": local,
        "name": platform.node() if local else node and node.name,
        "versions": _versions(hypervisor, local),
        "virtualization": _virtualization() if local else None,
        "cpu": _cpu(hypervisor) if local else hypervisor and node and _remote_cpu(hypervisor, node),
        "memory": _memory(policy) if local else node and _remote_memory(node),
        "cgroup": _cgroup() if local else None,
        "policy": _policy(policy) if policy else None,
        "guests": _guests(hypervisor) if hypervisor else None,
        "pools": [asdict(pool) for pool in host.pools(hypervisor) or ()] if hypervisor else None,
        "networks": [asdict(network) for network in host.networks(hypervisor) or ()] if hypervisor else None,
    }


def _versions(hypervisor: Hypervisor | None, local: bool) -> dict[str, Any]:
    found = host.versions(hypervisor) if hypervisor else None
    return {
        "kvmctl": __version__,
        "libvirt": found and found.daemon,
        "library": found and found.library,
        "hypervisor": found and found.hypervisor,
        "kernel": platform.release() if local else None,
    }


def _virtualization() -> dict[str, Any]:
    found = virtualization.read(cpu.read().flags)
    verdict = accelerator.remembered()
    kind, why = virtualization.kind(found, verdict.name == "kvm" if verdict else None)
    modes = ["emulated", "paravirtual"]
    unsafe, parents = bool(found.iommu_groups) and pci.interrupts_unsafe(), mdev.parents()
    return {
        "kind": kind,
        "why": why,
        "accelerator": verdict.name if verdict else None,
        "extension": found.extension,
        "module": found.module,
        "kvm": found.kvm,
        "nested": found.nested,
        "second_level_paging": found.second_level_paging,
        "guest_of": found.guest_of,
        # An mdev is kept apart by its driver, without an IOMMU of its own.
        "io": [*modes, "passthrough"] if (found.iommu_groups and not unsafe) or parents else modes,
        "interrupts_unsafe": unsafe,
        "mdev_parents": sorted(parents),
        "iommu_groups": found.iommu_groups,
        "iommus": list(found.iommus),
    }


def _cpu(hypervisor: Hypervisor | None) -> dict[str, Any]:
    found = cpu.read()
    clock = clock_of(hypervisor) if hypervisor else cpu.base_clock()
    states = cpu.mitigations()
    return {
        "architecture": found.architecture,
        "model": found.model,
        "threads": found.online,
        "cores": found.cores,
        "sockets": found.sockets,
        "base_mhz": clock and clock.mhz,
        "base_mhz_source": clock and clock.source,
        "numa_nodes": len(cpu.numa_nodes()) or None,
        "vulnerable": [name for name, state in states.items() if state.startswith("Vulnerable")],
        "mitigations": states,
    }


def _remote_cpu(hypervisor: Hypervisor, node: host.Node) -> dict[str, Any]:
    unknown = dict.fromkeys(("model", "cores", "sockets", "vulnerable", "mitigations"))
    clock = clock_of(hypervisor)
    known = {
        "threads": node.cpus,
        "base_mhz": clock and clock.mhz,
        "base_mhz_source": clock and clock.source,
        "numa_nodes": node.numa_nodes,
    }
    return {"architecture": node.architecture, **unknown, **known}


def _memory(policy: hostpolicy.Found | None) -> dict[str, Any]:
    found, merging = memory.read(), ksm.sample()
    pressure = memory.pressure("memory")
    return {
        **asdict(found),
        "kept_for_host": reserve_of(policy.policy.memory if policy else MemoryPolicy(), found.total),
        "swap_areas": [asdict(area) for area in memory.swap_areas()],
        "zswap": memory.zswap(),
        "ksm_run": merging and merging.run,
        "ksm_saved": saved(merging) if merging else None,
        "pressure": asdict(pressure) if pressure else None,
    }


def _remote_memory(node: host.Node) -> dict[str, Any]:
    return {"total": node.memory, "free": node.free, "kept_for_host": host_reserve(node.memory)}


def _cgroup() -> dict[str, Any]:
    version = cgroup.version()
    return {
        "version": version,
        "weight_range": list(cgroup.WEIGHT_RANGE) if version else None,
        "kernel_weight_range": list(cgroup.KERNEL_WEIGHT_RANGE[version]) if version else None,
    }


def _policy(found: hostpolicy.Found) -> dict[str, Any]:
    cpus = cpu.read().online
    return {
        "file": str(found.path) if found.exists else None,
        "cpu": {
            **asdict(found.policy.cpu),
            "kept_for_host": cpu_reserve(found.policy, cpus),
            "capacity": capacity(found.policy, cpus),
        },
        "memory": {**asdict(found.policy.memory), "for_guests": _for_guests(found.policy.memory)},
    }


def _for_guests(policy: MemoryPolicy) -> int:
    return guests_memory(memory.read().total, policy.reserve, policy.limit, memory.guests_limit())


def _guests(hypervisor: Hypervisor) -> dict[str, Any]:
    found = domains.samples_with_domains(hypervisor)
    running = [(sample, domain) for sample, domain in found if sample.state not in OFF]
    samples = [sample for sample, _domain in running]
    promises = [promised for sample, domain in running if (promised := _promise(sample, domain))]
    return {
        "defined": len(found),
        "running": len(running),
        "vcpus": sum(sample.vcpus for sample in samples),
        "balloon": _sum(sample.balloon.current for sample in samples),
        "balloon_max": _sum(sample.balloon.maximum for sample in samples),
        "resident": _sum(sample.balloon.rss for sample in samples),
        "cpu_reservation": sum(promised.cpu_reservation for promised in promises),
        "memory_reservation": sum(promised.memory_kept for promised in promises),
    }


def _promise(sample: GuestSample, domain: Any) -> Promise | None:
    try:
        return promise(domains.definition(domain), sample.vcpus)
    except NotFoundError:
        return None  # it was stopped and removed meanwhile


def _sum(values: Iterable[Number | None]) -> Number | None:
    """The sum; None where a part of it is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
