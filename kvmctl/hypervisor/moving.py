"""Live migration as libvirt does it, and what it tells of it. Each call does one thing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, is_gone, said, translate
from kvmctl.model.errors import KvmctlError
from kvmctl.model.migration import JobSample, MigrationOptions, Presence
from kvmctl.model.units import MIB

_JOBS = {
    libvirt.VIR_DOMAIN_JOB_BOUNDED: "a job",
    libvirt.VIR_DOMAIN_JOB_UNBOUNDED: "a job",
}
_OPERATIONS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "it is being moved to this host",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "it is being moved to another host",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "its memory is being saved",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "a snapshot is being made",
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "a backup is being made",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "its memory is being dumped",
}
_PAGE = 4096


def migrate(
    domain: Any, target: Hypervisor, options: MigrationOptions, copied: Sequence[str] = (), unsafe: bool = False
) -> None:
    """Move the guest; returns when it runs at the target and is undefined here, or when both have the definition of
    one that is off.

    `copied` are the disks that are copied, as `vda`; `unsafe` says that the others have been made sure of, whatever
    libvirt thinks of them.
    """
    flags = _flags(options, bool(copied), unsafe)
    parameters: dict[str, Any] = {}
    if copied:
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(copied)
    if options.bandwidth:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(1, options.bandwidth // MIB)
    if options.connections:
        parameters[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = options.connections
    with doing(f"move guest {domain.name()} to {target.uri}", "kvmctl list, here and there, shows where it is"):
        if options.direct:
            domain.migrate3(target.connection, parameters, flags)
        else:
            domain.migrateToURI3(target.uri, parameters, flags | libvirt.VIR_MIGRATE_PEER2PEER)


def _flags(options: MigrationOptions, copies: bool, unsafe: bool) -> int:
    flags: int = libvirt.VIR_MIGRATE_PERSIST_DEST
    if options.offline:
        # The source is asked once more before its definition goes: nothing keeps it from being started there.
        return flags | int(libvirt.VIR_MIGRATE_OFFLINE)
    chosen = {
        libvirt.VIR_MIGRATE_UNDEFINE_SOURCE: True,
        libvirt.VIR_MIGRATE_LIVE: True,
        libvirt.VIR_MIGRATE_UNSAFE: unsafe,
        libvirt.VIR_MIGRATE_NON_SHARED_DISK: copies,
        libvirt.VIR_MIGRATE_AUTO_CONVERGE: options.auto_converge,
        libvirt.VIR_MIGRATE_POSTCOPY: options.post_copy,
        libvirt.VIR_MIGRATE_PARALLEL: bool(options.connections),
        libvirt.VIR_MIGRATE_TLS: options.tls,
    }
    for flag, wanted in chosen.items():
        flags |= flag if wanted else 0
    return flags


def abort(domain: Any) -> None:
    """Have libvirt give up what it is doing with the guest."""
    with doing(f"stop moving guest {domain.name()}"):
        domain.abortJob()


def switch_to_post_copy(domain: Any) -> None:
    """Let the guest go on at the target, which fetches what is missing."""
    with doing(f"let guest {domain.name()} go on at the target"):
        domain.migrateStartPostCopy(0)


def job(domain: Any) -> JobSample | None:
    """How far the guest's job is; None where there is none, or libvirt has nothing to say of it."""
    return _sample(domain, 0)


def completed(domain: Any) -> JobSample | None:
    """How the move that has just ended went: both hosts keep that until they are asked for it."""
    return _sample(domain, libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)


def _sample(domain: Any, flags: int) -> JobSample | None:
    try:
        stats = domain.jobStats(flags)
    except libvirt.libvirtError as error:
        if is_gone(error) or error.get_error_code() in (
            libvirt.VIR_ERR_OPERATION_INVALID,
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_OPERATION_TIMEOUT,
        ):
            return None
        raise translate(error, "ask how far the move is") from error
    if not stats or stats.get("type") in (None, libvirt.VIR_DOMAIN_JOB_NONE):
        return None
    downtime = stats.get("downtime")
    page = stats.get("memory_page_size", _PAGE)
    return JobSample(
        elapsed=stats.get("time_elapsed", 0) / 1000,
        setup=stats.get("setup_time", 0) / 1000,
        downtime=None if downtime is None else downtime / 1000,
        memory_total=stats.get("memory_total", 0),
        memory_sent=stats.get("memory_processed", 0),
        memory_left=stats.get("memory_remaining", 0),
        disk_total=stats.get("disk_total", 0),
        disk_sent=stats.get("disk_processed", 0),
        speed=stats.get("memory_bps", 0),
        dirty_rate=stats.get("memory_dirty_rate", 0) * page,
        rounds=stats.get("memory_iteration", 0),
        throttled=stats.get("auto_converge_throttle", 0),
        post_copy=bool(stats.get("memory_postcopy_requests", 0)),
    )


def busy_with(domain: Any) -> str | None:
    """What libvirt is doing with the guest; None where it is nothing, or this driver does not tell."""
    try:
        stats = domain.jobStats(0)
    except libvirt.libvirtError:
        return None
    if stats.get("type") not in _JOBS:
        return None
    return _OPERATIONS.get(stats.get("operation", 0), "a job")


def blocked_by(domain: Any) -> str | None:
    """What libvirt is doing with the guest that keeps it from being changed: it would have us wait for half a minute,
    and then refuse. A backup, which may go on for an hour, does not."""
    busy = busy_with(domain)
    return None if busy == _OPERATIONS[libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP] else busy


