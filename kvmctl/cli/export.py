"""`kvmctl export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.output import Column, emit, note
from kvmctl.cli.progress import Meter, duration
from kvmctl.cli.streams import ending_well
from kvmctl.model.errors import UsageError
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.control.export import Exported

_COLUMNS = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("disks", "DISKS", human_size, right=True),
    Column("memory", "MEMORY", human_size, right=True),
    Column("size", "FILE-SIZE", human_size, right=True),
    Column("file", "FILE"),
)


@click.command()
@click.argument("name", metavar="GUEST", shell_complete=complete_guests)
@click.option("-o", "--file", "file", metavar="FILE", help="Where to, - is stdout; else GUEST.tar.zst here.")
@click.option(
    "--format", "form", type=click.Choice(["kvmctl", "ova"]), default="kvmctl", help="ova is for other hypervisors."
)
@click.option("--with-memory", is_flag=True, help="Save a running guest's memory with it, and let it go on.")
@click.option("--chain", is_flag=True, help="Keep the images that a disk is over as images of their own.")
@pass_app
def export(app: App, name: str, file: str | None, form: str, with_memory: bool, chain: bool) -> None:
    """Write a guest to one file that `kvmctl import` starts from on another host.

    It holds the definition, every disk without its unused blocks, CD-ROMs, firmware variables, TPM state, kernel and
    cloud-init seed, with passwords where the definition has any: keep it as safe as the guest. It is a tar, compressed
    with zstd; `tar -x` and `sha256sum -c SHA256SUMS` read and check it as well.

    A running guest goes on meanwhile, and its disks are written as of one moment, with its file systems held still
    where its agent answers. With --with-memory it is saved first and stands still until its disks are copied; then
    it goes on from where it was, and so does the import. What fails or is interrupted leaves no file.

    A disk that is an overlay is written as one image with all that it is over; with --chain each image stays one, and
    so does it after the import. That takes a guest that is off, or --with-memory.

    --format ova writes CPUs, memory, disks and network cards as VMware and VirtualBox take them, and no more.

    \b
    Example:
      kvmctl export web1 -o web1.tar.zst
      kvmctl export web1 -o - | ssh other kvmctl import -
    """
    from kvmctl.control.export import export as write

    target = _target(name, file, form)
    with ending_well(), Meter(app) as shown:
        done = write(app.hypervisor(), name, target, with_memory, shown, form, chain)
    _report(app, done, target)


def _target(name: str, file: str | None, form: str) -> Path | None:
    if file == "-":
        if sys.stdout.isatty():
            raise UsageError("an archive is nothing for a terminal", "give a file: -o FILE, or pipe it on")
        return None
    if not file and ("/" in name or name.startswith(".")):
        raise UsageError(f"guest {name!r} has no usable file name", "give one: -o FILE")
    return Path(file or (f"{name}.ova" if form == "ova" else f"{name}.tar.zst"))


def _report(app: App, done: Exported, target: Path | None) -> None:
    manifest = done.manifest
    if done.pause:
        note(app, f"it stood still for {duration(done.pause)}, saved, and has been resumed")
    note(app, f"disks: {manifest.consistency}")
    for text in done.notes:
        note(app, text)
    if target is None:
        return
    row = {
        "name": manifest.guest,
        "state": manifest.state,
        "consistency": manifest.consistency,
        "disks": sum(part.size for part in manifest.parts if part.is_qcow2),
        "memory": next((part.size for part in manifest.of("memory")), None),
        "pause": done.pause,
        "size": done.size,
        "file": str(target),
    }
    emit(app, [row], _COLUMNS)
