"""What a tick remembers for the next: one small file, which may be lost at any time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmctl.host.files import make_private_directory, read_text, state_directory, write_atomic
from kvmctl.model.errors import KvmctlError
from kvmctl.model.plan import GuestMemory, Memory
from kvmctl.model.reclaim import ReclaimGuest, ReclaimMemory

VERSION = 1


def file() -> Path:
    """Where it is kept, for all hypervisors of this machine."""
    return state_directory() / "controller.json"


def recall(uri: str) -> tuple[Memory | None, str]:
    """What was remembered of this hypervisor, None for nothing; and a sentence where the file is of no use."""
    path = file()
    try:
        text = read_text(path)
        return (None, "") if text is None else (_parsed(text).get(uri), "")
    except KvmctlError as error:
        return None, f"{error.message}, so this tick begins without what the last one remembered"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, _VersionError) else "it is not laid out as that"
        return None, f"{path} is not used ({reason}), so this tick begins without what the last one remembered"


def remember(uri: str, memory: Memory) -> None:
    """Keep what this tick leaves for the next. Raises KvmctlError."""
    path = file()
    make_private_directory(path.parent)
    others: dict[str, Any] = {}
    try:
        found = _document(read_text(path) or "")
        others |= {key: value for key, value in found.items() if key != uri and _memory(value).boot == memory.boot}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        others.clear()  # it is replaced
    text = json.dumps({"version": VERSION, "hypervisors": others | {uri: _plain(memory)}}) + "\n"
    write_atomic(path, text, durable=False)


class _VersionError(ValueError):
    pass


def _document(text: str) -> dict[str, Any]:
    """What is remembered of each hypervisor, as it is written."""
    document: Any = json.loads(text) if text else {"version": VERSION, "hypervisors": {}}
    if document["version"] != VERSION:
        raise _VersionError(f"its version is {document['version']}, and this kvmctl reads version {VERSION}")
    return {str(uri): value for uri, value in document["hypervisors"].items()}


def _parsed(text: str) -> dict[str, Memory]:
    return {uri: _memory(value) for uri, value in _document(text).items()}


def _plain(memory: Memory) -> dict[str, object]:
    plain = _fields(memory)
    plain["guests"] = {uuid: _fields(guest) for uuid, guest in memory.guests.items()}
    if memory.reclaim is not None:
        guests = {uuid: _fields(guest) for uuid, guest in memory.reclaim.guests.items()}
        plain["reclaim"] = _fields(memory.reclaim) | {"guests": guests}
    return plain


def _fields(value: Memory | GuestMemory | ReclaimMemory | ReclaimGuest) -> dict[str, object]:
    # As dataclasses.asdict, which copies all that it finds, for a hundred guests every few seconds.
    return {name: getattr(value, name) for name in value.__slots__}


def _memory(value: Mapping[str, Any]) -> Memory:
    return Memory(
        taken=int(value["taken"]),
        boot=str(value["boot"]),
        busy=_optional(int, value["busy"]),
        others=_optional(float, value["others"]),
        guests={str(uuid): _guest(guest) for uuid, guest in value["guests"].items()},
        reclaim=_reclaim(value.get("reclaim")),
    )


def _reclaim(value: Mapping[str, Any] | None) -> ReclaimMemory | None:
    if value is None:
        return None
    if int(value.get("short", 0)) < 0:
        raise ValueError("fewer looks in a row than none")
    return ReclaimMemory(
        taken=int(value["taken"]),
        boot=str(value["boot"]),
        state=_optional(str, value["state"]),
        stalled=_optional(float, value["stalled"]),
        unprofitable_until=int(value["unprofitable_until"]),
        short=int(value.get("short", 0)),
        saved=int(value.get("saved", 0)),
        grown_scan=int(value.get("grown_scan", 0)),
        guests={
            str(uuid): ReclaimGuest(
                run=int(guest["run"]),
                faults=_optional(int, guest["faults"]),
                host_faults=_optional(int, guest["host_faults"]),
                calm=float(guest["calm"]),
                calm_until=int(guest["calm_until"]),
                target=_optional(int, guest.get("target")),
                actual=_optional(int, guest.get("actual")),
                moved=int(guest.get("moved", 0)),
                since=_optional(int, guest.get("since")),
                scans=int(guest.get("scans", 0)),
            )
            for uuid, guest in value["guests"].items()
        },
    )


def _guest(value: Mapping[str, Any]) -> GuestMemory:
    delay = value["vcpu_delay"]
    return GuestMemory(
        run=int(value["run"]),
        cpu_time=_optional(int, value["cpu_time"]),
        vcpu_time=tuple(map(int, value["vcpu_time"])),
        vcpu_delay=None if delay is None else tuple(map(int, delay)),
        owed=float(value["owed"]),
        factor=float(value["factor"]),
        demand=_optional(float, value["demand"]),
    )


def _optional(kind: type[Any], value: object) -> Any:
    return None if value is None else kind(value)
