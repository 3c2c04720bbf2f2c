"""What may be done with a PCI device: passed to a guest or not, with which others, and why not.

The unit is the IOMMU group: its members cannot be kept apart, so every endpoint in it goes, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError, UsageError
from kvmctl.model.pci import VFIO, PciDevice, Use, Verdict

_BRIDGES = {
    0x0600: "a host bridge",
    0x0601: "an ISA bridge",
    0x0602: "an EISA bridge",
    0x0604: "a PCI bridge",
    0x0607: "a CardBus bridge",
    0x0609: "a PCI bridge",
}
"""What the rest of the machine hangs on. Other classes of bridge are devices like any other."""
_HARMLESS = (None, "pcieport", "pci-stub", VFIO)
"""Drivers of a bridge that VFIO puts up with in a group: they do no DMA of their own."""
_SENTENCES: Mapping[str, str] = {
    "mount": "{name} is mounted from it ({through})",
    "swap": "the host swaps to it ({through})",
    "volume": "the volume {name} is active on it ({through})",
    "claimed": "the kernel itself has {through} in use, as a pool or array does",
    "route": "the default route leads through it ({through})",
    "address": "it has the address {name} ({through})",
    "carries": "the interface {name} is on top of it ({through})",
    "console": "it is this machine's console",
    "process": "process {name} has it open",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a device cannot be bound, and what to do about it; `conflict` where its state is all that is wrong."""

    text: str
    hint: str = ""
    conflict: bool = False


def stays(device: PciDevice) -> bool:
    """Whether a device belongs to the machine, and is never passed to a guest."""
    return device.class_code in _BRIDGES


def sentence(use: Use) -> str:
    """What a use is, of a device that is `it`."""
    return _SENTENCES[use.kind].format(name=use.name, through=use.through)


def companions(device: PciDevice, devices: Iterable[PciDevice]) -> tuple[PciDevice, ...]:
    """The other endpoints of its group."""
    return tuple(other for other in _group(device, devices) if other.address != device.address and not stays(other))


def _group(device: PciDevice, devices: Iterable[PciDevice]) -> list[PciDevice]:
    return [other for other in devices if other.group is not None and other.group == device.group]


def to_bind(chosen: Sequence[PciDevice], devices: Sequence[PciDevice]) -> tuple[PciDevice, ...]:
    """All endpoints of the groups of the chosen devices that are not on vfio-pci yet, each once."""
    found = {one.address: one for device in chosen for one in (device, *companions(device, devices))}
    return tuple(one for one in found.values() if one.driver != VFIO)


def verdict(device: PciDevice, devices: Sequence[PciDevice], iommu_hint: str = "") -> Verdict:
    """Whether the device may be passed. `iommu_hint` says what to switch on where no device has a group."""
    group = () if stays(device) else companions(device, devices)
    others = tuple(other.address for other in group)
    found = obstacle(device, devices, iommu_hint) or _of(device, (device, *group), _busy)
    if found:
        return Verdict("no", found.text, others)
    if others:
        return Verdict("group", f"only together with {', '.join(others)}", others)
    return Verdict("yes")


def obstacle(device: PciDevice, devices: Sequence[PciDevice], iommu_hint: str = "") -> Obstacle | None:
    """The first reason why the device, with its group, cannot be bound to vfio-pci; None where it can."""
    if stays(device):
        return Obstacle(f"it is {_BRIDGES[device.class_code]}, which stays with the host")
    if device.group is None:
        if any(other.group is not None for other in devices):
            return Obstacle("no IOMMU covers it: it has no IOMMU group", "only devices with a group can be passed")
        return Obstacle("this machine has no IOMMU that is switched on", iommu_hint)
    members = sorted(_group(device, devices), key=lambda other: other.address != device.address)
    for find in (_lives_on, _driven_bridge, _functions, _ordered):
        if found := _of(device, members, find):
            return found
    # What is on vfio-pci already can be in use: the rest of its group may join it.
    return _of(device, [member for member in members if member.driver != VFIO], _busy)


def _of(
    device: PciDevice, members: Iterable[PciDevice], find: Callable[[PciDevice], Obstacle | None]
) -> Obstacle | None:
    """The first obstacle that `find` tells of, as one to the device itself."""
    for member in members:
        if found := find(member):
            if member.address == device.address:
                return found
            return Obstacle(f"{member.address} is in its group: {found.text}", found.hint, found.conflict)
    return None


