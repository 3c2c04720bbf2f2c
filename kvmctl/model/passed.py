"""The devices of the host that a guest has: which of those that it shall have are those that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvmctl.model.spec import PassedSpec


def label(device: PassedSpec) -> str:
    """How reports name a device: its address or UUID, or the card that it comes from where it is not chosen yet."""
    return device.pci or device.mdev or f"vf-of {device.vf_of}"


def describe(device: PassedSpec) -> str:
    """A device in a few words, for a report."""
    if device.mdev:
        return "mdev"
    what = f"virtual function of {device.vf_of}" if device.vf_of else "device"
    return f"{what}, MAC {device.mac}" if device.mac else what


def in_order(devices: Iterable[PassedSpec]) -> tuple[PassedSpec, ...]:
    """As a definition is read: PCI devices by address, then mdevs."""
    return tuple(sorted(devices, key=lambda one: (one.mdev or "", one.pci or "", one.vf_of or "")))


def match(wanted: Sequence[PassedSpec], now: Sequence[PassedSpec]) -> list[tuple[PassedSpec, PassedSpec | None]]:
    """Each wanted device with the present one, or None: by address or UUID; any function of a card by its MAC address,
    else by order."""
    found: dict[int, PassedSpec] = {}
    left = list(now)
    for same in (_is_named, _has_mac, _is_of_card):
        for index, device in enumerate(wanted):
            if index not in found and (other := next((one for one in left if same(device, one)), None)):
                found[index] = other
                left.remove(other)
    return [(device, found.get(index)) for index, device in enumerate(wanted)]


def _is_named(wanted: PassedSpec, now: PassedSpec) -> bool:
    return bool(wanted.pci and wanted.pci == now.pci) or bool(wanted.mdev and wanted.mdev == now.mdev)


def _has_mac(wanted: PassedSpec, now: PassedSpec) -> bool:
    return _is_of_card(wanted, now) and wanted.mac is not None and wanted.mac == now.mac


def _is_of_card(wanted: PassedSpec, now: PassedSpec) -> bool:
    return wanted.pci is None and wanted.vf_of is not None and wanted.vf_of == now.vf_of
