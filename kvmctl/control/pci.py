"""PCI devices listed, bound to vfio-pci for guests and released again, and virtual functions made.

What the host uses is asked of its kernel, which guests use them of libvirt where it answers: a guest that runs is
seen by its open files as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.host import mdev, pci, pci_bind, pci_vf, pci_vfs
from kvmctl.host.journal import Entry, Journal
from kvmctl.host.lock import HOST, lock
from kvmctl.host.pci_bind import Done
from kvmctl.host.pci_kernel import Kernel, driver
from kvmctl.host.pci_net import Addresses
from kvmctl.host.pci_vfs import DoneVfs
from kvmctl.hypervisor import domains, nodedev
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.uri import is_local, meant
from kvmctl.model.errors import ConflictError, NotFoundError, RefusedError, UnreachableError
from kvmctl.model.pci import NO_DRIVER, VFIO, GuestUse, Mdev, MdevType, PciDevice
from kvmctl.policy import pci as policy
from kvmctl.xml import tree
from kvmctl.xml.pci import mdevs, pci_devices

KIND, SRIOV, FUNCTION = pci_bind.KIND, pci_vfs.KIND, pci_vf.KIND
_BEGUN = "begun"
"""The state, for `host restore`, of what a run that was killed has left half done."""
NOT_REMAPPED = "interrupts are not remapped here, so that VFIO lets no guest have a device"
REMAP_HINT = (
    "switch interrupt remapping on in the firmware, and boot without intremap=off; a guest that is trusted may have it "
    "all the same with allow_unsafe_interrupts=1, a parameter of the module vfio_iommu_type1"
)

Guests = Mapping[str, Sequence[GuestUse]]


def refuse_other_machine(uri: str | None) -> None:
    """Raise RefusedError where `uri`, or LIBVIRT_DEFAULT_URI, names a hypervisor that is not on this machine."""
    named = meant(uri)
    if not is_local(named):
        raise RefusedError(
            f"{named} is not on this machine, and PCI devices are seen and bound only on their own", "run kvmctl there"
        )


def guests_of(hypervisor: Hypervisor) -> Guests:
    """The guests whose definition names a device, running or not, by its address, or an mdev's UUID."""
    found: dict[str, dict[str, GuestUse]] = {}
    for running, definitions in (
        (False, domains.definitions(domains.domains(hypervisor))),
        (True, _running(domains.domains(hypervisor, active_only=True))),
    ):
        for domain, xml in definitions:
            root = tree.read(xml)
            for address, managed in (pci_devices(root) | dict.fromkeys(mdevs(root), False)).items():
                found.setdefault(address, {})[domain.name()] = GuestUse(domain.name(), running, managed)
    return {address: [each[name] for name in sorted(each)] for address, each in found.items()}


