"""`kvmctl pci`: devices of the host for guests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.output import Column, confirm, emit, emit_document, emit_names, note, table, warn
from kvmctl.cli.partial import hypervisor_or_error
from kvmctl.model.errors import EXIT_PENDING, KvmctlError, PartialError

if TYPE_CHECKING:
    from kvmctl.control.pci import Machine, Plan
    from kvmctl.host.journal import Journal
    from kvmctl.host.pci_bind import Done
    from kvmctl.host.pci_kernel import Kernel
    from kvmctl.host.pci_vfs import DoneVfs
    from kvmctl.hypervisor.connection import Hypervisor

_WIDEST_USED, _WIDEST_ABOUT = 32, 37
"""Columns of a terminal: with them the table fits in 120."""
_DEVICES = (
    Column("name", "ADDRESS"),
    Column("iommu_group", "GROUP", right=True),
    Column("numa_node", "NODE", right=True),
    Column("driver", "DRIVER"),
    Column("passthrough", "PASS"),
    Column("used", "USED BY"),
    Column("about", "DEVICE"),
)
_DONE = (
    Column("name", "ADDRESS"),
    Column("old", "WAS"),
    Column("found", "IS"),
    Column("result", "RESULT"),
    Column("reason", "REASON"),
)
_SHORT: Mapping[str, str] = {
    "mount": "{name} ({through})",
    "swap": "swap ({through})",
    "volume": "volume {name}",
    "claimed": "{through} in use",
    "route": "default route ({through})",
    "address": "{name} ({through})",
    "carries": "{name}",
    "console": "console",
    "process": "process {name}",
}
_NOISE = (" Corporation", " Technology", " Technologies", ", Inc.", " Inc.", " Co., Ltd.", " Ltd.", " Co.")
"""What the names of manufacturers end with."""

_addresses = click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS [ADDRESS]...")
_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done; exit 10 if anything would.")


@click.group()
def pci() -> None:
    """PCI devices: who uses them, and which may be passed to a guest; virtual functions.

    \b
    Example:
      kvmctl pci list
      kvmctl pci bind 01:00.0
      kvmctl pci release 01:00.0
    """


@pci.command("list", short_help="Every device, who uses it, and whether it can be passed.")
@click.option("--group", type=click.IntRange(0), metavar="N", help="Only the devices of this IOMMU group.")
@click.option("--class", "class_", metavar="TEXT", help="Only classes whose number begins so, or whose name has it.")
@pass_app
def list_(app: App, group: int | None, class_: str | None) -> None:
    """List every PCI device: who uses it, and whether it can be passed to a guest.

    PASS is yes, group (only together with the others of its IOMMU group) or no. -v says why not, and which mdevs
    (parts of a card for guests) there are and can be.

    \b
    Example:
      kvmctl pci list
      kvmctl pci list --class ethernet
      kvmctl pci list -o json
    """
    from kvmctl.control import pci as control

    control.refuse_other_machine(app.uri)
    machine = _machine(_hypervisor(app))
    found = control.rows(machine)
    rows = [row for row in found if group in (None, row["iommu_group"]) and _of_class(row, class_)]
    if app.output != "table":
        emit(app, rows, ())
    elif rows:
        click.echo(table([_shown(row) for row in rows], _DEVICES), nl=False)
    else:
        note(app, "this machine has no such PCI devices" if found else "this machine has no PCI devices")
    if found and all(row["iommu_group"] is None for row in found):
        note(app, f"this machine has no IOMMU that is switched on, so no device can be passed: {machine.iommu_hint}")
    for row in rows if app.verbose else ():
        if row["reason"]:
            note(app, f"{row['name']}: {row['reason']}")
    for text in control.mdev_sentences(machine) if app.verbose else ():
        note(app, text)


def _hypervisor(app: App) -> Hypervisor | None:
    hypervisor, error = hypervisor_or_error(app)
    if error:
        warn(f"{error.message}: guests that use a device are seen only while they run")
    return hypervisor


def _machine(hypervisor: Hypervisor | None, probe: bool = False) -> Machine:
    """The devices with their guests, as far as libvirt tells."""
    from kvmctl.control import pci as control

    return control.observe(control.guests_of(hypervisor) if hypervisor else {}, probe=probe)


def _of_class(row: Mapping[str, Any], wanted: str | None) -> bool:
    return not wanted or row["class"].startswith(wanted.lower()) or wanted.lower() in row["class_name"].lower()


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    used = [f"guest {guest['name']}{' (runs)' if guest['running'] else ''}" for guest in row["guests"]]
    used += [_SHORT[use["kind"]].format(name=use["name"], through=use["through"]) for use in row["uses"]]
    if row["companions"] and not used:
        used = [f"with {row['companions'][0]}", *row["companions"][1:]]
    about = _about(row)
    if row["mdev_types"]:
        about = f"{len(row['mdevs'])} mdevs, {about}"
    if row["vfs_total"]:
        about = f"{len(row['vfs'])} of {row['vfs_total']} VFs, {about}"
    return {**row, "used": _cut(_fitting(used), _WIDEST_USED) or None, "about": _cut(about, _WIDEST_ABOUT)}


def _about(row: Mapping[str, Any]) -> str:
    """The name of a device; its class as well where the name does not say what it is."""
    title: str = row["title"]
    for word in _NOISE:
        title = title.replace(word, "")
    return f"{row['class_name']}, {title}" if title.endswith(row["ids"].partition(":")[2]) else title


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _fitting(words: Sequence[str]) -> str:
    """As many of the words as fit in a column, and how many there are besides."""
    count = len(words)
    while count > 1 and len(_listed(words, count)) > _WIDEST_USED:
        count -= 1
    return _listed(words, count)


def _listed(words: Sequence[str], count: int) -> str:
    more = len(words) - count
    return ", ".join(words[:count]) + (f" +{more}" if more else "")


@pci.command(short_help="Give devices to vfio-pci, for guests.")
@_addresses
@_dry_run
@pass_app
def bind(app: App, addresses: tuple[str, ...], dry_run: bool) -> int:
    """Take devices from the host's drivers and give them to vfio-pci, for guests.

    All devices of an IOMMU group go, or none: the others are named first, and need a yes. What the host lives on
    (a mounted disk, swap, default route, address, console) is refused, whatever is said. release gives them back.

    \b
    Example:
      kvmctl pci bind 01:00.0
      kvmctl pci bind 01:00.0 01:00.1 --dry-run
    """
    from kvmctl.control import pci as control
    from kvmctl.host.journal import Journal
    from kvmctl.host.pci_kernel import Kernel
    from kvmctl.model.pci import VFIO, parse_address

    wanted = [parse_address(text) for text in addresses]
    control.refuse_other_machine(app.uri)
    journal, kernel, hypervisor = Journal(), Kernel(), _hypervisor(app)
    with control.changing(hypervisor, dry_run):
        _recover(journal, kernel, dry_run)
        plan = control.plan_bind(wanted, _machine(hypervisor, probe=True))
        _show_others(app, plan)
        if dry_run:
            return _report(app, control.pending(plan, VFIO, journal))
        if plan.others:
            confirm(app, "Take them from the host as well?", f"binding takes {_names(plan)} as well, and needs a yes")
        done = control.bind(plan, journal, kernel)
    return _report(app, done)


def _recover(journal: Journal, kernel: Kernel, dry_run: bool) -> None:
    from kvmctl.control import pci as control

    for text in () if dry_run else control.recover(journal, kernel):
        warn(text)


def _names(plan: Plan) -> str:
    return ", ".join(device.address for device in plan.others)


def _show_others(app: App, plan: Plan) -> None:
    for device in plan.others:
        driver = f"driver {device.driver}" if device.driver else "no driver"
        note(app, f"{device.address} goes too: group {device.group}, {driver}, {device.class_name}: {device.name}")


@pci.command(short_help="Give devices back to the host's drivers.")
@_addresses
@_dry_run
@pass_app
def release(app: App, addresses: tuple[str, ...], dry_run: bool) -> int:
    """Give devices back to the drivers that they had before, with what kvmctl bound of their groups.

    A device that a running guest has is refused. One that somebody else gave to vfio-pci goes to the driver that the
    kernel chooses.

    \b
    Example:
      kvmctl pci release 01:00.0
    """
    from kvmctl.control import pci as control
    from kvmctl.host.journal import Journal
    from kvmctl.host.pci_kernel import Kernel
    from kvmctl.model.pci import parse_address

    wanted = [parse_address(text) for text in addresses]
    control.refuse_other_machine(app.uri)
    journal, kernel, hypervisor = Journal(), Kernel(), _hypervisor(app)
    with control.changing(hypervisor, dry_run):
        _recover(journal, kernel, dry_run)
        plan = control.plan_release(wanted, _machine(hypervisor), journal)
        _show_others(app, plan)
        done = control.pending(plan, None, journal) if dry_run else control.release(plan, journal, kernel, hypervisor)
    return _report(app, done)


def _report(app: App, done: Sequence[Done]) -> int:
    rows = [{"name": one.address} | {k: v for k, v in asdict(one).items() if k != "address"} for one in done]
    emit(app, rows, _DONE)
    failed = [one for one in done if one.result == "not applied"]
    if failed and len(failed) == len(done) == 1:
        raise KvmctlError(
            f"{failed[0].address} was not given back: {failed[0].reason}", "kvmctl host restore tries again"
        )
    if failed:
        raise PartialError(f"{len(failed)} of {len(done)} devices were not given back", "the reasons stand above")
    return EXIT_PENDING if any(one.result == "pending" for one in done) else 0


@pci.command(short_help="Set how many virtual functions a card has.")
@click.argument("address", metavar="PF")
@click.argument("count", type=click.IntRange(0, 65535), metavar="N")
@click.option("--persist", is_flag=True, help="After every reboot too, by a rule for udev; with 0 never more.")
@_dry_run
@pass_app
def vfs(app: App, address: str, count: int, persist: bool, dry_run: bool) -> int:
    """Set how many virtual functions (SR-IOV) a card has, and print their addresses.

    Other virtual functions than 0 are removed first, so this is refused while one of them is in use.

    \b
    Example:
      kvmctl pci vfs 01:00.0 4
      kvmctl pci vfs 01:00.0 4 --persist
      kvmctl pci vfs 01:00.0 0
    """
    from kvmctl.control import pci as control
    from kvmctl.host.journal import Journal
    from kvmctl.host.pci_kernel import Kernel
    from kvmctl.model.pci import parse_address

    pf = parse_address(address)
    control.refuse_other_machine(app.uri)
    journal, kernel, hypervisor = Journal(), Kernel(), _hypervisor(app)
    with control.changing(hypervisor, dry_run):
        _recover(journal, kernel, dry_run)
        done = control.set_vfs(pf, count, persist, _machine(hypervisor), journal, kernel, dry_run)
    return _report_vfs(app, done)


def _report_vfs(app: App, done: DoneVfs) -> int:
    if app.output == "name":
        emit_names(done.vfs)
    elif app.output == "table":
        click.echo(f"{done.address}: {done.old} -> {done.wanted} virtual functions, {done.result}")
        for function in done.vfs:
            click.echo(f"  {function}")
    else:
        emit_document(app, {"name": done.address} | {k: v for k, v in asdict(done).items() if k != "address"})
    if done.persistent not in (None, done.wanted) and done.result != "pending":
        warn(f"after a reboot it has {done.persistent} again; --persist changes that")
    return EXIT_PENDING if done.result == "pending" else 0
