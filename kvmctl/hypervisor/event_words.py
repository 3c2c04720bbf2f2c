"""What libvirt's event callbacks tell, in words and numbers of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import libvirt

from kvmctl.model.units import human_size


class Words(NamedTuple):
    """An event without its time and guest."""

    event: str
    detail: str | None = None
    values: Mapping[str, object] = MappingProxyType({})


def _numbered(prefix: str, **words: str) -> dict[int, str]:
    """Words by the numbers of those libvirt constants that this libvirt has."""
    found = {getattr(libvirt, f"{prefix}_{name}", None): text for name, text in words.items()}
    return {number: text for number, text in found.items() if number is not None}


_EVENTS = _numbered(
    "VIR_DOMAIN_EVENT",
    DEFINED="defined",
    UNDEFINED="undefined",
    STARTED="started",
    SUSPENDED="paused",
    RESUMED="resumed",
    STOPPED="stopped",
    SHUTDOWN="stopping",
    PMSUSPENDED="suspended",
    CRASHED="crashed",
)
_FROM_SNAPSHOT = "from a snapshot"
_POSTCOPY = "post-copy migration"
_DETAILS = {
    "defined": _numbered(
        "VIR_DOMAIN_EVENT_DEFINED",
        ADDED="new",
        UPDATED="changed",
        RENAMED="renamed",
        FROM_SNAPSHOT=_FROM_SNAPSHOT,
    ),
    "undefined": _numbered("VIR_DOMAIN_EVENT_UNDEFINED", REMOVED="removed", RENAMED="renamed"),
    "started": _numbered(
        "VIR_DOMAIN_EVENT_STARTED",
        BOOTED="booted",
        MIGRATED="migrated from another host",
        RESTORED="restored from its saved state",
        FROM_SNAPSHOT=_FROM_SNAPSHOT,
        WAKEUP="woken up",
    ),
    "paused": _numbered(
        "VIR_DOMAIN_EVENT_SUSPENDED",
        PAUSED="on request",
        MIGRATED="for migration",
        IOERROR="I/O error",
        WATCHDOG="by its watchdog",
        RESTORED="restored from its saved state",
        FROM_SNAPSHOT=_FROM_SNAPSHOT,
        API_ERROR="what was done to it failed",
        POSTCOPY=_POSTCOPY,
        POSTCOPY_FAILED=f"{_POSTCOPY} failed",
    ),
    "resumed": _numbered(
        "VIR_DOMAIN_EVENT_RESUMED",
        UNPAUSED="unpaused",
        MIGRATED="migration has ended",
        FROM_SNAPSHOT=_FROM_SNAPSHOT,
        POSTCOPY=_POSTCOPY,
        POSTCOPY_FAILED=f"{_POSTCOPY} failed",
    ),
    "stopped": _numbered(
        "VIR_DOMAIN_EVENT_STOPPED",
        SHUTDOWN="shut down",
        DESTROYED="powered off",
        CRASHED="crashed",
        MIGRATED="migrated to another host",
        SAVED="its state was saved",
        FAILED="failed",
        FROM_SNAPSHOT=_FROM_SNAPSHOT,
    ),
    "stopping": _numbered(
        "VIR_DOMAIN_EVENT_SHUTDOWN",
        FINISHED="shut down",
        GUEST="shut down by the guest",
        HOST="shut down by the host",
    ),
    "suspended": _numbered("VIR_DOMAIN_EVENT_PMSUSPENDED", MEMORY="to memory", DISK="to disk"),
    "crashed": _numbered(
        "VIR_DOMAIN_EVENT_CRASHED", PANICKED="its kernel panicked", CRASHLOADED="its crash kernel was loaded"
    ),
}
_WATCHDOG = _numbered(
    "VIR_DOMAIN_EVENT_WATCHDOG",
    NONE="nothing was done",
    PAUSE="the guest is paused",
    RESET="the guest is reset",
    POWEROFF="the guest is powered off",
    SHUTDOWN="the guest is asked to power off",
    DEBUG="a message was logged",
    INJECTNMI="an NMI was injected",
)
_IO_ERROR = _numbered(
    "VIR_DOMAIN_EVENT_IO_ERROR",
    NONE="nothing was done",
    PAUSE="the guest is paused",
    REPORT="the guest is told",
)
_MEMORY_RECIPIENT = _numbered(
    "VIR_DOMAIN_EVENT_MEMORY_FAILURE_RECIPIENT", HYPERVISOR="memory of its QEMU", GUEST="memory of the guest"
)
_MEMORY_ACTION = _numbered(
    "VIR_DOMAIN_EVENT_MEMORY_FAILURE_ACTION",
    IGNORE="nothing was done",
    INJECT="the guest is told",
    FATAL="the guest cannot go on",
    RESET="the guest is reset",
)
_AGENT = _numbered(
    "VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE", CONNECTED="agent-connected", DISCONNECTED="agent-disconnected"
)
_AGENT_REASON = _numbered(
    "VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_REASON",
    DOMAIN_STARTED="the guest was started",
    CHANNEL="its channel has changed",
)
_METADATA = _numbered("VIR_DOMAIN_METADATA", DESCRIPTION="description", TITLE="title", ELEMENT="element")
_JOB = _numbered(
    "VIR_DOMAIN_JOB_OPERATION",
    START="start",
    SAVE="save",
    RESTORE="restore",
    MIGRATION_IN="migration from another host",
    MIGRATION_OUT="migration to another host",
    SNAPSHOT="snapshot",
    SNAPSHOT_REVERT="return to a snapshot",
    SNAPSHOT_DELETE="deletion of a snapshot",
    DUMP="dump",
    BACKUP="backup",
)
_JOB_BYTES = ("memory_total", "memory_processed", "disk_total", "disk_processed")


def _lifecycle(event: int, detail: int) -> Words:
    word = _EVENTS.get(event, f"lifecycle-{event}")
    return Words(word, _DETAILS.get(word, {}).get(detail))


def _balloon(kib: int) -> Words:
    size = kib * 1024
    return Words("balloon", human_size(size), {"balloon": size})


def _watchdog(action: int) -> Words:
    return Words("watchdog", _WATCHDOG.get(action))


def _io_error(path: str | None, device: str | None, action: int, reason: str | None) -> Words:
    where = f"{device} ({path})" if device and path else device or path
    said = ": ".join(filter(None, [where, reason, _IO_ERROR.get(action)]))
    return Words("io-error", said or None, {"device": device or None, "path": path or None, "reason": reason or None})


def _memory_failure(recipient: int, action: int, _flags: int) -> Words:
    said = [_MEMORY_RECIPIENT.get(recipient), _MEMORY_ACTION.get(action)]
    return Words("memory-failure", ": ".join(filter(None, said)) or None)


def _device(event: str) -> Callable[[str], Words]:
    return lambda alias: Words(event, alias, {"device": alias})


def _agent(state: int, reason: int) -> Words:
    return Words(_AGENT.get(state, "agent"), _AGENT_REASON.get(reason))


def _metadata(kind: int, namespace: str | None) -> Words:
    return Words("metadata", namespace or _METADATA.get(kind))


def _tuning(values: dict[str, Any]) -> Words:
    said = [f"{name.partition('.')[2] or name} {value}" for name, value in values.items()]
    return Words("tuning", ", ".join(said), {"tuning": dict(values)})


def _migration(iteration: int) -> Words:
    return Words("migration", f"pass {iteration} over its memory", {"pass": iteration})


def _job(told: dict[str, Any]) -> Words:
    operation = _JOB.get(told.get(libvirt.VIR_DOMAIN_JOB_OPERATION, 0), "job")
    done = bool(told.get(libvirt.VIR_DOMAIN_JOB_SUCCESS, True))
    values: dict[str, object] = {"operation": operation, "success": done}
    for name, key in (("seconds", libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED), ("downtime", libvirt.VIR_DOMAIN_JOB_DOWNTIME)):
        if key in told:
            values[name] = told[key] / 1000
    values |= {name: told[name] for name in _JOB_BYTES if name in told}
    if not done:
        return Words(
            "job", f"{operation} failed: {told.get(libvirt.VIR_DOMAIN_JOB_ERRMSG, 'no reason is told')}", values
        )
    return Words("job", f"{operation}, {values['seconds']:g} s" if "seconds" in values else operation, values)


def _plain(event: str) -> Callable[[], Words]:
    return lambda: Words(event)


READERS: dict[str, dict[str, Callable[..., Words]]] = {
    "lifecycle": {"LIFECYCLE": _lifecycle},
    "balloon": {"BALLOON_CHANGE": _balloon},
    "reboot": {"REBOOT": _plain("reboot")},
    "watchdog": {"WATCHDOG": _watchdog},
    "io-error": {"IO_ERROR_REASON": _io_error},
    "control-error": {"CONTROL_ERROR": _plain("control-error")},
    "memory-failure": {"MEMORY_FAILURE": _memory_failure},
    "device": {
        "DEVICE_ADDED": _device("device-added"),
        "DEVICE_REMOVED": _device("device-removed"),
        "DEVICE_REMOVAL_FAILED": _device("device-kept"),
    },
    "agent": {"AGENT_LIFECYCLE": _agent},
    "metadata": {"METADATA_CHANGE": _metadata},
    "tuning": {"TUNABLE": _tuning},
    "migration": {"MIGRATION_ITERATION": _migration},
    "job": {"JOB_COMPLETED": _job},
}
"""For each kind of `model.event.KINDS` libvirt's events, by the end of their VIR_DOMAIN_EVENT_ID_…, and what reads the
arguments that a callback gets between its domain and its opaque."""
