"""The three ways in which a guest can have a disk or a nic, and the hardware that each comes to."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from kvmctl.model.platform import machine_family
from kvmctl.model.spec import Mode

Name = TypeVar("Name", bound=str)
Bus = Literal["virtio", "scsi", "sata", "ide"]
MODES: tuple[Mode, ...] = ("emulated", "paravirtual", "passthrough")
_EMULATED_BUS: dict[str, Bus] = {"q35": "sata", "pc": "ide"}
_EMULATED_NIC = {"q35": "e1000e", "pc": "e1000"}
"""Hardware that every system has a driver for, of the time of the machine."""
_OF_HOST = (
    "what is passed through is a device of the host, not this one: give the guest that with kvmctl attach GUEST --pci "
    "ADDRESS, or passthrough: [{pci: ADDRESS}] in its file; kvmctl pci list shows the devices"
)


def disk_mode(bus: str | None) -> Mode:
    """The mode of a disk on that bus; SCSI is virtio-scsi, which guests have a driver of their own for."""
    return "paravirtual" if bus in ("virtio", "scsi") else "emulated"


def nic_mode(model: str | None) -> Mode:
    """The mode of a nic of that model."""
    return "paravirtual" if (model or "").startswith("virtio") else "emulated"


def disk_bus(mode: Mode, device: str, machine: str | None) -> Bus:
    """The bus that a disk or CD-ROM drive of that mode is on. Raises ValueError where the machine has none."""
    if mode == "passthrough":
        raise ValueError(_OF_HOST)
    if mode == "paravirtual":
        return "virtio" if device == "disk" else "scsi"
    return _of_machine(_EMULATED_BUS, machine, "disk", "bus")


def nic_model(mode: Mode, machine: str | None) -> str:
    """The model of a nic of that mode. Raises ValueError where the machine has none."""
    if mode == "passthrough":
        raise ValueError(_OF_HOST)
    return "virtio" if mode == "paravirtual" else _of_machine(_EMULATED_NIC, machine, "nic", "model")


def _of_machine(known: Mapping[str, Name], machine: str | None, what: str, key: str) -> Name:
    family = machine_family(machine)
    if family not in known:
        raise ValueError(f"no emulated {what} is known for the machine type {machine}: name its {key}")
    return known[family]
