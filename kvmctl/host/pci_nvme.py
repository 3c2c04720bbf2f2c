"""Queues and interrupts for the virtual functions of an NVMe controller, which come without any, and offline.

The numbers are those of the NVM Express Base Specification 2.0: Identify (5.17) and Virtualization Management (5.42).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvmctl.host.files import read_int, read_permitted
from kvmctl.host.pci_block import names_in
from kvmctl.host.pci_kernel import DEVICES, Kernel
from kvmctl.model.errors import KvmctlError

CLASS = "0x0108"
"""Of an NVMe controller, as /sys has the beginning of its class."""

_IDENTIFY, _MANAGE = 0x06, 0x1C
_CAPABILITIES, _SECONDARIES = 0x14, 0x15
"""What is to be identified: what the primary controller can give away, and the list of those it can give it to."""
_OFFLINE, _ASSIGN, _ONLINE = 0x7, 0x8, 0x9
_QUEUES, _INTERRUPTS = 0, 1
_LEAST = {_QUEUES: 2, _INTERRUPTS: 1}
"""One queue for commands to the controller, one for data; one interrupt can serve both."""
_ENTRY = 32

Admin = Callable[[int, int, int, int], bytes]
"""Operation code, command words 10 and 11, length of the answer in bytes → the answer."""


@dataclass(frozen=True, slots=True)
class _Secondary:
    """One controller that a virtual function is: its own number, and the function's, from 1."""

    controller: int
    function: int


def is_controller(address: str, root: Path) -> bool:
    """Whether a device is an NVMe controller."""
    return (read_permitted(root / DEVICES / address / "class") or "").startswith(CLASS)


def bring_online(address: str, count: int, kernel: Kernel) -> None:
    """Share what the controller can give away equally among `count` functions, and have them answer.

    A controller that has nothing to give serves its functions by itself. Raises KvmctlError.
    """
    names = [name for name in names_in(kernel.root / DEVICES / address / "nvme") if name.startswith("nvme")]
    if not names:
        raise KvmctlError(f"{address} has no NVMe controller that answers", f"see why: dmesg | grep {address}")

    def admin(code: int, word10: int, word11: int, length: int) -> bytes:
        return kernel.nvme_admin(names[0], code, word10, word11, length)

    parts = {kind: part for kind, part in _parts(admin, count).items() if part}
    for secondary in _secondaries(admin, count) if parts else ():
        # Only of a function that is offline may this be changed.
        _manage(admin, secondary, _OFFLINE)
        for kind, part in parts.items():
            _manage(admin, secondary, _ASSIGN, kind, part)
        _manage(admin, secondary, _ONLINE)


def _parts(admin: Admin, count: int) -> dict[int, int]:
    """How many queues and interrupts each function gets; 0 of what is not given by hand."""
    data = admin(_IDENTIFY, _CAPABILITIES, 0, 4096)
    found = {}
    for kind, at in ((_QUEUES, 32), (_INTERRUPTS, 64)):
        total, _assigned, _own, _private, most, granularity = struct.unpack_from("<IIHHHH", data, at)
        managed = data[4] & 1 << kind
        part = min(total // count, most or total) if managed else 0
        part -= part % max(1, granularity)
        if managed and part < _LEAST[kind]:
            what = "queues" if kind == _QUEUES else "interrupts"
            raise KvmctlError(
                f"the controller has {total} {what} for its virtual functions, too few for {count} of them",
                "make fewer of them",
            )
        found[kind] = part
    return found


def _secondaries(admin: Admin, count: int) -> list[_Secondary]:
    data = admin(_IDENTIFY, _SECONDARIES, 0, 4096)
    found = []
    for number in range(min(data[0], 127)):
        controller, _primary, _state, function = struct.unpack_from("<HHB3xH", data, _ENTRY * (number + 1))
        if 1 <= function <= count:
            found.append(_Secondary(controller, function))
    if len(found) != count:
        raise KvmctlError(f"the controller tells of {len(found)} virtual functions, not {count}")
    return found


def _manage(admin: Admin, secondary: _Secondary, action: int, kind: int = 0, number: int = 0) -> None:
    admin(_MANAGE, secondary.controller << 16 | kind << 8 | action, number, 0)


def autoprobe(address: str, root: Path) -> int | None:
    """Whether the kernel gives new functions to drivers by itself (1); None where it does not tell."""
    return read_int(root / DEVICES / address / "sriov_drivers_autoprobe")
