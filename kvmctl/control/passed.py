"""Devices of the host for guests: which one each gets, whether it may have it, and how it comes to it at its start.

A definition names its devices, with `managed='yes'`: libvirt binds them when the guest starts, whoever starts it, and
gives them back when it ends, however it ends. Where kvmctl starts the guest it looks at the whole IOMMU group before
that, and asks the devices' drivers to let go itself, since libvirt has no deadline for one that does not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from kvmctl.control import pci
from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.control.pci import Machine
from kvmctl.host import pci_bind, pci_vf
from kvmctl.host.journal import Journal
from kvmctl.host.lock import HOST, lock
from kvmctl.host.pci_kernel import Kernel
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UsageError
from kvmctl.model.passed import label, match
from kvmctl.model.pci import PciDevice
from kvmctl.model.spec import GuestSpec, PassedSpec
from kvmctl.policy import passed as policy
from kvmctl.xml import tree
from kvmctl.xml.passed import devices
from kvmctl.xml.pci import pci_devices

_VFIO = "vfio-pci"
"""The interface of mdevs that are PCI devices to a guest."""
_one = threading.Lock()
"""Several guests may be started at once, each by a thread of its own."""


class Giver:
    """Chooses and checks the devices of guests that are planned together."""

    def __init__(self, look: Callable[[], Machine] | None) -> None:
        """`look` tells of the machine that the guests are on; it is called once, where needed. None is another one."""
        self._look = look
        self._machine: Machine | None = None
        self._given: dict[str, tuple[str, bool]] = {}
        """Which guest gets a device, by its address or UUID, and whether no other can then."""

    @property
    def machine(self) -> Machine:
        """The devices, and which guests have them."""
        assert self._look is not None
        if self._machine is None:
            self._machine = self._look()
        return self._machine

    def resolved(self, spec: GuestSpec, current: Sequence[PassedSpec], starts: bool, runs: bool = False) -> GuestSpec:
        """`spec` with an address for each device, and a MAC address for each new network function.

        A guest that `runs` gets what is new at once.

        Raises NotFoundError for a device that is not there, UsageError for what it cannot be given, RefusedError where
        the host needs it, ConflictError where no function is free, or where the guest `starts` and another has it.
        """
        if spec.passthrough is None:
            return spec
        pairs = match(spec.passthrough, current)
        if self._look is None:
            for wanted, now in pairs:
                if now is None and wanted.pci is None and wanted.mdev is None:
                    raise RefusedError(
                        f"guest {spec.name}: which function of {wanted.vf_of} is free is seen only on its own machine",
                        "run kvmctl there, or name the function itself with pci:",
                    )
            return replace(spec, passthrough=tuple(map(_named, pairs)))
        named = {label(one) for pair in pairs for one in pair if one}
        done = []
        for wanted, now in pairs:
            done.append(self._kept(spec.name, wanted, now) if now else self._new(spec.name, wanted, named))
            if now is None:
                self._give(spec.name, label(done[-1]), starts or runs or wanted.pci is None)
        new = [one for one, (_, now) in zip(done, pairs, strict=True) if now is None]
        looked_at = new if runs or not starts else done
        if looked_at:
            check(spec.name, looked_at, done, self.machine, starts or runs)
        return replace(spec, passthrough=tuple(done))

    def _give(self, guest: str, name: str, alone: bool) -> None:
        other, only = self._given.setdefault(name, (guest, alone))
        if other != guest and only and alone:
            raise ConflictError(
                f"guest {guest}: {name} is what guest {other} gets", "name another device, or vf-of: and no function"
            )

    def _kept(self, guest: str, wanted: PassedSpec, now: PassedSpec) -> PassedSpec:
        one = _named((wanted, now))
        if now.mac is None:
            self._check_function(guest, one)
            if one.vlan and not one.mac:
                return replace(one, mac=_made_up(guest, one.pci or ""))
        return one

    def _new(self, guest: str, wanted: PassedSpec, named: set[str]) -> PassedSpec:
        if wanted.mdev:
            found = policy.mdev_of(guest, wanted.mdev, self.machine.mdevs)
            kinds = {one.name: one.interface for one in self.machine.mdev_types.get(found.parent, ())}
            if kinds.get(found.type, _VFIO) != _VFIO:
                raise RefusedError(
                    f"guest {guest}: the mdev {found.uuid} is a {kinds[found.type]}, no PCI device",
                    "choose one of a type that is vfio-pci: kvmctl pci list -v",
                )
            return wanted
        one = wanted
        if wanted.pci is None and wanted.vf_of:
            machine = self.machine
            taken = {*self._given, *named}
            card = machine.device(wanted.vf_of)
            chosen = policy.free_function(guest, card, machine.devices, taken, machine.iommu_hint)
            one = replace(wanted, pci=chosen.address)
            named.add(chosen.address)
        device = self.machine.device(one.pci or "")
        if one.vf_of and device.pf != one.vf_of:
            raise UsageError(
                f"guest {guest}: {device.address} is no virtual function of {one.vf_of}",
                "leave out pci, and one that is free is taken",
            )
        if self._is_function(device.address):
            return one if one.mac else replace(one, mac=_made_up(guest, device.address))
        self._check_function(guest, one)
        return one

    def _check_function(self, guest: str, one: PassedSpec) -> None:
        said = [one.mac, one.vlan, one.spoof_check, one.trust]
        if any(value is not None for value in said) and not self._is_function(one.pci or ""):
            raise UsageError(
                f"guest {guest}: {one.pci} is no virtual function of a network card whose driver is loaded, so the "
                "host sets no MAC address, VLAN, spoof check or trust for it",
                "leave these out: a whole card has the address that it came with",
            )

    def _is_function(self, address: str) -> bool:
        return pci_vf.is_network(address, self.machine.root)


def giver(hypervisor: Hypervisor) -> Giver:
    """What gives guests of this hypervisor their devices."""
    return Giver(partial(_look, hypervisor) if is_here(hypervisor) else None)


def _look(hypervisor: Hypervisor) -> Machine:
    return pci.observe(pci.guests_of(hypervisor), probe=True)


def is_here(hypervisor: Hypervisor) -> bool:
    """Whether guests of this hypervisor have this machine's devices."""
    return hypervisor.local and hypervisor.uri.startswith("qemu")


