"""Which devices of the host a guest may have, and which virtual function of a card is free for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.pci import VFIO, GuestUse, Mdev, PciDevice
from kvmctl.policy.pci import companions, count_of, in_use, obstacle

_LEFT_ALONE = (None, VFIO, "pci-stub")
"""Drivers of the rest of a group, with which VFIO gives a device to a guest."""


def free_function(
    guest: str, card: PciDevice, devices: Sequence[PciDevice], taken: Collection[str], iommu_hint: str = ""
) -> PciDevice:
    """The first virtual function of a card that no guest's definition names and nobody uses; `taken` are those that
    this run has given away.

    Raises UsageError where the card has no SR-IOV, ConflictError where it has no functions or all are taken,
    RefusedError where one that is left cannot be passed.
    """
    if card.pf is not None:
        raise UsageError(
            f"guest {guest}: {card.address} is itself a virtual function, of {card.pf}",
            f"write vf-of: {card.pf}, or pci: {card.address}",
        )
    if card.total_vfs is None:
        raise UsageError(
            f"guest {guest}: {card.address} has no SR-IOV, so there are no virtual functions of it",
            "kvmctl pci list shows which cards have; pci: passes a whole card",
        )
    if not card.vfs:
        raise ConflictError(
            f"guest {guest}: {card.address} has no virtual functions now, of the {card.total_vfs} that it can have",
            f"kvmctl pci vfs {card.address} {min(4, card.total_vfs)} makes some",
        )
    known = {device.address: device for device in devices}
    why: dict[str, str] = {}
    refused: KvmctlError | None = None
    for function in (known[address] for address in card.vfs if address in known):
        owner = _owner(function, taken)
        found = None if owner else obstacle(function, devices, iommu_hint)
        if not owner and found is None:
            return function
        why[function.address] = owner or (found.text if found else "")
        if found and not found.conflict:
            refused = RefusedError(
                f"guest {guest}: {function.address} cannot be passed through: {found.text}", found.hint
            )
    if refused:
        raise refused
    said = "; ".join(f"{address}: {text}" for address, text in why.items())
    raise ConflictError(
        f"guest {guest}: {card.address} has {count_of(len(card.vfs))}, and none is free: {said}",
        f"take one from a guest that does not need it: kvmctl detach GUEST ADDRESS; or make more while none is in use: "
        f"kvmctl pci vfs {card.address} N",
    )


def _owner(function: PciDevice, taken: Collection[str]) -> str:
    if function.address in taken:
        return "another guest gets it"
    if function.guests:
        return f"guest {function.guests[0].name} has it"
    return in_use(function)


def problems(
    guest: str,
    chosen: Sequence[PciDevice],
    own: Collection[str],
    devices: Sequence[PciDevice],
    iommu_hint: str,
    starts: bool,
) -> Iterable[KvmctlError]:
    """Why the guest may not have the chosen devices, of all that are its `own`; what is only in use matters where it
    `starts` now."""
    for device in chosen:
        found = obstacle(device, devices, iommu_hint)
        text = f"guest {guest}: {device.address} cannot be passed through"
        if found and (starts or not found.conflict):
            yield (ConflictError if found.conflict else RefusedError)(f"{text}: {found.text}", found.hint)
            continue
        others = [one for one in companions(device, devices) if one.address not in own]
        left = [one for one in others if one.driver not in _LEFT_ALONE]
        if left:
            names = ", ".join(f"{one.address} ({one.driver})" for one in left)
            yield RefusedError(
                f"{text} alone: its IOMMU group has {names} as well, which would stay with the host",
                f"name them in passthrough too, or take them from the host: kvmctl pci bind {device.address}",
            )
        elif starts:
            # Guests cannot share a group either.
            found_in_use = (in_use_by_others(guest, one.address, one.guests) for one in (device, *others))
            yield from filter(None, found_in_use)


def in_use_by_others(guest: str, device: str, guests: Iterable[GuestUse]) -> ConflictError | None:
    """That another guest runs with the device, an address or a UUID, now."""
    running = [one.name for one in guests if one.running and one.name != guest]
    if not running:
        return None
    return ConflictError(
        f"guest {guest}: {device} is in use: guest {running[0]} runs with it",
        "stop that guest, or detach the device there first",
    )


def mdev_of(guest: str, uuid: str, mdevs: Iterable[Mdev]) -> Mdev:
    """The mdev of that UUID. Raises NotFoundError."""
    for one in mdevs:
        if one.uuid == uuid:
            return one
    raise NotFoundError(
        f"guest {guest}: there is no mdev {uuid} on this host",
        "kvmctl pci list -v shows which there are, and of which types more can be made; virsh nodedev-create makes one",
    )
