"""Domain XML to spec: of any domain, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast
from xml.etree.ElementTree import Element

from kvmctl.model.spec import ACCELERATORS, BootSpec, DiskSpec, GuestSpec, IoSpec, NicSpec
from kvmctl.xml import devices, metadata, passed, resources, tree
from kvmctl.xml.metadata import Metadata
from kvmctl.xml.unexpressed import unexpressed

BOOT_DEVICES = {"hd": "disk", "cdrom": "cdrom", "network": "network"}
"""libvirt's words for what a guest starts from, and the guest file's."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A definition as a spec, and what the spec leaves out."""

    spec: GuestSpec
    """Every field that the XML knows has its value; `autostart` and `state` are not in it, so not said. Texts
    that are absent (a kernel, a description) are None, and no pinning is the empty string."""
    notes: tuple[str, ...]
    """A sentence for each part of our metadata that could not be read, and so counts as unsaid."""
    root: Element = field(repr=False, compare=False)
    """The domain itself."""

    @property
    def unexpressed(self) -> tuple[str, ...]:
        """In plain words, what a guest file cannot say. Editing the definition never touches it."""
        return unexpressed(self.root)  # as long again as reading the spec, and seldom asked for


def parse(domain_xml: str) -> Parsed:
    """Read a definition, of a stopped or of a running guest. Raises UsageError where it is no domain's XML."""
    root = tree.read(domain_xml)
    said = metadata.of(root)
    return Parsed(spec_of(root, said), said.notes, root)


def spec_of(root: Element, said: Metadata) -> GuestSpec:
    """The spec of a domain that has this metadata."""
    iso, disks = _drives(root, said)
    return GuestSpec(
        name=root.findtext("name", ""),
        cpu=resources.cpu(root, said),
        memory=resources.memory(root, said),
        boot=_boot(root, iso),
        io=IoSpec(tree.number(root.findtext("blkiotune/weight")) or 0),
        accelerator=ACCELERATORS.get(root.get("type", "")),
        disks=disks,
        nics=tuple(
            nic for element in root.iterfind("devices/interface") if isinstance(nic := devices.nic(element), NicSpec)
        ),
        passthrough=passed.devices(root, said.passed),
        cloud_init=said.cloud_init,
        console=devices.console(root),
        vnc=devices.vnc(root),
        agent=any(map(devices.is_agent, root.iterfind("devices/channel"))),
        rng=any(map(devices.is_rng, root.iterfind("devices/rng"))),
        description=tree.text(root, "description"),
        labels=said.labels,
        rebalance=None if said.rebalance else False,
        project=said.project,
    )


def _drives(root: Element, said: Metadata) -> tuple[str | None, tuple[DiskSpec, ...]]:
    """The ISO that the guest starts from, and its disks less that ISO's drive and the seed's."""
    if tree.text(root, "os/kernel"):
        said = replace(said, iso=None)  # with a kernel, an ISO is a CD-ROM like any other
    disks = [disk for element in root.iterfind("devices/disk") if isinstance(disk := devices.disk(element), DiskSpec)]
    iso = next((disk for disk in disks if is_iso_drive(disk, said)), None)
    own = tuple(disk for disk in disks if disk is not iso and not is_seed_drive(disk, said))
    return (iso.path if iso else None), own


def is_iso_drive(disk: DiskSpec, said: Metadata) -> bool:
    """Whether this is the drive of `boot.iso`."""
    return disk.device == "cdrom" and disk.target == said.iso


def is_seed_drive(disk: DiskSpec, said: Metadata) -> bool:
    """Whether this is the drive of the cloud-init seed."""
    return bool(said.cloud_init and said.cloud_init.seed and disk.path == said.cloud_init.seed)


def _boot(root: Element, iso: str | None) -> BootSpec:
    kernel = tree.text(root, "os/kernel")
    machine = root.find("os/type")
    return BootSpec(
        kernel=kernel,
        initrd=tree.text(root, "os/initrd") if kernel else None,
        cmdline=tree.text(root, "os/cmdline") if kernel else None,
        iso=iso,
        order=boot_order(root),
        firmware=cast("Any", firmware(root)),
        machine=None if machine is None else machine.get("machine"),
    )


def firmware(root: Element) -> str | None:
    """`bios` or `uefi`; None where the guest is not a full virtual machine."""
    if root.findtext("os/type") != "hvm":
        return None
    chosen = root.find("os")
    if chosen is not None and chosen.get("firmware"):
        return "uefi" if chosen.get("firmware") == "efi" else "bios"
    loader = root.find("os/loader")
    return "uefi" if loader is not None and loader.get("type") == "pflash" else "bios"


def boot_order(root: Element) -> tuple[str, ...] | None:
    """What the guest tries to start from, in turn; where single devices have numbers, by these."""
    if root.findtext("os/type") != "hvm":
        return None
    named = [boot.get("dev", "") for boot in root.iterfind("os/boot")]
    kinds = [BOOT_DEVICES[name] for name in named if name in BOOT_DEVICES] if named else _numbered(root)
    return tuple(dict.fromkeys(kinds)) or ("disk",)


def _numbered(root: Element) -> list[str]:
    numbered: list[tuple[int, str]] = []
    for element in (*root.iterfind("devices/disk"), *root.iterfind("devices/interface")):
        boot = element.find("boot")
        number = None if boot is None else tree.number(boot.get("order"))
        if number is not None:
            kind = "network" if element.tag == "interface" else element.get("device", "disk")
            numbered.append((number, kind))
    return [kind for _, kind in sorted(numbered) if kind in BOOT_DEVICES.values()]
