"""What a hypervisor can do for a guest of one accelerator. None is what the hypervisor does not tell."""

from dataclasses import dataclass
from typing import Literal

from kvmctl.model.spec import ACCELERATORS, Accelerator
from kvmctl.model.wording import nearest, quoted

Firmware = Literal["bios", "uefi"]
CPU_MODES = ("host-passthrough", "host-model", "maximum")
"""The CPU models that are modes of libvirt's rather than models of QEMU's."""
_FAMILIES = {"q35": "pc-q35-", "pc": "pc-i440fx-"}


@dataclass(frozen=True, slots=True)
class Platform:
    """One emulator on one architecture, as libvirt's capabilities describe it."""

    arch: str
    virt_type: str
    """`kvm`, `qemu`, `test` and so on, as `<domain type=…>` has it."""
    os_type: str = "hvm"
    emulator: str | None = None
    machines: tuple[tuple[str, str], ...] = ()
    """Each name a machine type can be asked for by, with its canonical name: `("q35", "pc-q35-7.2")`."""
    cpu_modes: tuple[str, ...] | None = None
    """Of `CPU_MODES`."""
    cpu_models: tuple[str, ...] | None = None
    """The models known by name, whether or not this host's processor could back them."""
    firmwares: tuple[Firmware, ...] | None = None
    """Of `bios` and `uefi`, those that libvirt finds an image for by itself."""
    graphics: tuple[str, ...] | None = None
    """The kinds of display: `vnc` and so on."""
    rng: bool | None = None
    """Whether a virtio device can feed a guest from the host's random numbers."""
    vcpus_max: int | None = None

    @property
    def accelerator(self) -> Accelerator | None:
        """`kvm` or `tcg`; None for a hypervisor that is neither."""
        return ACCELERATORS.get(self.virt_type)

    @property
    def x86(self) -> bool:
        """Whether a guest is a PC, with the PC's interrupt controller, ACPI and timers."""
        return self.arch in ("x86_64", "i686")

    @property
    def default_machine(self) -> str | None:
        """The canonical name of q35 where it is offered, else of the architecture's own `virt`, else of `pc`."""
        offered = dict(self.machines)
        return next((offered[alias] for alias in ("q35", "virt", "pc") if alias in offered), None)

    @property
    def default_cpu_model(self) -> str | None:
        """The fastest that the accelerator has; None leaves the choice to the hypervisor."""
        wanted = {"kvm": ("host-passthrough", "host-model"), "tcg": ("maximum",)}.get(self.accelerator or "", ())
        return next((mode for mode in wanted if self.cpu_modes is None or mode in self.cpu_modes), None)

    @property
    def default_firmware(self) -> Firmware:
        """BIOS on a PC, and UEFI where there is no such thing."""
        return "uefi" if not self.x86 and "uefi" in (self.firmwares or ()) else "bios"

    def canonical_machine(self, machine: str) -> str:
        """The versioned name of `machine`. Raises ValueError where the hypervisor has no such machine."""
        offered = dict(self.machines)
        if offered and machine not in offered:
            aliases = [alias for alias, canonical in self.machines if alias != canonical]
            raise ValueError(
                f"there is no machine type {quoted(machine)} for {self.arch} here; known are "
                f"{', '.join(aliases)} and their versions"
            )
        return offered.get(machine, machine)

    def check_firmware(self, firmware: Firmware) -> None:
        """Raises ValueError where libvirt finds no such firmware."""
        if self.firmwares is not None and firmware not in self.firmwares:
            raise ValueError(f"there is no {firmware} firmware for {self.arch} guests on this host")

    def check_cpu_model(self, model: str) -> None:
        """Raises ValueError where the hypervisor has no such CPU mode or model."""
        if self.cpu_modes is None or self.cpu_models is None:
            return
        if model not in self.cpu_modes and model not in self.cpu_models:
            hint = nearest(model, (*self.cpu_modes, *self.cpu_models))
            raise ValueError(f"{self.accelerator or self.virt_type} has no CPU model {quoted(model)} here; {hint}")


def machine_family(machine: str | None) -> str:
    """`q35` or `pc`, or else the machine's own name without its version; empty where there is no machine."""
    if not machine:
        return ""
    for family, prefix in _FAMILIES.items():
        if machine == family or machine.startswith(prefix):
            return family
    return machine.rpartition("-")[0] or machine


def same_machine(wanted: str, actual: str | None) -> bool:
    """Whether a guest of machine type `actual` is what `wanted` asks for.

    libvirt stores the versioned name of an alias, and a guest keeps its version when QEMU is upgraded:
    `pc-q35-7.2` is what `q35` asks for, whatever `q35` means to this QEMU.
    """
    return actual is not None and (wanted == actual or (wanted in _FAMILIES and machine_family(actual) == wanted))
