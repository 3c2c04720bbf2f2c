"""What would make a guest fail later, found before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from kvmctl.control.resolve import VolumePlan
from kvmctl.host import access, traffic
from kvmctl.hypervisor import host, networks
from kvmctl.hypervisor.capabilities import qemu_user
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import fields
from kvmctl.model.cpuset import format_cpuset, parse_cpuset
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.spec import GuestSpec
from kvmctl.policy.pinning import unusable

_PINS = ("cpu.pin", "cpu.emulator-pin")


def problems(
    hypervisor: Hypervisor, spec: GuestSpec, volumes: tuple[VolumePlan, ...], capabilities: str, starts: bool
) -> Iterator[KvmctlError]:
    """Everything that stands in the way of what `spec` says, in its own order."""
    if hypervisor.local:
        yield from _files(spec, {volume.path for volume in volumes}, qemu_user(capabilities))
    if hypervisor.local:
        yield from _traffic(spec)
    for nic in spec.nics or ():
        if nic.network:
            yield from _network(hypervisor, spec.name, nic.network, starts)
        if nic.bridge and hypervisor.local and not access.exists(f"/sys/class/net/{nic.bridge}/bridge"):
            yield NotFoundError(
                f"guest {spec.name}: there is no bridge {nic.bridge!r} on this host",
                f"make it: ip link add {nic.bridge} type bridge",
            )


def _traffic(spec: GuestSpec) -> Iterator[RefusedError]:
    """Ceilings of nics that this kernel has no means for: a guest with one does not start."""
    for way, words in (("in", "comes to"), ("out", "is sent by")):
        limited = any(getattr(nic, f"bandwidth_{way}") for nic in spec.nics or ())
        if limited and (why := traffic.missing(way)):
            yield RefusedError(
                f"guest {spec.name}: this host's kernel cannot limit what {words} a nic: {why}",
                f"load what it lacks: modprobe -a {traffic.MODULES[way]}; or leave out bandwidth.{way}",
            )


def pins(hypervisor: Hypervisor, spec: GuestSpec, keys: Collection[str] | None = None) -> Iterator[RefusedError]:
    """The pinnings of `spec` that this host's CPUs do not allow; of those among `keys`, where these are given."""
    said = [(key, str(text)) for key in _PINS if (keys is None or key in keys) and (text := fields.get(spec, key))]
    found = host.cpus(hypervisor) if said else None
    for key, text in said:
        with suppress(ValueError):  # somebody else's, which only libvirt can judge
            if found and (why := unusable(parse_cpuset(text), found)):
                hint = f"choose from {format_cpuset(found.online)}, or write none"
                yield RefusedError(f"guest {spec.name}: {key} {why}", hint)


def _files(spec: GuestSpec, to_be_made: set[str], user: tuple[int, int] | None) -> Iterator[KvmctlError]:
    named = [("kernel", spec.boot.kernel), ("initrd", spec.boot.initrd), ("ISO image", spec.boot.iso)]
    named += [("disk", disk.path) for disk in spec.disks or ()]
    for what, path in named:
        if not path or path in to_be_made:
            continue
        if not access.exists(path):
            yield NotFoundError(
                f"guest {spec.name}: the {what} {path} does not exist", "check the path in the guest file"
            )
        elif Path(path).is_dir():
            yield UsageError(f"guest {spec.name}: the {what} {path} is a folder", "check the path in the guest file")
        elif user and (folder := access.closed_folder(path, *user)):
            name = access.user_name(user[0])
            yield RefusedError(
                f"guest {spec.name}: QEMU runs as {name}, who may not enter {folder}: it cannot read the {what} {path}",
                f"move it to a folder that {name} can enter, such as /var/lib/libvirt/images",
            )


def _network(hypervisor: Hypervisor, guest: str, name: str, starts: bool) -> Iterator[KvmctlError]:
    active = networks.is_active(hypervisor, name)
    if active is None:
        known = ", ".join(networks.names(hypervisor)) or "none"
        yield NotFoundError(f"guest {guest}: there is no network {name!r} (known: {known})", "virsh net-list --all")
    elif not active and starts:
        yield ConflictError(
            f"guest {guest}: network {name!r} is not active, so the guest cannot start",
            f"start it: virsh net-start {name}",
        )
