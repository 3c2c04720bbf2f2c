"""attach and detach: disks, nics and media, on a running guest at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.changes import show_outcomes, show_pending
from kvmctl.cli.completion import complete_guests
from kvmctl.cli.duration import seconds
from kvmctl.cli.output import warn
from kvmctl.model.errors import UsageError
from kvmctl.model.wording import quoted

if TYPE_CHECKING:
    from kvmctl.control.plan import GuestPlan, Planner
    from kvmctl.hypervisor.connection import Hypervisor
    from kvmctl.model.fields import Field
    from kvmctl.model.spec import GuestSpec

_name = click.argument("name", metavar="NAME", shell_complete=complete_guests)
_dry_run = click.option("--dry-run", is_flag=True, help="Show the change, make none; exit 10 if there is one.")


@click.command()
@_name
@click.argument("assignments", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--disk", metavar="VOLUME|PATH", help="A volume (made where it does not exist and a size is said) or file."
)
@click.option("--nic", metavar="NETWORK", help="A nic on a libvirt network.")
@click.option("--bridge", metavar="BRIDGE", help="A nic on a bridge of the host.")
@click.option("--user-nic", is_flag=True, help="A nic on QEMU's own network.")
@click.option("--pci", metavar="ADDRESS", help="A PCI device of the host.")
@click.option("--vf-of", metavar="PF", help="A free virtual function of this card.")
@click.option("--mdev", metavar="UUID", help="A mediated device of the host.")
@click.option("--iso", metavar="PATH", help="An ISO image, into a CD-ROM drive; what was in it comes out.")
@click.option("--target", metavar="DRIVE", help="With --iso: which drive, such as sda.")
@click.option("--force", is_flag=True, help="With --iso: even from a drive that the guest has locked.")
@_dry_run
@pass_app
def attach(
    app: App,
    name: str,
    assignments: tuple[str, ...],
    disk: str | None,
    nic: str | None,
    bridge: str | None,
    user_nic: bool,
    pci: str | None,
    vf_of: str | None,
    mdev: str | None,
    iso: str | None,
    target: str | None,
    force: bool,
    dry_run: bool,
) -> int:
    """Give a guest a disk, a nic, a device of the host or another medium: at once where it runs, and for good.

    The fields are those of an entry of disks, nics or passthrough in a guest file.

    \b
    Example:
      kvmctl attach web1 --disk data.qcow2 size=10GiB iops=500
      kvmctl attach web1 --nic default mode=emulated bandwidth.in=100Mbit
      kvmctl attach web1 --vf-of 01:00.0 vlan=12
      kvmctl attach web1 --iso /var/lib/libvirt/images/tools.iso
    """
    from kvmctl.control import attach as control
    from kvmctl.model.fields import DISK, NIC, PASSED
    from kvmctl.model.spec import DiskSpec, NicSpec, PassedSpec

    passed = {"--pci": pci, "--vf-of": vf_of, "--mdev": mdev}
    links = {"--nic": ("network", nic), "--bridge": ("bridge", bridge), "--user-nic": ("user", user_nic or None)}
    said = {"--disk": disk, **{key: link for key, (_, link) in links.items()}, **passed, "--iso": iso}
    (what,) = _one([key for key, value in said.items() if value is not None])
    if what != "--iso" and (target is not None or force):
        raise UsageError("--target and --force are about the drive of --iso", "write target=vdb for a disk's name")
    hypervisor = app.hypervisor()

    def wish() -> GuestSpec:
        if what == "--disk":
            source = {"path" if str(disk).startswith("/") else "volume": str(disk)}
            return control.with_disk(hypervisor, name, DiskSpec(**_entry(DISK, source, assignments)))
        if what == "--iso":
            path = _entry(DISK, {"path": str(iso)}, assignments)
            if set(path) != {"path"}:
                raise UsageError("a medium has no fields", "leave out FIELD=VALUE, or say --target for the drive")
            return control.with_medium(hypervisor, name, path["path"], target)
        if what in passed:
            entry = _entry(PASSED, {what.removeprefix("--"): str(passed[what])}, assignments)
            return control.with_passed(hypervisor, name, PassedSpec(**entry))
        key, value = links[what]
        link = {key: "true" if value is True else str(value)}
        return control.with_nic(hypervisor, name, NicSpec(**_entry(NIC, link, assignments)))

    return _run(app, hypervisor, wish, None, 0.0, force, dry_run)


def _one(said: Sequence[str]) -> Sequence[str]:
    if len(said) != 1:
        raise UsageError(
            "say one thing to attach: --disk, --nic, --bridge, --user-nic, --pci, --vf-of, --mdev or --iso",
            "kvmctl attach --help shows how",
        )
    return said


def _entry(table: Mapping[str, Field], source: Mapping[str, str], assignments: Sequence[str]) -> dict[str, Any]:
    """The attributes of one entry of a list. Raises UsageError that names each field that cannot be read."""
    from kvmctl.model.fields import Context, attribute
    from kvmctl.model.wording import nearest

    found: dict[str, Any] = {}
    faults = []
    pairs = [*source.items(), *(_pair(text) for text in assignments)]
    for key, text in pairs:
        try:
            if key not in table:
                raise ValueError(f"there is no such field; {nearest(key, table)}")
            if attribute(key) in found:
                raise ValueError("it is said twice")
            found[attribute(key)] = table[key].parse(text, Context())
        except ValueError as error:
            faults.append(f"{key if key in table else quoted(key)}: {error}")
    if faults:
        raise UsageError("\n".join(faults), "nothing was changed")
    return found


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{quoted(text)} is not FIELD=VALUE", "for example: size=10GiB")
    return key, value


@click.command()
@_name
@click.argument("target", metavar="TARGET")
@click.option(
    "--timeout", callback=seconds, default="30s", show_default=True, metavar="TIME", help="For the guest to let go."
)
@click.option("--force", is_flag=True, help="Eject a medium even if the guest has locked the drive.")
@_dry_run
@pass_app
def detach(app: App, name: str, target: str, timeout: float, force: bool, dry_run: bool) -> int:
    """Take a disk, nic or device of the host from a guest, or the medium from its CD-ROM drive. No image is deleted.

    TARGET is a disk's or drive's name such as vdb, a nic's MAC address, or the address or UUID of a device of the host.
    A running guest is asked to let go, and only then its definition is changed; one that does not is exit 7, and keeps
    the device.

    \b
    Example:
      kvmctl detach web1 vdb
      kvmctl detach web1 52:54:00:12:34:56
      kvmctl detach web1 01:00.0
    """
    from kvmctl.control import attach as control

    hypervisor = app.hypervisor()
    target = _called(target)
    return _run(app, hypervisor, lambda: control.without(hypervisor, name, target), target, timeout, force, dry_run)


def _called(target: str) -> str:
    """A MAC address, UUID or PCI address as a definition has it."""
    from kvmctl.model.pci import parse_address

    try:
        return parse_address(target)
    except UsageError:
        return target.lower() if ":" in target or "-" in target else target


def _run(
    app: App, hypervisor: Hypervisor, wish: Any, target: str | None, timeout: float, force: bool, dry_run: bool
) -> int:
    """Plan under the lock, then show or do it; `target` is what a detach takes away."""
    from contextlib import nullcontext

    from kvmctl.control import attach as control
    from kvmctl.control.guarded import LOCK_WAIT
    from kvmctl.host.lock import lock

    with nullcontext() if dry_run else lock(hypervisor.uri, LOCK_WAIT):
        plan = _plan(_planner(hypervisor), wish(), target, force)
        if dry_run:
            return show_pending(app, [plan], [])
        done = control.change_media(plan) or (control.unplug(plan, timeout) if target else None)
        done = done or (control.only_unplugged(hypervisor, plan) if target else None)
        if done:
            return show_outcomes(app, [plan], [done])
        from kvmctl.control.apply import run

        return show_outcomes(app, [plan], run(hypervisor, [plan] if plan.changes else []))


def _planner(hypervisor: Hypervisor) -> Planner:
    from kvmctl.control.accelerate import chooser
    from kvmctl.control.plan import Planner

    return Planner(hypervisor, chooser(hypervisor, warn))


def _plan(planner: Planner, wanted: GuestSpec, target: str | None, force: bool) -> GuestPlan:
    from dataclasses import replace

    from kvmctl.control import attach as control

    if target:
        return replace(control.plan_without(planner, wanted, target), force=force)
    return replace(control.refuse_twice(planner.plan(wanted, must_exist=True)), force=force)
