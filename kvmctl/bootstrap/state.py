"""What the bootstrap made on this machine, so that `clean` removes exactly that."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kvmctl.host.files import make_private_directory, read_text, state_directory, write_atomic
from kvmctl.model.errors import KvmctlError


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process of ours. Its number alone could by now be another's, so when it was started belongs to it."""

    name: str
    pid: int
    started: str
    """As in /proc/PID/stat, with the boot it happened in."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything is recorded before it is made, so that nothing is forgotten when a run is killed."""

    daemons: tuple[Daemon, ...] = ()
    pool: str = ""
    """What was done to libvirt's `default` pool: `defined`, `started`, or nothing."""
    network: str = ""
    kvm_device: str = ""
    """Group and mode that /dev/kvm had, as `0:600`; empty where they were left alone."""
    guests: dict[str, str] = field(default_factory=dict)
    """Name → UUID; the UUID is empty until the guest is known to exist."""
    volumes: tuple[str, ...] = ()
    """Of the default pool."""
    packages: tuple[str, ...] = ()
    """Debian packages that were installed; they stay, and `clean` names them."""


def directory() -> Path:
    """Where the bootstrap keeps its own files, for root alone."""
    return state_directory() / "bootstrap"


def load() -> State:
    """What was recorded so far. Raises KvmctlError where the record is damaged."""
    text = read_text(_file())
    if text is None:
        return State()
    try:
        record = json.loads(text)
        daemons = tuple(Daemon(**daemon) for daemon in record.pop("daemons"))
        volumes, packages = tuple(record.pop("volumes")), tuple(record.pop("packages"))
        return State(daemons, volumes=volumes, packages=packages, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvmctlError(
            f"{_file()} is damaged, so what the bootstrap made on this machine is not known",
            "look into it; when nothing of it is left to remove, delete the file",
        ) from error


def update(change: Callable[[State], State]) -> State:
    """Replace the record by what `change` makes of it."""
    state = change(load())
    make_private_directory(directory())
    write_atomic(_file(), json.dumps(asdict(state), indent=2) + "\n")
    return state


def record(**fields: object) -> State:
    """Replace some fields of the record."""
    return update(lambda state: replace(state, **fields))  # type: ignore[arg-type]


def _file() -> Path:
    return directory() / "state.json"
