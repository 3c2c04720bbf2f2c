"""`kvmctl backup`."""

from __future__ import annotations

from pathlib import Path

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, emit, note, warn
from kvmctl.cli.paths import not_empty
from kvmctl.cli.progress import Gauge
from kvmctl.cli.snapshot import guest_argument, one_guest
from kvmctl.model.backup import Manifest, lineage
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, UsageError
from kvmctl.model.units import human_size

_COLUMNS = (
    Column("name", "BACKUP"),
    Column("size", "SIZE", human_size, right=True),
    Column("parent", "OVER"),
    Column("restorable", "RESTORABLE", lambda value: "yes" if value else "NO"),
    Column("faults", "FAULTS", "; ".join),
)


@click.command()
@guest_argument
@click.argument("folder", metavar="DIR", callback=not_empty)
@click.option("--incremental", is_flag=True, help="Only what changed since the last backup in that folder.")
@click.option("--list", "list_", is_flag=True, help="Only list the backups of the guest in that folder.")
@click.option("--verify", is_flag=True, help="Only list them, and compare every file with its sum.")
@pass_app
def backup(app: App, guest: str, folder: str, incremental: bool, list_: bool, verify: bool) -> None:
    """Back a guest up into a folder: its disks at one moment, definition, NVRAM and TPM state, with their sums.

    A guest that runs goes on meanwhile; an agent in it freezes its file systems for that moment. A full backup of
    a running guest whose disks are all qcow2 lets incremental ones follow. Each disk of a backup, disks/vda.qcow2
    in its folder, is whole for every tool that reads qcow2: qemu-img convert makes an image of it. kvmctl import makes
    a guest of any of them.

    \b
    Example:
      kvmctl backup web1 /srv/backup
      kvmctl backup web1 /srv/backup --incremental
      kvmctl backup web1 /srv/backup --verify
    """
    from kvmctl.control import backup as control

    if list_ or verify:
        if incremental:
            raise UsageError("--incremental makes a backup, --list and --verify do not", "give one of them")
        _show(app, guest, Path(folder), verify)
        return
    hypervisor = app.hypervisor()
    found = one_guest(hypervisor, guest)
    with Gauge(app) as gauge:
        made = control.backup(hypervisor, found, Path(folder), incremental, warn, gauge.show)
    _print(app, {made.id: made}, {})
    note(app, f"{guest}: {made.consistency}")


def _show(app: App, guest: str, folder: Path, verify: bool) -> None:
    from kvmctl.control import backup as control

    home = control.home_of(folder, guest)
    known, faults = control.manifests(home)
    for fault in [] if verify else faults:
        warn(fault)
    if not known and not faults:
        raise NotFoundError(f"there is no backup of guest {guest} in {folder}", "kvmctl backup GUEST DIR makes one")
    wrong: dict[str, list[str]] = {}
    if verify:
        with Gauge(app) as gauge:
            wrong = control.verify(home, known, gauge.show)
    _print(app, known, wrong)
    if verify:
        _check_whole(known, faults, wrong)


def _check_whole(known: dict[str, Manifest], faults: list[str], wrong: dict[str, list[str]]) -> None:
    """Raise KvmctlError that names what cannot be restored: damaged, over one that is, or unreadable."""
    lost = [one.id for one in known.values() if not _restorable(known, wrong, one)]
    said = [f"{len(lost)} of {len(known)} backups cannot be restored: {', '.join(lost)}"] if lost else []
    said += [f"{len(faults)} cannot be read: {'; '.join(faults)}"] if faults else []
    if said:
        raise KvmctlError("; ".join(said), "take a full backup")


def _print(app: App, known: dict[str, Manifest], wrong: dict[str, list[str]]) -> None:
    rows = []
    for one in known.values():
        rows.append(
            {
                "name": one.id,
                "guest": one.guest,
                "uuid": one.uuid,
                "kind": one.kind,
                "parent": one.parent,
                "created": one.created,
                "size": one.size,
                "consistency": one.consistency,
                "restorable": _restorable(known, wrong, one),
                "faults": wrong.get(one.id, []),
            }
        )
    emit(app, rows, _COLUMNS)


def _restorable(known: dict[str, Manifest], wrong: dict[str, list[str]], one: Manifest) -> bool:
    try:
        return not any(wrong.get(each.id) for each in lineage(known, one.id))
    except ConflictError:
        return False
