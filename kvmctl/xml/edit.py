"""Making an existing definition say what a spec says, and touching nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lxml import etree
from lxml.etree import _Element

from kvmctl.model.errors import RefusedError, UsageError
from kvmctl.model.platform import CPU_MODES, Platform, machine_family, same_machine
from kvmctl.model.spec import GuestSpec
from kvmctl.xml import dom, edit_devices, edit_resources, metadata, tree
from kvmctl.xml.metadata import Metadata
from kvmctl.xml.parse import spec_of
from kvmctl.xml.text import check_texts


def edit(domain_xml: str, desired: GuestSpec, platform: Platform) -> str:
    """The definition with what `desired` says; what it does not say (None) stays, and so does everything that a
    guest file cannot say.

    A disk is found by its target where that is said, else by its path; a nic by its MAC address, else by its
    place among the others. One that the list lacks is taken out. A text that is empty is taken out. Memory or
    vCPUs beyond the maximum raise it. Returns the same string where all is as it should be already.
    `domain_xml` is the persistent definition, with its passwords where it has any.

    Raises UsageError for what XML or the platform cannot take, RefusedError for what would contradict a part of
    the definition that a guest file cannot say.
    """
    found = tree.read(domain_xml)
    said = metadata.of(found)
    now = spec_of(found, said)
    check_texts(desired, now)
    root = dom.load(domain_xml)
    before = etree.tostring(root)
    try:
        edit_resources.edit(root, desired, now)
        for step in _STEPS:
            step(root, desired, now, platform)
    except ValueError as error:
        raise UsageError(f"guest {now.name}: {error}", "nothing was changed: choose what this host has") from error
    wanted = edit_devices.edit(root, desired, now, _metadata(desired, now, said))
    if wanted != said:
        _put_metadata(root, wanted)
    return domain_xml if etree.tostring(root) == before else dom.dump(root, domain_xml)


def _metadata(desired: GuestSpec, now: GuestSpec, said: Metadata) -> Metadata:
    cpu, memory = desired.cpu, desired.memory
    if cpu.shares is not None and cpu.shares != now.cpu.shares:
        said = replace(said, cpu_shares=metadata.stored_shares(cpu.shares))
    if cpu.reservation is not None:
        said = replace(said, cpu_reservation=cpu.reservation)
    if memory.reservation is not None:
        said = replace(said, memory_reservation=memory.reservation)
    if memory.shares is not None and memory.shares != now.memory.shares:
        said = replace(said, memory_shares=metadata.stored_memory_shares(memory.shares))
    if memory.swap is not None and edit_resources.hugepages_after(desired, now) == 0:
        said = replace(said, swap=memory.swap)
    if desired.rebalance is not None:
        said = replace(said, rebalance=desired.rebalance)
    if desired.labels is not None:
        said = replace(said, labels=desired.labels)
    if desired.project is not None:
        said = replace(said, project=desired.project or None)
    return said


def _put_metadata(root: _Element, said: Metadata) -> None:
    guest = root.find(metadata.PATH)
    if guest is None:
        guest = etree.Element(f"{{{metadata.NAMESPACE}}}guest", nsmap={metadata.PREFIX: metadata.NAMESPACE})
        dom.insert(dom.child(root, "metadata"), guest)
    metadata.put(guest, said)
    tail = guest.tail
    etree.indent(guest, level=metadata.INDENTED)
    guest.tail = tail
    if not metadata.is_anything(guest):
        dom.remove(guest)
        dom.prune(root, "metadata")


def _description(root: _Element, desired: GuestSpec, now: GuestSpec, _platform: Platform) -> None:
    if desired.description is not None and (desired.description or None) != now.description:
        dom.say(root, "description", desired.description)


def _io(root: _Element, desired: GuestSpec, now: GuestSpec, _platform: Platform) -> None:
    weight = desired.io.weight
    if weight is not None and weight != now.io.weight:
        dom.say(dom.child(root, "blkiotune"), "weight", str(weight) if weight else None)
        dom.prune(root, "blkiotune")


def _accelerator(root: _Element, desired: GuestSpec, now: GuestSpec, platform: Platform) -> None:
    if desired.accelerator in (None, "auto", now.accelerator):
        return
    root.set("type", platform.virt_type)
    # TCG cannot pass the host's processor through, so the guest's default goes with its accelerator.
    if now.cpu.model == "host-passthrough" and desired.cpu.model is None and platform.default_cpu_model:
        _set_model(root, platform.default_cpu_model)


def _cpu_model(root: _Element, desired: GuestSpec, now: GuestSpec, platform: Platform) -> None:
    if desired.cpu.model is not None and desired.cpu.model != now.cpu.model:
        platform.check_cpu_model(desired.cpu.model)
        _set_model(root, desired.cpu.model)


def _set_model(root: _Element, model: str) -> None:
    """A mode of libvirt's or a model of QEMU's; topology, NUMA cells and single features stay."""
    cpu = dom.child(root, "cpu")
    dom.drop(cpu, "model", "vendor")
    for attribute in ("match", "check", "migratable"):
        dom.mark(cpu, attribute, None)
    if model in CPU_MODES:
        cpu.set("mode", model)
        return
    cpu.set("mode", "custom")
    cpu.set("match", "exact")
    dom.say(cpu, "model", model)
    dom.child(cpu, "model").set("fallback", "forbid")


def _kernel(root: _Element, desired: GuestSpec, now: GuestSpec, _platform: Platform) -> None:
    for tag in ("kernel", "initrd", "cmdline"):
        wanted = getattr(desired.boot, tag)
        if wanted is not None and (wanted or None) != getattr(now.boot, tag):
            dom.say(dom.child(root, "os"), tag, wanted)
    if now.boot.kernel and root.find("os/kernel") is None:
        dom.drop(dom.child(root, "os"), "initrd", "cmdline", "dtb")


def _firmware(root: _Element, desired: GuestSpec, now: GuestSpec, platform: Platform) -> None:
    wanted = desired.boot.firmware
    if wanted is None or wanted == now.boot.firmware:
        return
    platform.check_firmware(wanted)
    boot = dom.child(root, "os")
    dom.drop(boot, "firmware", "loader", "nvram")
    dom.mark(boot, "firmware", "efi" if wanted == "uefi" else None)
    if wanted == "uefi":
        dom.insert(boot, dom.part("firmware"))


def _machine(root: _Element, desired: GuestSpec, now: GuestSpec, platform: Platform) -> None:
    wanted = desired.boot.machine
    if wanted is None or same_machine(wanted, now.boot.machine):
        return
    if machine_family(wanted) != machine_family(now.boot.machine):
        raise RefusedError(
            f"guest {now.name} is a {machine_family(now.boot.machine)} machine, and the addresses of its devices are "
            f"made for that: it cannot become {wanted}",
            "make a new guest with the disks of this one",
        )
    dom.child(dom.child(root, "os"), "type").set("machine", platform.canonical_machine(wanted))


_STEPS: tuple[Callable[[_Element, GuestSpec, GuestSpec, Platform], None], ...] = (
    _description,
    _io,
    _accelerator,
    _cpu_model,
    _kernel,
    _firmware,
    _machine,
)
