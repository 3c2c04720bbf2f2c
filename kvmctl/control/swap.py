"""Host swap shown, enabled and disabled. It is the kernel's, and needs no libvirt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.host import lock, schedule, swap, swap_change, swap_unit
from kvmctl.host.journal import Entry, Journal
from kvmctl.host.swap_change import Done
from kvmctl.hypervisor.uri import is_local, meant
from kvmctl.model.errors import KvmctlError, RefusedError, UnreachableError

KIND = swap.KIND
ON, OFF = "on", "off"
"""The two states of an area that kvmctl made; one of which anything is left is on."""


def refuse_other_machine(uri: str | None) -> None:
    """Raise RefusedError where `uri`, or LIBVIRT_DEFAULT_URI, names a hypervisor that is not on this machine."""
    named = meant(uri)
    if not is_local(named):
        raise RefusedError(
            f"{named} is not on this machine, and swap can only be changed on its own", "run kvmctl there"
        )


def document() -> dict[str, Any]:
    """What this host swaps to, as a document with stable keys; sizes are bytes."""
    journal = Journal()
    found = swap.areas()
    pool = swap.zswap()
    return {
        "areas": [_row(area, swap_change.is_ours(area, journal)) for area in found],
        "size": sum(area.size for area in found),
        "used": sum(area.used for area in found),
        "swappiness": swap.swappiness(),
        "zswap": asdict(pool) if pool else None,
        "unfinished": [intent.key for intent in journal.unfinished(KIND)],
    }


def _row(area: swap.Area, ours: bool) -> dict[str, Any]:
    return {
        "name": area.name,
        "kind": area.kind,
        "size": area.size,
        "used": area.used,
        "priority": area.priority,
        "made_by_kvmctl": ours,
        "at_boot": ours and swap_unit.installed(_unit(area.name)),
        "zram": asdict(area.zram) if area.zram else None,
    }


def enable_zram(size: int, argv0: str, dry_run: bool) -> tuple[list[Done], list[str]]:
    """Swap to zram of `size` bytes, after a reboot too. What became of it, and sentences for the user."""
    with _changing(dry_run):
        journal = Journal()
        notes = [] if dry_run else swap_change.recover(journal)
        done = swap_change.enable_zram(size, journal, dry_run)
        if not dry_run:
            notes += _at_boot("zram", argv0, ("--zram", f"{size // 1024}KiB"))
    return [done], notes


def enable_file(path: Path, size: int, argv0: str, dry_run: bool) -> tuple[list[Done], list[str]]:
    """Swap to a file of `size` bytes, after a reboot too. As `enable_zram`."""
    with _changing(dry_run):
        journal = Journal()
        notes = [] if dry_run else swap_change.recover(journal)
        done = swap_change.enable_file(path, size, journal, dry_run)
        if not dry_run:
            notes += _at_boot(str(path), argv0, ("--file", str(path), f"{size // 1024}KiB"))
    return [done], notes


def disable(names: Sequence[str], dry_run: bool) -> tuple[list[Done], list[str]]:
    """Swap no more to the areas of these names, or to all that kvmctl made. What became of each, and sentences.

    Raises RefusedError, before anything is done, where what is swapped to them does not fit in memory.
    """
    with _changing(dry_run):
        journal = Journal()
        notes = [] if dry_run else swap_change.recover(journal)
        chosen = swap_change.choose(names, journal)
        swap_change.check_fits(chosen)
        if dry_run:
            done = [Done(area.name, area.kind, area.size, "disable", "pending") for area in chosen]
            return done, notes
        done = []
        for area in chosen:
            if area.ours:
                swap_unit.remove(_unit(area.name))
            done.append(_disable(area, journal, alone=len(chosen) == 1))
        if not names:
            swap_unit.remove("zram")
    return done, notes


def _disable(area: swap.Area, journal: Journal, alone: bool) -> Done:
    try:
        return swap_change.disable(area, journal)
    except KvmctlError as error:
        if alone:
            raise
        return Done(area.name, area.kind, area.size, "disable", "not applied", error.message)


def _changing(dry_run: bool) -> AbstractContextManager[None]:
    """The lock of this machine. Raises UnreachableError for who may not change what it swaps to."""
    if dry_run:
        return nullcontext()
    if os.geteuid() != 0:
        raise UnreachableError("only root may change what this host swaps to", "run this as root, or add --dry-run")
    return lock.lock(lock.HOST, LOCK_WAIT)


def _unit(name: str) -> str:
    """What the unit of an area is named after: another zram device may be free after a reboot."""
    return "zram" if name.startswith("/dev/zram") else name


def _at_boot(name: str, argv0: str, words: Sequence[str]) -> list[str]:
    """Have systemd enable the area at boot; sentences where that is not so. The area itself is enabled all the same."""
    try:
        if not swap_unit.possible():
            return ["this host has no systemd: after a reboot, enable it again"]
        said = swap_unit.install(name, schedule.job(argv0, ("-q", "swap", "enable", *words)))
    except KvmctlError as error:
        return [f"it is not enabled again after a reboot: {error.message}"]
    return [said] if said else []


def kept(journal: Journal) -> Iterator[tuple[str, Entry]]:
    """The areas that kvmctl made since boot, or has begun, by name, for `host restore`: each goes from off to on."""
    begun = {intent.key: Entry(OFF, ON, "", intent.time) for intent in journal.unfinished(KIND)}
    made = {name: Entry(OFF, ON, entry.boot, entry.time) for name, entry in journal.entries(KIND).items()}
    yield from (begun | made).items()


def state(name: str, journal: Journal) -> str:
    """Whether anything is left of an area that kvmctl made or has begun."""
    if any(intent.key == name for intent in journal.unfinished(KIND)):
        return ON
    entry = journal.entries(KIND).get(name)
    return ON if entry and swap_change.is_left(name, entry.new) else OFF


def put_back(name: str, journal: Journal, wanted: str) -> str:
    """Remove an area that kvmctl made, and its unit; its state then. Raises as `swap_change.remove`."""
    swap_change.recover(journal)
    entry = journal.entries(KIND).get(name)
    if entry and wanted == OFF:
        swap_unit.remove(_unit(name))
        swap_change.remove(name, entry)
    return state(name, journal)
