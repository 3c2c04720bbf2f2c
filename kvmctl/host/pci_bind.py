"""PCI devices given to vfio-pci and back to the host's drivers, so that a failure or a crash half-way is undone.

The journal has an intent from before the first write to after the last check, and an entry of each device's former
driver as long as it is on vfio-pci because of kvmctl. A reboot undoes all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from kvmctl.host.journal import Intent, Journal, boot_id
from kvmctl.host.pci_kernel import DEVICES, DRIVERS, Kernel, driver, exists, override
from kvmctl.host.pci_vf import KIND as FUNCTION
from kvmctl.model.errors import KvmctlError, TimedOutError
from kvmctl.model.pci import NO_DRIVER, VFIO

KIND = "pci-driver"
"""The kind of these entries and intents in the journal."""

_CLEAR = "\n"
"""What clears an order for a driver; the kernel takes an empty write for nothing at all."""

Result = Literal["changed", "unchanged", "pending", "not applied"]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of the driver of one device: `old`, `wanted` and what was `found` afterwards."""

    address: str
    old: str
    wanted: str
    found: str
    result: Result
    reason: str = ""


def former(address: str, journal: Journal) -> str | None:
    """The driver from before kvmctl, `none` for no driver; None where kvmctl has not changed it since boot."""
    entry = journal.entries(KIND).get(address)
    return None if entry is None else str(entry.old)


def bind(addresses: Sequence[str], journal: Journal, kernel: Kernel) -> list[Done]:
    """Give all these devices to vfio-pci, or none: on any failure each gets its driver back, and the error says
    where that failed too. Raises KvmctlError."""
    kernel.load_vfio()
    known = journal.entries(KIND)
    devices = {
        address: {
            "driver": driver(address, kernel.root),
            "override": override(address, kernel.root),
            "known": address in known,
        }
        for address in addresses
    }
    data = {"action": "bind", "devices": devices, "boot": boot_id()}
    key = addresses[0]
    journal.begin(KIND, key, data)
    try:
        journal.record_all(KIND, {address: (was["driver"], VFIO) for address, was in devices.items()})
        for address in addresses:
            _take(address, kernel)
        journal.done(KIND, key)
    except BaseException as error:
        failures = _undo(key, data, journal, kernel)
        if failures and isinstance(error, KvmctlError):
            text = f"{error.message}; and it could not all be undone: {'; '.join(failures)}"
            raise type(error)(text, "kvmctl host restore tries again") from error
        if isinstance(error, TimedOutError):
            with suppress(KvmctlError):
                journal.begin(KIND, key, data)  # its driver may let go of it yet: the next run looks
        raise
    return [Done(address, str(was["driver"]), VFIO, VFIO, "changed") for address, was in devices.items()]


def _take(address: str, kernel: Kernel) -> None:
    """Give one device to vfio-pci. The order for it stays: without it, the next probe could take it away again."""
    kernel.write(f"{DEVICES}/{address}/driver_override", VFIO)
    if driver(address, kernel.root) != NO_DRIVER:
        kernel.write(f"{DEVICES}/{address}/driver/unbind", address)
    kernel.write("sys/bus/pci/drivers_probe", address)
    found = driver(address, kernel.root)
    if found != VFIO:
        raise KvmctlError(
            f"the driver of {address} is {found} after it was given to {VFIO}", f"see why: dmesg | grep {address}"
        )


def _undo(key: str, data: Mapping[str, Any], journal: Journal, kernel: Kernel) -> list[str]:
    """Put each device back to what it was, the last one first; sentences on those where that failed. What is undone
    is no longer in the journal, what is not stays begun."""
    failures = []
    for address, was in reversed(data["devices"].items()):
        try:
            _put_back(address, was["driver"], was["override"], kernel)
            if not was["known"] and address in journal.entries(KIND):
                journal.forget(KIND, address)
        except KvmctlError as error:
            failures.append(f"{address}: {error.message}")
    try:
        if not failures:
            journal.done(KIND, key)
    except KvmctlError as error:
        failures.append(error.message)
    return failures


def _put_back(address: str, wanted: str, ordered: str, kernel: Kernel) -> None:
    """`give_back`, which a device that is gone does not need."""
    if exists(address, kernel.root) and (driver(address, kernel.root), override(address, kernel.root)) != (
        wanted,
        ordered,
    ):
        give_back(address, wanted, kernel, ordered)


@contextmanager
def lent(addresses: Sequence[str], journal: Journal, kernel: Kernel) -> Iterator[None]:
    """Take these devices from their drivers for the block, in which libvirt gives them to a guest; they get them back
    where it fails. When the guest ends, libvirt gives them back itself.

    libvirt asks drivers to let go as well, but without a deadline: one that does not would hold libvirt too. Raises
    TimedOutError for such a driver, KvmctlError where the journal cannot be written, before anything is done.
    """
    devices = {one: was for one in addresses if (was := driver(one, kernel.root)) not in (NO_DRIVER, VFIO)}
    if not devices:
        yield
        return
    key = next(iter(devices))
    journal.begin(KIND, key, {"action": "lend", "devices": devices, "boot": boot_id()})
    try:
        for address in devices:
            kernel.write(f"{DEVICES}/{address}/driver/unbind", address)
        yield
    except BaseException as error:
        failures = _take_back(devices, kernel)
        if failures and isinstance(error, KvmctlError):
            text = f"{error.message}; and not all of them have their drivers again: {'; '.join(failures)}"
            raise type(error)(text, "kvmctl host restore tries again") from error
        if not failures and not isinstance(error, TimedOutError):
            journal.done(KIND, key)
        raise
    journal.done(KIND, key)


