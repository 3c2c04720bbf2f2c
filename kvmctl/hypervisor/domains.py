"""Domains: looked up by name, read in bulk, defined, started, stopped."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, is_gone, translate
from kvmctl.model.errors import NotFoundError
from kvmctl.model.sample import BalloonSample, GuestSample

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "stopping",
    libvirt.VIR_DOMAIN_SHUTOFF: "stopped",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
_LISTING = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
_MEASURING = _LISTING | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
_KIB_STATS = ("current", "maximum", "available", "usable", "unused", "disk_caches", "rss", "swap_in", "swap_out")
_PLAIN_STATS = ("major_fault", "minor_fault")


def find(hypervisor: Hypervisor, name: str) -> Any:
    """The domain of that name. Raises NotFoundError; a number is a name like any other."""
    try:
        return hypervisor.connection.lookupByName(name)
    except UnicodeEncodeError:
        raise _no_guest(hypervisor, name) from None
    except libvirt.libvirtError as error:
        if is_gone(error):
            raise _no_guest(hypervisor, name) from error
        raise translate(error, f"look up guest {name}") from error


def by_uuid(hypervisor: Hypervisor, uuid: str) -> Any | None:
    """The domain of that UUID, whatever its name; None where there is none. Raises KvmctlError."""
    try:
        return hypervisor.connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise translate(error, f"look up the guest with UUID {uuid}") from error


def has_uuid(hypervisor: Hypervisor, uuid: str) -> bool:
    """Whether there is a guest of that UUID."""
    return by_uuid(hypervisor, uuid) is not None


def _no_guest(hypervisor: Hypervisor, name: str) -> NotFoundError:
    return NotFoundError(f"there is no guest {name!r} on {hypervisor.uri}", "kvmctl list shows the guests")


def names(hypervisor: Hypervisor) -> list[str]:
    """The names of all guests, sorted."""
    with doing("list the guests"):
        return sorted(domain.name() for domain in hypervisor.connection.listAllDomains())


def domains(hypervisor: Hypervisor, active_only: bool = False) -> list[Any]:
    """All domains, or the active ones."""
    with doing("list the guests"):
        flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE if active_only else 0
        found: list[Any] = hypervisor.connection.listAllDomains(flags)
        return found


def samples(hypervisor: Hypervisor, measure: bool = False) -> tuple[GuestSample, ...]:
    """Every guest, from one bulk call, sorted by name; `measure` adds the host's CPU accounting.

    NOWAIT leaves out what a guest in a long job would make us wait for.
    """
    return tuple(sample for sample, _domain in samples_with_domains(hypervisor, measure))


def samples_with_domains(hypervisor: Hypervisor, measure: bool = False) -> list[tuple[GuestSample, Any]]:
    """`samples`, each with its libvirt handle."""
    try:
        records = hypervisor.connection.getAllDomainStats(
            _MEASURING if measure else _LISTING, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise translate(error, "read the guests' statistics") from error
        pairs = [(_sample_one(domain), domain) for domain in domains(hypervisor)]
    else:
        # The test driver answers with little more than the state.
        pairs = [
            (_sample(domain, stats) if "vcpu.maximum" in stats else _sample_one(domain), domain)
            for domain, stats in records
        ]
    return sorted(pairs, key=lambda pair: pair[0].name)


def sample_one(domain: Any) -> GuestSample:
    """One guest, with its balloon statistics where its hypervisor has them."""
    sample = _sample_one(domain)
    if sample.state != "running":
        return sample
    try:
        stats = domain.memoryStats()
    except libvirt.libvirtError as error:
        if is_gone(error):
            raise translate(error, f"read guest {sample.name}") from error
        return sample
    names = {"actual": "current", "last_update": "last-update"}
    found = {f"balloon.{names.get(key, key)}": value for key, value in stats.items()}
    return replace(sample, balloon=replace(_balloon(found), maximum=sample.balloon.maximum))


def _sample(domain: Any, stats: dict[str, Any]) -> GuestSample:
    count = int(stats.get("vcpu.current", 0))
    ids = [n for n in range(int(stats.get("vcpu.maximum", count))) if f"vcpu.{n}.time" in stats]
    delays = [stats.get(f"vcpu.{n}.delay") for n in ids]
    return GuestSample(
        name=domain.name(),
        uuid=domain.UUIDString(),
        state=_STATES.get(stats.get("state.state"), "unknown"),
        vcpus=count,
        vcpus_max=int(stats.get("vcpu.maximum", count)),
        balloon=_balloon(stats),
        cpu_time=stats.get("cpu.time"),
        vcpu_time=tuple(stats[f"vcpu.{n}.time"] for n in ids),
        run=None if domain.ID() < 0 else domain.ID(),
        vcpu_delay=None if not ids or None in delays else tuple(int(delay) for delay in delays if delay is not None),
    )


def _balloon(stats: dict[str, Any]) -> BalloonSample:
    values: dict[str, int] = {}
    for name in _KIB_STATS:
        if (value := stats.get(f"balloon.{name}")) is not None:
            values[name] = value * 1024
    for name in _PLAIN_STATS:
        if (value := stats.get(f"balloon.{name}")) is not None:
            values[name] = value
    if (update := stats.get("balloon.last-update")) is not None:
        values["last_update"] = update
    return BalloonSample(**values)


def _sample_one(domain: Any) -> GuestSample:
    with doing(f"read guest {domain.name()}"):
        state, maximum, current, vcpus, _time = domain.info()
        return GuestSample(
            name=domain.name(),
            uuid=domain.UUIDString(),
            state=_STATES.get(state, "unknown"),
            vcpus=vcpus,
            vcpus_max=vcpus,
            run=None if domain.ID() < 0 else domain.ID(),
            balloon=BalloonSample(current=current * 1024, maximum=maximum * 1024),
        )


def state(domain: Any) -> str:
    """`running`, `paused`, `stopped`, `crashed`, `suspended`, `stopping` or `unknown`."""
    with doing(f"read the state of guest {domain.name()}"):
        return _STATES.get(domain.state()[0], "unknown")


def definition(domain: Any, secure: bool = False) -> str:
    """The XML the guest will start from next: the persistent one, or a transient guest's only one.

    `secure` includes passwords: what is defined again has to hold them, what is shown must not.
    """
    with doing(f"read the definition of guest {domain.name()}"):
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
        text: str = domain.XMLDesc(flags | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0))
        return text


def stored_definition(domain: Any) -> str:
    """As `definition`, without asking first whether the guest has one that outlives its running."""
    with doing(f"read the definition of guest {domain.name()}"):
        text: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return text


def transient(hypervisor: Hypervisor) -> frozenset[str]:
    """The UUIDs of the guests that are gone once they are off."""
    with doing("list the guests"):
        found = hypervisor.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
        return frozenset(domain.UUIDString() for domain in found)


def definitions(handles: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """Each domain with its definition; one that somebody deletes meanwhile is left out."""
    for domain in handles:
        try:
            yield domain, definition(domain)
        except NotFoundError:
            continue


def live_definitions(handles: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """Each active domain with the XML it runs with, as `definitions`."""
    for domain in handles:
        try:
            if domain.isActive():
                yield domain, live_definition(domain)
        except NotFoundError:
            continue


def live_definition(domain: Any) -> str:
    """The XML of the guest as it runs now."""
    with doing(f"read the running definition of guest {domain.name()}"):
        text: str = domain.XMLDesc(0)
        return text


def define(hypervisor: Hypervisor, name: str, xml: str) -> Any:
    """Define or redefine a guest, checked against libvirt's schema: without that, a misspelt element
    is dropped in silence."""
    with doing(f"define guest {name}"):
        return hypervisor.connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)


def start(domain: Any, paused: bool = False) -> None:
    """Start a guest that is off."""
    log = f"/var/log/libvirt/qemu/{domain.name()}.log"
    with doing(f"start guest {domain.name()}", f"its log on the host may have more: {log}"):
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)


def resume(domain: Any) -> None:
    """Let a paused guest go on."""
    with doing(f"resume guest {domain.name()}"):
        domain.resume()


def pause(domain: Any) -> None:
    """Stop a guest's vCPUs where they stand."""
    with doing(f"pause guest {domain.name()}"):
        domain.suspend()


