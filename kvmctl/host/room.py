"""Memory that guests which are about to start will want: what a start asks the controller for, beforehand.

Each wish is a small file that counts for a short time, so that a start that is killed leaves nothing that matters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvmctl.host.files import make_private_directory, read_permitted, run_directory, write_atomic
from kvmctl.host.journal import boot_id

LASTS = 75.0
"""Seconds for which room is kept: a guest that boots has taken it by then."""


def ask(uri: str, name: str, amount: int) -> None:
    """Ask for `amount` bytes for this guest. Raises KvmctlError."""
    make_private_directory(_folder())
    wish = {"boot": boot_id(), "until": time.monotonic() + LASTS, "uri": uri, "guest": name, "bytes": amount}
    write_atomic(_file(uri, name), json.dumps(wish), durable=False)


def drop(uri: str, name: str) -> None:
    """Ask for nothing more."""
    with suppress(OSError):
        _file(uri, name).unlink(missing_ok=True)


def asked(uri: str, resident: Mapping[str, int | None]) -> int:
    """Bytes that are asked for now, less what these guests hold of it already, by name. What is asked for on another
    hypervisor of this machine counts too; what counts no more is removed."""
    total = 0
    wishes = _wishes()  # hardly ever any, and every tick asks
    boot = boot_id() if wishes else ""
    for path in wishes:
        wish = _valid(read_permitted(path) or "", boot)
        if wish is None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            held = resident.get(wish["guest"]) if wish["uri"] == uri else None
            total += max(0, wish["bytes"] - (held or 0))
    return total


def _valid(text: str, boot: str) -> Any:
    try:
        wish = json.loads(text)
        lasts = 0 < float(wish["until"]) - time.monotonic() <= LASTS
        known = isinstance(wish["guest"], str) and isinstance(wish["uri"], str) and isinstance(wish["bytes"], int)
        return wish if known and lasts and wish["boot"] == boot else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _wishes() -> list[Path]:
    try:
        return sorted(_folder().glob("*.json"))
    except OSError:
        return []


def _file(uri: str, name: str) -> Path:
    key = sha256(f"{uri} {name}".encode(errors="replace")).hexdigest()[:32]
    return _folder() / f"{key}.json"


def _folder() -> Path:
    return run_directory() / "room"