def _take_back(devices: dict[str, str], kernel: Kernel) -> list[str]:
    """Give lent devices to their drivers again; sentences on those where that failed. One that is on vfio-pci is what
    libvirt has taken: a guest may have it."""
    failures = []
    for address in reversed(devices):
        was = devices[address]
        try:
            if exists(address, kernel.root) and driver(address, kernel.root) not in (was, VFIO):
                give_back(address, was, kernel)
        except KvmctlError as error:
            failures.append(f"{address}: {error.message}")
    return failures


def give_back(address: str, wanted: str | None, kernel: Kernel, ordered: str = "") -> str:
    """Give one device back to the driver `wanted`, to none for `none`, or for None to the one that the kernel
    chooses; the driver that it has then. Raises KvmctlError where it is another."""
    root = kernel.root
    kernel.write(f"{DEVICES}/{address}/driver_override", ordered or _CLEAR)
    if driver(address, root) not in (NO_DRIVER, wanted):
        kernel.write(f"{DEVICES}/{address}/driver/unbind", address)
    if wanted != NO_DRIVER and driver(address, root) == NO_DRIVER:
        kernel.write("sys/bus/pci/drivers_probe", address)
    found = driver(address, root)
    if wanted not in (None, NO_DRIVER, found) and (root / DRIVERS / str(wanted)).is_dir():
        # Two drivers may match, and it had been chosen by hand.
        if found != NO_DRIVER:
            kernel.write(f"{DEVICES}/{address}/driver/unbind", address)
        kernel.write(f"{DRIVERS}/{wanted}/bind", address)
        found = driver(address, root)
    if found != wanted if wanted is not None else found == VFIO:
        raise KvmctlError(
            f"the driver of {address} is {found} after it was given back to {wanted or 'the host'}",
            f"see why: dmesg | grep {address}",
        )
    return found


def release(
    addresses: Sequence[str], journal: Journal, kernel: Kernel, before: Callable[[str], object] | None = None
) -> list[Done]:
    """Give these devices back to the drivers that they had before kvmctl, else to those that the kernel chooses.
    `before` is called with the address of each that is on vfio-pci, and may give it back itself.

    What became of each: the host shall have back what it can. What fails stays in the journal, to be tried again.
    Raises KvmctlError where the journal cannot be written, before anything is done.
    """
    wanted = {address: former(address, journal) for address in addresses}
    key = addresses[0]
    journal.begin(KIND, key, {"action": "release", "devices": wanted, "boot": boot_id()})
    done = [_release(address, wanted[address], journal, kernel, before) for address in addresses]
    journal.done(KIND, key)
    return done


def _release(
    address: str, wanted: str | None, journal: Journal, kernel: Kernel, before: Callable[[str], object] | None
) -> Done:
    old = VFIO
    try:
        old = driver(address, kernel.root)
        if before and old == VFIO:
            before(address)
        found = give_back(address, wanted, kernel)
        journal.forget(KIND, address)
    except KvmctlError as error:
        now = driver(address, kernel.root) if exists(address, kernel.root) else NO_DRIVER
        return Done(address, old, wanted or "any", now, "not applied", error.message)
    said = "no driver of the host wants it" if wanted is None and found == NO_DRIVER else ""
    return Done(address, old, wanted or found, found, "changed" if found != old else "unchanged", said)


def recover(journal: Journal, kernel: Kernel) -> list[str]:
    """Undo what a run that was killed had begun to bind, finish what it had begun to release; a sentence on each."""
    return [_recover(intent, journal, kernel) for intent in journal.unfinished(KIND)]


def _recover(intent: Intent, journal: Journal, kernel: Kernel) -> str:
    data = intent.data
    devices = [address for address in data["devices"] if exists(address, kernel.root)]
    names = ", ".join(data["devices"])
    if data["boot"] != boot_id():
        said = f"a run that was interrupted had begun to {data['action']} {names}: the reboot has undone that"
    elif data["action"] == "lend":
        failures = _take_back(data["devices"], kernel)
        said = f"a run that was interrupted had begun to give {names} to a guest: "
        if failures:
            return f"{said}not all of them have their drivers again: {'; '.join(failures)}"
        said += "what no guest has is back with its driver"
    elif data["action"] == "release":
        for address in devices:
            try:
                give_back(address, data["devices"][address], kernel)
                journal.forget(KIND, address)
            except KvmctlError as error:
                return f"a run that was interrupted had begun to release {names}, which fails again: {error.message}"
        said = f"a run that was interrupted had begun to release {names}: that is finished"
    elif len(devices) == len(data["devices"]) and all(driver(one, kernel.root) == VFIO for one in devices):
        said = f"a run that was interrupted had bound {names}: that is kept"
    else:
        failures = _undo(intent.key, data, journal, kernel)
        said = f"a run that was interrupted had begun to bind {names}: "
        return said + (f"it could not all be undone: {'; '.join(failures)}" if failures else "that is undone")
    journal.done(KIND, intent.key)
    return said


def forget_gone(journal: Journal, kernel: Kernel) -> None:
    """Forget devices that are no longer there: virtual functions that were removed."""
    for kind in (KIND, FUNCTION):
        gone = [address for address in journal.entries(kind) if not exists(address, kernel.root)]
        if gone:
            journal.forget(kind, *gone)
