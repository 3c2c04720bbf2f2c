"""PCI devices: their addresses, who uses them, and whether they may be passed to a guest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kvmctl.model.errors import UsageError
from kvmctl.model.wording import quoted

VFIO = "vfio-pci"
"""The driver that keeps a device for guests."""
NO_DRIVER = "none"
"""What reports and the journal say of a device that no driver has."""

_ADDRESS = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([01]?[0-9a-fA-F])\.([0-7])")
"""Domain (0 where left out), bus, slot and function. Domains above ffff are those of Intel VMD and of Hyper-V."""

UseKind = Literal["mount", "swap", "volume", "claimed", "route", "address", "carries", "console", "process"]
Passable = Literal["yes", "group", "no"]
"""`group`: only together with others, since the IOMMU cannot tell them apart."""


def parse_address(text: str) -> str:
    """The address as the kernel writes it: `01:00.0` is 0000:01:00.0. Raises UsageError for what is none."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{quoted(text)} is not a PCI address", "write it as in 0000:01:00.0 or 01:00.0; kvmctl pci list shows them"
        )
    domain, bus, slot, function = (int(part or "0", 16) for part in found.groups())
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def is_address(text: str) -> bool:
    """Whether the text is an address just as the kernel writes it."""
    return _ADDRESS.fullmatch(text) is not None and parse_address(text) == text


def order(address: str) -> tuple[int, ...]:
    """What addresses are sorted by: as numbers, domain first."""
    return tuple(int(part, 16) for part in re.split(r"[:.]", address))


@dataclass(frozen=True, slots=True)
class Use:
    """One thing that a device is used for. `through` is the disk, interface or terminal that makes the connection."""

    kind: UseKind
    name: str = ""
    through: str = ""

    @property
    def vital(self) -> bool:
        """Whether the host lives on it. A process that has it open can be stopped."""
        return self.kind != "process"


@dataclass(frozen=True, slots=True)
class GuestUse:
    """A guest whose definition names the device; `running` where it has it now. `managed`: libvirt binds it itself."""

    name: str
    running: bool
    managed: bool


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One PCI function. None is what the kernel does not tell, or has not set."""

    address: str
    vendor: int
    device: int
    class_code: int
    """Base class and subclass, 16 bits."""
    name: str
    class_name: str
    driver: str | None = None
    override: str | None = None
    """The driver that somebody has ordered for it, whatever would match."""
    numa_node: int | None = None
    group: int | None = None
    """The IOMMU group."""
    total_vfs: int | None = None
    """How many virtual functions it can have; None where it is no physical function of SR-IOV."""
    vfs: tuple[str, ...] = ()
    """The addresses of those it has."""
    pf: str | None = None
    """The physical function that this one is a virtual function of."""
    uses: tuple[Use, ...] = ()
    guests: tuple[GuestUse, ...] = ()

    @property
    def ids(self) -> str:
        """Vendor and device as `lspci -n` writes them."""
        return f"{self.vendor:04x}:{self.device:04x}"


@dataclass(frozen=True, slots=True)
class MdevType:
    """One kind of mdev that a device can be divided into."""

    name: str
    title: str
    """What its driver calls it for people; may be empty."""
    interface: str
    """What a guest sees it as: `vfio-pci`, or another."""
    available: int | None
    """How many more there can be."""


@dataclass(frozen=True, slots=True)
class Mdev:
    """One mediated device; `parent` is the device that it is a part of, by its name in the kernel."""

    uuid: str
    parent: str
    type: str
    group: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a device may be passed to a guest, and why not, or with which others."""

    passable: Passable
    reason: str = ""
    companions: tuple[str, ...] = ()