def _lives_on(device: PciDevice) -> Obstacle | None:
    said = [sentence(use) for use in device.uses if use.vital]
    if stays(device) or not said:
        return None
    more = f", and {len(said) - 3} more" if len(said) > 3 else ""
    return Obstacle(
        f"the host lives on it: {'; '.join(said[:3])}{more}", "move that elsewhere first; --yes does not override this"
    )


def _driven_bridge(device: PciDevice) -> Obstacle | None:
    if not stays(device) or device.driver in _HARMLESS:
        return None
    return Obstacle(
        f"it is {_BRIDGES[device.class_code]}, which stays with the host, as does its driver {device.driver}",
        "a slot behind another root port may be in a group of its own",
    )


def _functions(device: PciDevice) -> Obstacle | None:
    if not device.vfs:
        return None
    return Obstacle(
        f"it has {count_of(len(device.vfs))}, which would go with it",
        f"kvmctl pci vfs {device.address} 0 removes them",
        conflict=True,
    )


def _ordered(device: PciDevice) -> Obstacle | None:
    if device.override in (None, VFIO) or stays(device):
        return None
    return Obstacle(
        f"somebody has ordered the driver {device.override} for it",
        f"clear /sys/bus/pci/devices/{device.address}/driver_override if nothing needs that",
        conflict=True,
    )


def _busy(device: PciDevice) -> Obstacle | None:
    said = in_use(device)
    return Obstacle(said, "stop what uses it first", conflict=True) if said and not stays(device) else None


def in_use(device: PciDevice) -> str:
    """Who uses the device now and can be stopped: running guests, else processes. Empty where nobody does."""
    running = [guest.name for guest in device.guests if guest.running]
    if running:
        return f"guest {running[0]} runs with it" if len(running) == 1 else f"guests {', '.join(running)} run with it"
    return "; ".join(sentence(use) for use in device.uses if not use.vital)


def count_of(number: int) -> str:
    """A number of virtual functions, in words."""
    return f"{number} virtual function{'' if number == 1 else 's'}"


def _error(found: Obstacle, address: str, what: str) -> KvmctlError:
    kind = ConflictError if found.conflict else RefusedError
    return kind(f"{address} cannot be {what}: {found.text}", found.hint)


def check_bind(chosen: Sequence[PciDevice], devices: Sequence[PciDevice], iommu_hint: str = "") -> None:
    """Raise RefusedError where the host lives on one of the devices or of their groups, or they cannot be passed at
    all, ConflictError where one is in use by what can be stopped."""
    for device in chosen:
        if found := obstacle(device, devices, iommu_hint):
            raise _error(found, device.address, "bound to vfio-pci")


def check_release(released: Sequence[PciDevice], devices: Sequence[PciDevice]) -> None:
    """Raise ConflictError while one of the devices, or another of its group, is in use."""
    for device in released:
        for member in (device, *companions(device, devices)):
            if member.driver == VFIO and (said := in_use(member)):
                whose = "" if member is device else f"{member.address} is in its group: "
                raise ConflictError(
                    f"{device.address} cannot be released: {whose}{said}", "stop the guest, or detach it there first"
                )


def check_vfs(device: PciDevice, count: int, devices: Iterable[PciDevice]) -> None:
    """Whether the device may get `count` virtual functions instead of those it has. Raises UsageError for more than
    it can have, ConflictError while one is in use, RefusedError where it has no SR-IOV or the host lives on one."""
    if device.pf is not None:
        raise ConflictError(
            f"{device.address} is itself a virtual function, of {device.pf}", f"name {device.pf} instead"
        )
    if device.total_vfs is None:
        raise RefusedError(
            f"{device.address} has no SR-IOV: the kernel knows of no virtual functions that it could have",
            "some cards and firmware have a switch for it",
        )
    if count > device.total_vfs:
        raise UsageError(
            f"{device.address} can have {device.total_vfs} virtual functions, not {count}",
            f"give a number from 0 to {device.total_vfs}",
        )
    if count == len(device.vfs):
        return
    if device.driver in (None, VFIO):
        raise ConflictError(
            f"{device.address} has no driver of the host, which alone can make virtual functions",
            f"kvmctl pci release {device.address} gives it back" if device.driver else "load its driver first",
        )
    known = {other.address: other for other in devices}
    for function in (known[address] for address in device.vfs if address in known):
        if found := _lives_on(function):
            raise _error(found, f"the virtual function {function.address}", "removed")
        if said := in_use(function):
            raise ConflictError(
                f"the virtual function {function.address} of {device.address} is in use: {said}",
                "stop the guest, or detach it there first",
            )
