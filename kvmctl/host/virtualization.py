"""What kind of virtualization this host can give its guests: processor, kernel module, /dev/kvm, IOMMU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvmctl.host.files import read_permitted

_ROOT = Path("/")
_EXTENSIONS = ("vmx", "svm")
_NOT_A_BACKEND = frozenset({"kvm_arm_pmu", "kvm_xen"})
_PAGING = {"kvm_intel": "ept", "kvm_amd": "npt"}

Kind = Literal["hardware-assisted", "paravirtual", "emulated"]
Device = Literal["usable", "absent", "forbidden", "broken"]


@dataclass(frozen=True, slots=True)
class Virtualization:
    """What processor, firmware and kernel offer. `kvm` is the state of /dev/kvm for this user."""

    extension: str | None
    """`vmx` (Intel VT-x) or `svm` (AMD-V)."""
    module: str | None
    """The KVM module that drives the processor: `kvm_intel`, `kvm_amd` or another."""
    kvm: Device
    kvm_error: str
    nested: bool | None
    """Whether guests may run guests of their own; None where no KVM module says."""
    second_level_paging: str | None
    """`ept` or `npt` where page tables of guests are walked by the processor."""
    guest_of: str | None
    """What this host itself runs on, where it is a guest; None on bare metal."""
    iommu_groups: int
    iommus: tuple[str, ...]


def read(flags: frozenset[str], root: Path = _ROOT) -> Virtualization:
    """Look at /sys and open /dev/kvm; `flags` are those of the CPU. What boots is another question."""
    module = _module(root)
    device, said = probe_device(root / "dev/kvm")
    return Virtualization(
        extension=next((name for name in _EXTENSIONS if name in flags), None),
        module=module,
        kvm=device,
        kvm_error=said,
        nested=_parameter(root, module, "nested"),
        second_level_paging=_paging(root, module, flags),
        guest_of=_guest_of(root, flags),
        iommu_groups=len(_names(root / "sys/kernel/iommu_groups")),
        iommus=tuple(_names(root / "sys/class/iommu")),
    )


def kind(found: Virtualization, kvm_boots: bool | None) -> tuple[Kind, str]:
    """What guests get here, and why. `kvm_boots` is the verdict of booting one under KVM, None if never tried."""
    if found.kvm != "usable":
        return "emulated", _WITHOUT_KVM[found.kvm]
    if kvm_boots is False:
        return "emulated", "/dev/kvm can be opened, but Linux did not boot under it"
    proof = "Linux booted under it" if kvm_boots else "not tried by booting yet"
    if found.extension or found.module in (None, *_PAGING):
        return "hardware-assisted", f"KVM with {found.extension or 'the processor'}, {proof}"
    return "paravirtual", f"KVM by {found.module}, without {' or '.join(_EXTENSIONS)}, {proof}"


_WITHOUT_KVM: dict[Device, str] = {
    "absent": "there is no /dev/kvm",
    "forbidden": "this user may not open /dev/kvm",
    "broken": "/dev/kvm cannot be opened",
}


def probe_device(path: Path) -> tuple[Device, str]:
    """Whether /dev/kvm can be opened, and what the kernel said if not."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except FileNotFoundError:
        return "absent", ""
    except PermissionError as error:
        return "forbidden", error.strerror or ""
    except OSError as error:
        return "broken", error.strerror or ""
    return "usable", ""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _module(root: Path) -> str | None:
    found = [name for name in _names(root / "sys/module") if name.startswith("kvm_") and name not in _NOT_A_BACKEND]
    return next((name for name in found if name in _PAGING), found[0] if found else None)


def _parameter(root: Path, module: str | None, name: str) -> bool | None:
    text = read_permitted(root / "sys/module" / (module or "-") / "parameters" / name)
    return None if text is None else text.strip() in ("Y", "1")


def _paging(root: Path, module: str | None, flags: frozenset[str]) -> str | None:
    """The module's switch decides; without a module, the processor's flag says what could be."""
    if module is None:
        return next((name for name in _PAGING.values() if name in flags), None)
    name = _PAGING.get(module)
    return name if name and _parameter(root, module, name) is not False else None


def _guest_of(root: Path, flags: frozenset[str]) -> str | None:
    if "hypervisor" not in flags:
        return None
    vendor, product = (_dmi(root, name) for name in ("sys_vendor", "product_name"))
    return " ".join(part for part in (vendor, product) if part) or "a hypervisor that does not say its name"


def _dmi(root: Path, name: str) -> str:
    return (read_permitted(root / "sys/class/dmi/id" / name) or "").strip()