def _running(handles: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    """Each guest with the XML that it runs with; one that ends meanwhile is left out."""
    for domain in handles:
        with suppress(NotFoundError):
            yield domain, domains.live_definition(domain)


@dataclass(frozen=True, slots=True)
class Machine:
    """The devices of one machine as they are now, with who uses them."""

    devices: tuple[PciDevice, ...]
    iommu_hint: str
    interrupts_unsafe: bool = False
    mdevs: tuple[Mdev, ...] = ()
    mdev_types: Mapping[str, Sequence[MdevType]] = field(default_factory=dict)
    """Of each device that can have mdevs, by its name in the kernel."""
    guests: Guests = field(default_factory=dict)
    root: Path = Path("/")

    def device(self, address: str) -> PciDevice:
        """The device at an address. Raises NotFoundError."""
        for device in self.devices:
            if device.address == address:
                return device
        raise NotFoundError(f"there is no PCI device {address}", "kvmctl pci list shows the devices")


def observe(guests: Guests, root: Path = Path("/"), known: Addresses | None = None, probe: bool = False) -> Machine:
    """Look at all devices; `known` and `probe` as in `pci.devices`."""
    found = [
        replace(device, guests=tuple(guests.get(device.address, ()))) for device in pci.devices(root, known, probe)
    ]
    hint, unsafe = pci.iommu_hint(root), pci.interrupts_unsafe(root)
    return Machine(tuple(found), hint, unsafe, mdev.devices(root), mdev.parents(root), guests, root)


def rows(machine: Machine) -> list[dict[str, Any]]:
    """One row a device, with stable keys; `passthrough` is `yes`, `group` or `no`."""
    found = []
    for device in machine.devices:
        verdict = policy.verdict(device, machine.devices, machine.iommu_hint)
        if machine.interrupts_unsafe and verdict.passable != "no":
            verdict = replace(verdict, passable="no", reason=NOT_REMAPPED)
        found.append(
            {
                "name": device.address,
                "ids": device.ids,
                "title": device.name,
                "class": f"{device.class_code:04x}",
                "class_name": device.class_name,
                "driver": device.driver,
                "numa_node": device.numa_node,
                "iommu_group": device.group,
                "passthrough": verdict.passable,
                "reason": verdict.reason,
                "companions": list(verdict.companions),
                "uses": [asdict(use) | {"vital": use.vital} for use in device.uses],
                "guests": [asdict(guest) for guest in device.guests],
                "vfs_total": device.total_vfs,
                "vfs": list(device.vfs),
                "vf_of": device.pf,
                "mdev_types": [asdict(one) for one in machine.mdev_types.get(device.address, ())],
                "mdevs": _mdevs(machine, device.address),
            }
        )
    return found


def _mdevs(machine: Machine, parent: str) -> list[dict[str, Any]]:
    return [
        asdict(one) | {"guests": [asdict(guest) for guest in machine.guests.get(one.uuid, ())]}
        for one in machine.mdevs
        if one.parent == parent
    ]


def mdev_sentences(machine: Machine) -> Iterator[str]:
    """Which mdevs there are, and of which types more can be made: also of devices that are not on the PCI bus."""
    for one in machine.mdevs:
        owners = [guest.name for guest in machine.guests.get(one.uuid, ())]
        used = f", of guest {', '.join(owners)}" if owners else ""
        yield f"mdev {one.uuid}: {one.type} of {one.parent}{used}"
    for parent, kinds in machine.mdev_types.items():
        for kind in kinds:
            title = f" ({kind.title})" if kind.title else ""
            left = "" if kind.available is None else f", {kind.available} more can be made"
            yield f"{parent} has mdevs of type {kind.name}{title}, {kind.interface or 'for no known bus'}{left}"


@contextmanager
def changing(hypervisor: Hypervisor | None, dry_run: bool) -> Iterator[None]:
    """The locks of the hypervisor, so that no guest starts meanwhile, and of this machine. Raises UnreachableError
    for who may not change its devices."""
    if dry_run:
        yield
        return
    if os.geteuid() != 0:
        raise UnreachableError("only root may change the drivers of devices", "run this as root, or add --dry-run")
    with ExitStack() as stack:
        if hypervisor:
            stack.enter_context(lock(hypervisor.uri, LOCK_WAIT))
        stack.enter_context(lock(HOST, LOCK_WAIT))
        yield


def recover(journal: Journal, kernel: Kernel) -> list[str]:
    """Finish or undo what a run that was killed had begun; a sentence on each."""
    return pci_bind.recover(journal, kernel) + pci_vfs.recover(journal, kernel)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be bound or released: the devices named, and those that go with them."""

    named: tuple[PciDevice, ...]
    others: tuple[PciDevice, ...] = ()
    idle: tuple[PciDevice, ...] = ()
    """Named, and there already."""

    @property
    def addresses(self) -> list[str]:
        """The addresses of all that is to be changed."""
        return [device.address for device in (*self.named, *self.others)]


def plan_bind(addresses: Sequence[str], machine: Machine) -> Plan:
    """What binding these devices takes. Raises as `policy.check_bind`, and NotFoundError."""
    chosen = [machine.device(address) for address in dict.fromkeys(addresses)]
    needed = policy.to_bind(chosen, machine.devices)
    waiting = {device.address for device in needed}
    whole = [
        device
        for device in chosen
        if device.address in waiting or any(o.address in waiting for o in policy.companions(device, machine.devices))
    ]
    policy.check_bind(whole, machine.devices, machine.iommu_hint)
    if whole and machine.interrupts_unsafe:
        raise RefusedError(f"{whole[0].address} cannot be bound to vfio-pci: {NOT_REMAPPED}", REMAP_HINT)
    return Plan(
        named=tuple(device for device in chosen if device.address in waiting),
        others=tuple(device for device in needed if device not in chosen),
        idle=tuple(device for device in chosen if device.address not in waiting),
    )


def bind(plan: Plan, journal: Journal, kernel: Kernel) -> list[Done]:
    """Bind what is planned, all of it or nothing. Raises as `pci_bind.bind`."""
    idle = [Done(device.address, VFIO, VFIO, VFIO, "unchanged") for device in plan.idle]
    return (pci_bind.bind(plan.addresses, journal, kernel) if plan.addresses else []) + idle


def plan_release(addresses: Sequence[str], machine: Machine, journal: Journal) -> Plan:
    """What releasing these devices takes: of their groups also what kvmctl had bound. Raises as
    `policy.check_release`, and NotFoundError."""
    chosen = [machine.device(address) for address in dict.fromkeys(addresses)]
    named = [device for device in chosen if _to_release(device)]
    ours = journal.entries(KIND)
    others = {
        other.address: other
        for device in named
        for other in policy.companions(device, machine.devices)
        if other.address in ours and _to_release(other) and other not in named
    }
    policy.check_release(named, machine.devices)
    idle = tuple(device for device in chosen if device not in named)
    return Plan(tuple(named), tuple(others.values()), idle)


def _to_release(device: PciDevice) -> bool:
    return VFIO in (device.driver, device.override)


def release(plan: Plan, journal: Journal, kernel: Kernel, hypervisor: Hypervisor | None = None) -> list[Done]:
    """Release what is planned, and have libvirt forget it; what became of each. Raises as `pci_bind.release`."""
    forget = partial(nodedev.reattach, hypervisor) if hypervisor else None
    done = pci_bind.release(plan.addresses, journal, kernel, forget) if plan.addresses else []
    for device in plan.idle:
        now = device.driver or NO_DRIVER
        done.append(Done(device.address, now, now, now, "unchanged"))
        if device.address in journal.entries(KIND):
            journal.forget(KIND, device.address)  # libvirt has given it back
    return done


def pending(plan: Plan, wanted: str | None, journal: Journal) -> list[Done]:
    """What --dry-run tells instead; `wanted` is None for the former drivers."""
    done = []
    for device in (*plan.named, *plan.others, *plan.idle):
        old = device.driver or NO_DRIVER
        new = old if device in plan.idle else wanted or pci_bind.former(device.address, journal) or "any"
        done.append(Done(device.address, old, new, old, "unchanged" if device in plan.idle else "pending"))
    return done


def set_vfs(
    address: str, count: int, persist: bool, machine: Machine, journal: Journal, kernel: Kernel, dry_run: bool = False
) -> DoneVfs:
    """Give a physical function `count` virtual functions, with `persist` after every reboot too.

    Raises as `policy.check_vfs` and `pci_vfs.check_rule`, before anything is done, and as `pci_vfs.change`.
    """
    root = kernel.root
    device = machine.device(address)
    policy.check_vfs(device, count, machine.devices)
    if persist:
        pci_vfs.check_rule(address, count, root)
    old, kept = pci_vfs.number(address, root), pci_vfs.persistent(address, root)
    rule = (count or None) if persist else kept
    if dry_run:
        result: pci_bind.Result = "unchanged" if (old, kept) == (count, rule) else "pending"
        return DoneVfs(address, old, count, old, result, device.vfs, kept)
    if old != count:
        pci_vfs.change(address, count, journal, kernel)
        pci_bind.forget_gone(journal, kernel)
    changed = old != count
    if persist:
        changed |= pci_vfs.persist(address, count, root) != "unchanged"
    vfs = pci.virtual_functions(address, root)
    return DoneVfs(address, old, count, count, "changed" if changed else "unchanged", vfs, rule)


def kept(journal: Journal) -> Iterator[tuple[str, str, Entry]]:
    """What kvmctl changed of PCI devices, or has begun, for `host restore`: kind, address and entry. Drivers come
    before the number of functions, which may take devices away."""
    told = set()
    for one in (*journal.unfinished(KIND), *journal.unfinished(SRIOV)):
        for address, was in _before(one.kind, one.key, one.data).items():
            # Putting back the first of them settles all that was begun with it.
            if _is_begun(one.kind, address, journal):
                told.add((one.kind, address))
                yield one.kind, address, Entry(was, _BEGUN, "", one.time)
    for kind in (KIND, FUNCTION, SRIOV):
        for address, entry in journal.entries(kind).items():
            if (kind, address) not in told:
                yield kind, address, entry


def _is_begun(kind: str, address: str, journal: Journal) -> bool:
    return any(address in _before(one.kind, one.key, one.data) for one in journal.unfinished(kind))


def _before(kind: str, key: str, data: Mapping[str, Any]) -> dict[str, object]:
    """What was before, by address, as an intent tells it."""
    if kind == SRIOV:
        return {key: data["old"]}
    devices = data["devices"]
    return {one: was["driver"] if isinstance(was, dict) else was for one, was in devices.items()}


def state(kind: str, address: str, journal: Journal, kernel: Kernel) -> object:
    """The driver, or the number of functions, that the device has now. Raises NotFoundError where it is gone."""
    if _is_begun(kind, address, journal):
        return _BEGUN
    if kind == SRIOV:
        return pci_vfs.number(address, kernel.root)
    if kind == FUNCTION:
        return pci_vf.read(pci_vf.function(address, kernel.root))
    return driver(address, kernel.root)


def put_back(
    kind: str, address: str, journal: Journal, kernel: Kernel, wanted: Any, hypervisor: Hypervisor | None = None
) -> object:
    """Put back what was before kvmctl; what is then. Raises ConflictError while the device is in use, KvmctlError."""
    recover(journal, kernel)
    present = state(kind, address, journal, kernel)
    if present in (_BEGUN, wanted) or wanted is None:
        return present if present == _BEGUN else wanted
    machine = observe({}, kernel.root)
    device = machine.device(address)
    if kind == FUNCTION:
        if said := policy.in_use(device):
            raise ConflictError(f"{address} is in use: {said}", "stop the guest, or detach it there first")
        return pci_vf.put_back(address, wanted, kernel.root)
    if kind == SRIOV:
        policy.check_vfs(device, int(wanted), machine.devices)
        return pci_vfs.put_back(address, int(wanted), kernel)
    policy.check_release([device], machine.devices)
    if hypervisor and device.driver == VFIO:
        nodedev.reattach(hypervisor, address)
    return pci_bind.give_back(address, str(wanted), kernel)
