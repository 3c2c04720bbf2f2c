"""Spec to domain XML: a new guest, or one new device of a guest, from the templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvmctl.model import throttle
from kvmctl.model.defaults import drives
from kvmctl.model.platform import CPU_MODES, Platform, machine_family
from kvmctl.model.spec import DiskSpec, GuestSpec, NicSpec, cpu_shares
from kvmctl.xml import metadata
from kvmctl.xml.passed import rendered
from kvmctl.xml.resources import PERIOD, clamp_shares, quota
from kvmctl.xml.text import check_texts

if TYPE_CHECKING:
    from jinja2 import Environment

SPARE_ROOT_PORTS = 4
"""Devices that can be plugged into a running q35 guest, beside those it was made with."""


class Volume(Protocol):
    """A volume to be made."""

    @property
    def name(self) -> str:
        """Its name in its pool."""

    @property
    def capacity(self) -> int:
        """Bytes."""

    @property
    def format(self) -> str:
        """`qcow2` or `raw`."""

    @property
    def base(self) -> str | None:
        """Path of the image that it overlays."""

    @property
    def base_format(self) -> str | None:
        """`qcow2` or `raw`."""


def render(spec: GuestSpec, platform: Platform) -> str:
    """The domain XML of a new guest.

    `spec` is filled (`kvmctl.model.defaults.fill`), each of its disks has a path, or a volume that libvirt
    looks up when the guest starts, and each device of the host its address or UUID. Raises UsageError where the spec
    holds what XML or the kernel cannot take.
    """
    from markupsafe import Markup

    check_texts(spec)
    found = drives(spec)
    described = metadata.qualified(spec, found.iso.target if found.iso else None)
    return _render(
        "domain.xml.j2",
        spec=spec,
        platform=platform,
        disks=[(disk, iotune(disk)) for disk in found.all],
        nics=[(nic, bandwidth(nic)) for nic in spec.nics or ()],
        passed=[tuple(rendered(device).values()) for device in spec.passthrough or ()],
        iothreads=any(disk.iothread for disk in found.all),
        scsi=any(disk.bus == "scsi" for disk in found.all),
        root_ports=_root_ports(spec, found.all) if machine_family(spec.boot.machine) == "q35" else 0,
        # Our own serializer has escaped it already.
        metadata=Markup(described),  # noqa: S704
        shares=clamp_shares(cpu_shares(spec.cpu.shares, spec.cpu.count or 1)),
        quota=quota(spec.cpu.limit),
        period=PERIOD,
        cpu_modes=CPU_MODES,
    )


def _root_ports(spec: GuestSpec, disks: tuple[DiskSpec, ...]) -> int:
    """One for each device that takes one, and the spare ones. All conventional devices share one bridge."""
    nics = spec.nics or ()
    conventional = [nic for nic in nics if _is_conventional(nic)]
    controllers = (any(disk.bus == "scsi" for disk in disks), spec.agent, spec.rng, conventional, "balloon")
    virtio = sum(disk.bus == "virtio" for disk in disks)
    passed = len(spec.passthrough or ())
    return virtio + len(nics) - len(conventional) + passed + sum(map(bool, controllers)) + SPARE_ROOT_PORTS


def _is_conventional(nic: NicSpec) -> bool:
    """Whether the card is a PCI device of before PCI Express."""
    return not (nic.model or "virtio").startswith(("virtio", "e1000e", "igb", "vmxnet3"))


def iotune(disk: DiskSpec) -> dict[str, int]:
    """What a disk's `<iotune>` says, in libvirt's order of names; nothing where it has no ceilings."""
    return {name: value for name, value in throttle.disk_parameters(disk).items() if value}


def bandwidth(nic: NicSpec) -> dict[str, dict[str, int]]:
    """What a nic's `<bandwidth>` says, by direction; nothing where it has no ceilings."""
    found: dict[str, dict[str, int]] = {}
    for name, value in throttle.nic_parameters(nic).items():
        if value:
            way, _, attribute = name.partition(".")
            found.setdefault(way, {})[attribute] = value
    return found


def render_volume(volume: Volume) -> str:
    """The XML of a volume to be made."""
    return _render("volume.xml.j2", volume=volume)


def render_part(template: str, **values: object) -> str:
    """One part of a definition, for an existing guest; `template` is a file's name without `.xml.j2`."""
    return _render(f"{template}.xml.j2", **values)


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    """Escapes everything, and fails on what is undefined: jinja2 does neither by itself for such files."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_folder()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _folder() -> Path:
    """In an installed package the templates are inside it, in a checkout beside it."""
    package = Path(__file__).parent.parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"