def max_downtime(domain: Any) -> float | None:
    """Seconds that the guest may stand at the switch-over; None where this driver does not tell."""
    try:
        return int(domain.migrateGetMaxDowntime(0)) / 1000
    except libvirt.libvirtError:
        return None


def set_max_downtime(domain: Any, seconds: float) -> None:
    """Let the guest stand for so long at the switch-over, in this move and those to come."""
    with doing(f"set the downtime of guest {domain.name()}"):
        domain.migrateSetMaxDowntime(max(1, round(seconds * 1000)), 0)


def start_dirty_rate(domain: Any) -> None:
    """Have it measured for a second how much of its memory the guest changes; where that cannot be done, it is not."""
    with suppress(libvirt.libvirtError):
        domain.startDirtyRateCalc(1, 0)


def dirty_rate(hypervisor: Hypervisor, domain: Any) -> int | None:
    """Bytes of its memory that the guest changes in a second, as measured since `start_dirty_rate`; None where it was
    not."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        with doing(f"measure what guest {domain.name()} changes"):
            found = hypervisor.connection.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE)
        stats = found[0][1] if found else {}
        status = stats.get("dirtyrate.calc_status")
        if status == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED and "dirtyrate.megabytes_per_second" in stats:
            return int(stats["dirtyrate.megabytes_per_second"]) * MIB
        if status != libvirt.VIR_DOMAIN_DIRTYRATE_MEASURING:
            return None
        time.sleep(0.05)
    return None


def presence(hypervisor: Hypervisor, uuid: str) -> Presence | None:
    """What the host has of a guest; None where it has nothing. Raises UnreachableError."""
    from kvmctl.hypervisor.domains import state

    try:
        domain = hypervisor.connection.lookupByUUIDString(uuid)
        active, defined = bool(domain.isActive()), bool(domain.isPersistent())
        found, reason = domain.state()[:2]
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look for guest {uuid}") from error
    arriving = found == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_MIGRATION
    return Presence(active, state(domain), defined, moving_in=arriving)


def find(hypervisor: Hypervisor, uuid: str) -> Any:
    """The domain of that UUID. Raises NotFoundError."""
    with doing(f"look for guest {uuid}"):
        return hypervisor.connection.lookupByUUIDString(uuid)


def undefine(domain: Any) -> None:
    """Take away a definition, and nothing else: what the guest goes on with elsewhere is left alone."""
    with doing(f"remove the definition of guest {domain.name()}"):
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def counterpart(hypervisor: Hypervisor, name: str, uuid: str) -> tuple[str | None, str | None]:
    """The UUID of the host's guest of that name, and the name of its guest of that UUID."""
    return (
        _attribute(hypervisor.connection.lookupByName, name, "UUIDString"),
        _attribute(hypervisor.connection.lookupByUUIDString, uuid, "name"),
    )


def _attribute(look_up: Any, key: str, attribute: str) -> str | None:
    try:
        return str(getattr(look_up(key), attribute)())
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look for guest {key}") from error


def holds(domain: Any) -> tuple[int, bool]:
    """How many snapshots the guest has, and whether libvirt has saved its memory."""
    try:
        return int(domain.snapshotNum(0)), bool(domain.hasManagedSaveImage(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return 0, False
        raise translate(error, f"read guest {domain.name()}") from error


def cpu_difference(hypervisor: Hypervisor, cpu_xml: str, arch: str, machine: str, virt_type: str) -> str | None:
    """Why the host cannot run a guest with this CPU; empty where it can, None where it cannot tell."""
    flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        found = hypervisor.connection.compareHypervisorCPU(None, arch, machine, virt_type, cpu_xml, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return said(error)
        return None
    return "its processor is not the guest's" if found == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE else ""


def cpu_baseline(hypervisor: Hypervisor, cpus: list[str], arch: str, virt_type: str) -> str:
    """The CPU, as XML, that all of these have in common, and that guests can be moved with."""
    flags = libvirt.VIR_CONNECT_BASELINE_CPU_MIGRATABLE
    with doing("compute a CPU that all hosts can run", "kvmctl host show on each tells what they have"):
        text: str = hypervisor.connection.baselineHypervisorCPU(None, arch, None, virt_type, cpus, flags)
        return text


def interfaces(hypervisor: Hypervisor) -> frozenset[str] | None:
    """The host's network interfaces; None where its libvirt does not know them."""
    from xml.etree import ElementTree

    try:
        devices = hypervisor.connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET)
        texts = [device.XMLDesc(0) for device in devices]
    except libvirt.libvirtError:
        return None
    roots = (ElementTree.fromstring(text) for text in texts)  # noqa: S314 - libvirt wrote it
    found = frozenset(name for root in roots if (name := root.findtext("capability/interface")))
    return found or None


def available_memory(hypervisor: Hypervisor) -> int | None:
    """Bytes that the host could give to a guest at once, with what it only caches files in; None where unknown."""
    try:
        stats = hypervisor.connection.getMemoryStats(-1, 0)
    except libvirt.libvirtError:
        return None
    if "free" not in stats:
        return None
    return 1024 * (int(stats["free"]) + int(stats.get("buffers", 0)) + int(stats.get("cached", 0)))


def rss(domain: Any) -> int | None:
    """Bytes of the host's memory that the guest's process has."""
    try:
        found = domain.memoryStats().get("rss")
    except libvirt.libvirtError as error:
        raise KvmctlError(f"cannot read the memory of guest {domain.name()}: {said(error)}") from error
    return None if found is None else int(found) * 1024