def ask_to_stop(domain: Any) -> None:
    """Ask the guest to power off: by its agent where one answers, else by the power button."""
    with doing(f"stop guest {domain.name()}"):
        domain.shutdownFlags(0)


def ask_to_reboot(domain: Any) -> None:
    """Ask the guest to reboot."""
    with doing(f"reboot guest {domain.name()}"):
        domain.reboot(0)


def reset(domain: Any) -> None:
    """Reset the guest as a reset button does."""
    with doing(f"reset guest {domain.name()}"):
        domain.reset(0)


def power_off(domain: Any) -> None:
    """Take the guest's power away. The guest loses what it had not written."""
    with doing(f"power off guest {domain.name()}"):
        domain.destroy()


def autostart(domain: Any) -> bool:
    """Whether the guest starts with the host."""
    with doing(f"read autostart of guest {domain.name()}"):
        return bool(domain.autostart())


def is_persistent(domain: Any) -> bool:
    """Whether the guest has a definition that outlives its running."""
    with doing(f"read guest {domain.name()}"):
        return bool(domain.isPersistent())


def has_saved_state(domain: Any) -> bool:
    """Whether libvirt has saved the guest (managed save), so that its next start resumes it as it was."""
    try:
        return bool(domain.hasManagedSaveImage())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return False
        raise translate(error, f"read guest {domain.name()}") from error


def set_autostart(domain: Any, on: bool) -> None:
    """Let the guest start with the host, or not."""
    with doing(f"set autostart of guest {domain.name()}"):
        domain.setAutostart(int(on))


def undefine(domain: Any) -> None:
    """Remove the definition with everything libvirt itself keeps for it: managed save, NVRAM, snapshot
    and checkpoint metadata. No disk is touched."""
    flags = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )
    with doing(f"remove the definition of guest {domain.name()}"):
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                raise
            # A driver that keeps none of these things does not know the flags for them either.
            domain.undefine()
