"""The PCI devices of this machine: what the kernel says of each, and what the host uses it for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kvmctl.host import pci_block, pci_net, pci_process
from kvmctl.host.files import read_int, read_permitted
from kvmctl.host.pci_ids import PciIds
from kvmctl.host.pci_kernel import DEVICES, ROOT, driver, link, override
from kvmctl.model.errors import NotFoundError
from kvmctl.model.pci import NO_DRIVER, VFIO, PciDevice, Use, is_address, order

_NO_ISOLATION = "vfio-noiommu"
"""The name of a group that VFIO makes up for a device that no IOMMU covers."""
_INTEL = "switch VT-d on in the firmware, and boot with intel_iommu=on on the kernel's command line"
_AMD = "switch IOMMU (AMD-Vi) on in the firmware, and boot without amd_iommu=off on the kernel's command line"
_EITHER = "switch it on in the firmware, and boot with intel_iommu=on; AMD's is on unless amd_iommu=off is given"
_UNSAFE = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
_REMAPPED = re.compile(r"\bIR-|\bAMD-IR\b")
"""How the kernel names interrupts that an IOMMU remaps, in /proc/interrupts."""
_VIRTUAL = "; this machine is itself a guest, so its hypervisor has to give it one"


def addresses(root: Path = ROOT) -> list[str]:
    """The addresses of all devices, in their order."""
    return sorted((name for name in pci_block.names_in(root / DEVICES) if is_address(name)), key=order)


def devices(root: Path = ROOT, known: pci_net.Addresses | None = None, probe: bool = False) -> tuple[PciDevice, ...]:
    """All devices with what the host uses them for; one that vanishes meanwhile is left out.

    `known` are the addresses of the interfaces, else this machine's own; `probe` as in `pci_block.uses`.
    """
    if known is None:
        known = pci_net.addresses() if root == ROOT else {}
    names = PciIds(root)
    used: dict[str, dict[Use, None]] = {}
    for address, use in _uses(root, known, probe):
        used.setdefault(address, {})[use] = None
    found = []
    for address in addresses(root):
        try:
            found.append(replace(read(address, root, names), uses=_told(used.get(address, {}))))
        except NotFoundError:
            continue
    return tuple(found)


def _uses(root: Path, known: pci_net.Addresses, probe: bool) -> Iterator[tuple[str, Use]]:
    yield from pci_block.uses(root, probe)
    yield from pci_net.uses(root, known)
    yield from _consoles(root)
    yield from pci_process.uses(root)


def _told(uses: dict[Use, None]) -> tuple[Use, ...]:
    """The uses without those that others explain: a volume by what is mounted of it."""
    explained = {use.through for use in uses if use.kind in ("mount", "swap")}
    return tuple(use for use in uses if use.kind != "volume" or use.through not in explained)


def read(address: str, root: Path = ROOT, names: PciIds | None = None) -> PciDevice:
    """One device, without its uses. Raises NotFoundError where there is no such device."""
    names = names or PciIds(root)
    path = root / DEVICES / address
    bound = driver(address, root)
    class_code = _hex(path / "class") >> 8
    vendor, device = _hex(path / "vendor"), _hex(path / "device")
    node = read_int(path / "numa_node")
    return PciDevice(
        address=address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        name=names.device(vendor, device),
        class_name=names.class_(class_code),
        driver=None if bound == NO_DRIVER else bound,
        override=override(address, root) or None,
        numa_node=None if node is None or node < 0 else node,
        group=_group(path),
        total_vfs=read_int(path / "sriov_totalvfs"),
        vfs=virtual_functions(address, root),
        pf=link(path / "physfn"),
    )


def _hex(path: Path) -> int:
    """A number such as 0x8086; 0 where a device that vanishes has none any more."""
    try:
        return int(read_permitted(path) or "0", 16)
    except ValueError:
        return 0


def _group(path: Path) -> int | None:
    number = link(path / "iommu_group")
    if number is None or not number.isdigit():
        return None
    made_up = (read_permitted(path / "iommu_group/name") or "").strip() == _NO_ISOLATION
    return None if made_up else int(number)


def virtual_functions(address: str, root: Path = ROOT) -> tuple[str, ...]:
    """The virtual functions of a device, in the order of its links: their addresses need not be contiguous."""
    path = root / DEVICES / address
    links = [name for name in pci_block.names_in(path) if name.startswith("virtfn") and name[6:].isdigit()]
    found = [link(path / name) for name in sorted(links, key=lambda name: int(name[6:]))]
    return tuple(one for one in found if one)


def _consoles(root: Path) -> Iterator[tuple[str, Use]]:
    """The card that the firmware showed its messages on, and serial cards that are the kernel's console."""
    for address in addresses(root):
        # What a guest has been given shows the host's messages no more.
        if read_int(root / DEVICES / address / "boot_vga") == 1 and driver(address, root) != VFIO:
            yield address, Use("console")
    for name in (read_permitted(root / "sys/class/tty/console/active") or "").split():
        path = root / "sys/class/tty" / name
        yield from ((card, Use("console", through=name)) for card in pci_block.pci_in(path))


def interrupts_unsafe(root: Path = ROOT) -> bool:
    """Whether devices of a guest could raise any interrupt of this machine: VFIO lets no guest have one then, unless
    its parameter allows that."""
    text = read_permitted(root / "proc/interrupts") or ""
    # Only x86 has it, and only there can an IOMMU be without remapping.
    if "IO-APIC" not in text or _REMAPPED.search(text):
        return False
    return (read_permitted(root / _UNSAFE) or "").strip() not in ("Y", "1")


def iommu_hint(root: Path = ROOT) -> str:
    """What has to be switched on for this machine to have an IOMMU."""
    text = read_permitted(root / "proc/cpuinfo") or ""
    vendor = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("vendor_id")), "")
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    hint = {"GenuineIntel": _INTEL, "AuthenticAMD": _AMD}.get(vendor, _EITHER)
    return hint + (_VIRTUAL if "hypervisor" in flags else "")
