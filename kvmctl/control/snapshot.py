"""What a tick sees and what it decides from, in one file: a bug report, and a test case."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_origin

from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError

from kvmctl.model import sample
from kvmctl.model.errors import NotFoundError, UsageError
from kvmctl.model.host_sample import ProcessSample, Snapshot
from kvmctl.model.hostpolicy import HostPolicy
from kvmctl.model.plan import Memory
from kvmctl.model.promise import Promise

VERSION = 1
MOST_BYTES = 64 << 20
_MOST = 1e18
_HINT = "make one with kvmctl host snapshot FILE"


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything that `policy.tick.decide` takes."""

    snapshot: Snapshot
    memory: Memory | None
    policy: HostPolicy


def read(name: str) -> Saved:
    """Read a snapshot's file; `-` is standard input. Raises NotFoundError, UsageError."""
    try:
        with open(0, "rb", closefd=False) if name == "-" else Path(name).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {name}", _HINT) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}", _HINT) from error
    if len(data) > MOST_BYTES:
        raise _wrong(name, f"it has more than {MOST_BYTES >> 20} MiB")
    return load(name, data.decode(errors="replace"))


def dump(saved: Saved) -> str:
    """One JSON document that `load` reads back to the same."""
    document = {"kvmctl": "snapshot", "version": VERSION, **_converter().unstructure(saved)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def load(name: str, text: str) -> Saved:
    """Read what `dump` wrote. Raises UsageError with the first faults where the file is something else."""
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or document.pop("kvmctl", None) != "snapshot":
        raise _wrong(name, "it is something else")
    if (version := document.pop("version", None)) != VERSION:
        raise _wrong(name, f"its version is {version}, and this kvmctl reads version {VERSION}")
    try:
        saved: Saved = _converter().structure(document, Saved)
        _check(saved)
    except BaseValidationError as error:
        raise _wrong(name, "; ".join(transform_error(error)[:3])) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _wrong(name, str(error)) from error
    return saved


def _check(saved: Saved) -> None:
    """Raises ValueError for what no tick can have seen, and no decision expects."""
    for guest in saved.snapshot.guests:
        if guest.state in sample.ACTIVE and guest.run is None:
            raise ValueError(f"guest {guest.name} is {guest.state}, and has no run")
        if guest.promise and math.isinf(guest.promise.cpu_reservation):
            raise ValueError(f"the reservation of guest {guest.name} has no bound")
    if saved.memory and saved.memory.reclaim and saved.memory.reclaim.short < 0:
        raise ValueError(f"{saved.memory.reclaim.short} looks in a row cannot be")


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"JSON has no {text}")


def _wrong(name: str, reason: str) -> UsageError:
    return UsageError(f"{name} is no snapshot of kvmctl's: {reason}", _HINT)


def _converter() -> Converter:
    # These stand there for the type checker only, so that a short command does not load them.
    vars(sample).update(Promise=Promise, ProcessSample=ProcessSample)
    converter = Converter(forbid_extra_keys=True)
    # JSON has no infinity, and sets are sorted so that equal snapshots are equal files.
    converter.register_unstructure_hook(float, lambda value: "unlimited" if math.isinf(value) else value)
    converter.register_structure_hook(float, _number)
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, _exact)
    converter.register_unstructure_hook_func(lambda kind: str(get_origin(kind)) == str(frozenset), sorted)
    return converter


def _number(value: Any, _kind: type) -> float:
    if value == "unlimited":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    if abs(value) > _MOST:
        raise ValueError(f"{value!r} is more than anything of a host")
    return float(value)


def _exact(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of the kind {kind.__name__}")
    return value