def _named(pair: tuple[PassedSpec, PassedSpec | None]) -> PassedSpec:
    """What is wanted, with the name of the device that there is."""
    wanted, now = pair
    return replace(wanted, pci=now.pci, mdev=now.mdev) if now else wanted


def _made_up(guest: str, address: str) -> str:
    """A MAC address for a network function: always the same, as functions have another after each boot."""
    from hashlib import sha256

    digest = sha256(f"{guest} {address}".encode(errors="replace")).digest()
    return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def check(
    guest: str, looked_at: Sequence[PassedSpec], has: Sequence[PassedSpec], machine: Machine, starts: bool
) -> None:
    """Raise the first reason why the guest may not have what is looked at, of all that it `has`."""
    chosen = [_there(guest, one, machine) for one in looked_at if one.pci]
    own = [one.pci for one in has if one.pci]
    for error in policy.problems(guest, chosen, own, machine.devices, machine.iommu_hint, starts):
        raise error
    if chosen and machine.interrupts_unsafe:
        raise RefusedError(f"guest {guest}: {chosen[0].address} cannot be passed: {pci.NOT_REMAPPED}", pci.REMAP_HINT)
    for address in (one.pci for one in looked_at if one.pci and one.mac and starts):
        if name := pci_vf.interface_down(address, machine.root):
            raise ConflictError(
                f"guest {guest}: the interface {name}, of whose card {address} is a function, is down",
                f"ip link set {name} up",
            )
    for uuid in (one.mdev for one in looked_at if one.mdev):
        policy.mdev_of(guest, uuid, machine.mdevs)
        if starts and (conflict := policy.in_use_by_others(guest, uuid, machine.guests.get(uuid, ()))):
            raise conflict


def _there(guest: str, one: PassedSpec, machine: Machine) -> PciDevice:
    try:
        return machine.device(one.pci or "")
    except NotFoundError as error:
        if one.vf_of is None:
            raise NotFoundError(f"guest {guest}: {error.message}", error.hint) from error
        raise NotFoundError(
            f"guest {guest}: there is no PCI device {one.pci}, which was a virtual function of {one.vf_of}",
            f"kvmctl pci vfs {one.vf_of} N makes them again; with --persist they are there after every reboot",
        ) from error


@contextmanager
def lending(hypervisor: Hypervisor, guest: str, definition: str, only: str = "") -> Iterator[None]:
    """Make the devices of a definition, or `only` one of them, ready for libvirt to give to the guest in the block;
    where that fails they are as before. Raises as `check`, and TimedOutError for a driver that does not let go."""
    root = tree.read(definition)
    found = devices(root, _remembered(definition))
    asked = [one for one in found if not only or only == label(one)]
    if not asked or not is_here(hypervisor):
        yield
        return
    managed = {address for address, by_libvirt in pci_devices(root).items() if by_libvirt}
    # A network function's own MAC address is lost with its driver, and libvirt wants to note it before that.
    loose = [one.pci for one in asked if one.pci and one.mac is None and one.pci in managed]
    with _one, lock(HOST, LOCK_WAIT):
        journal, kernel = Journal(), Kernel()
        if os.geteuid() == 0:
            pci.recover(journal, kernel)
        machine = pci.observe(pci.guests_of(hypervisor))
        check(guest, asked, found, machine, starts=True)
        if os.geteuid() != 0:  # libvirt may all the same
            yield
            return
        for one in asked:
            said = {name: value for name in ("spoof_check", "trust") if (value := getattr(one, name)) is not None}
            if one.pci:
                pci_vf.configure(one.pci, said, journal, kernel.root)
        with pci_bind.lent(loose, journal, kernel):
            yield


def _remembered(definition: str) -> Sequence[PassedSpec]:
    from kvmctl.xml.metadata import read

    return read(definition).passed


def settle(hypervisor: Hypervisor, journal: Journal) -> list[str]:
    """Put the settings of functions back that no guest has any more; a sentence on each where that failed."""
    entries = journal.entries(pci_vf.KIND)
    if not entries or not is_here(hypervisor):
        return []
    failed = []
    guests = pci.guests_of(hypervisor)
    for address, entry in entries.items():
        if guests.get(address):
            continue
        try:
            if pci_vf.card_of(address):
                pci_vf.put_back(address, entry.old)
            journal.forget(pci_vf.KIND, address)
        except KvmctlError as error:
            failed.append(f"the spoof check and trust of {address} could not be put back: {error.message}")
    return failed
