"""OVF, the envelope in which other hypervisors pass guests on (DMTF DSP0243): read as they write it, and written so
that they can read it.

A guest's devices are CIM resource allocations; the numbers of their types are those of DSP1041 and the CIM schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from kvmctl.model.errors import UsageError
from kvmctl.model.units import MAX_SIZE
from kvmctl.xml import tree

ENVELOPE = "http://schemas.dmtf.org/ovf/envelope/1"
_RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
_VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
_VMW = "http://www.vmware.com/schema/ovf"
_STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_CPU, _MEMORY, _IDE, _SCSI, _ETHERNET, _FLOPPY, _CDROM, _DISK, _SATA = "3", "4", "5", "6", "10", "14", "15", "17", "20"
_IGNORED = {"1": "", "24": "", "13": "", "23": "a USB controller", "35": "a sound card"}
"""Types that this host's guests have of their own, or do without; those with words are told."""
_CONTROLLERS = {_IDE: "ide", _SCSI: "scsi", _SATA: "sata"}
_CARDS = {
    "e1000": "e1000", "e1000e": "e1000e", "vmxnet3": "vmxnet3", "vmxnet": "vmxnet3", "pcnet32": "pcnet",
    "virtio": "virtio",
}  # fmt: skip
"""Their words for network cards that QEMU has as well."""
_THEIRS = {"e1000": "E1000", "e1000e": "E1000e", "vmxnet3": "VmxNet3", "pcnet": "PCNet32", "virtio": "virtio"}
_POWER = re.compile(r"byte\s*\*\s*(2|10)\s*\^\s*(\d{1,2})", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "byte": 1, "bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+()-]{0,200}", re.ASCII)
_HINT = "only an OVF with files of its own beside it can be imported"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk: the file that it is in, the bytes that a guest sees, and the bus that it was on."""

    file: str
    capacity: int
    bus: str = "sata"


@dataclass(frozen=True, slots=True)
class Card:
    """One network card: the name of its network there, and QEMU's name of its model."""

    network: str
    model: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest as OVF says it. Bytes; `notes` says what was not taken as it stands."""

    name: str
    cpus: int
    memory: int
    firmware: str
    disks: tuple[Disk, ...]
    cards: tuple[Card, ...]
    notes: tuple[str, ...] = ()


def parse(text: str) -> Machine:
    """Read an envelope with one guest in it. Raises UsageError."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UsageError("the OVF has a document type, which no OVF needs", _HINT)
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - there is no document type in it
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"the OVF is not well-formed: {error}", _HINT) from error
    if tree.name(root) != "Envelope":
        raise UsageError(f"this is a {tree.name(root)}, and no OVF", _HINT)
    systems = [node for node in root.iter() if tree.name(node) == "VirtualSystem"]
    if len(systems) != 1:
        raise UsageError(f"there are {len(systems)} guests in the OVF, and one can be imported", _HINT)
    return _Reader(root, systems[0]).machine()


class _Reader:
    """Reads one guest of an envelope."""

    def __init__(self, root: Element, system: Element) -> None:
        self._system = system
        self._notes: list[str] = []
        self._files = {_get(node, "id"): _get(node, "href") for node in _all(root, "References", "File")}
        self._images = {_get(node, "diskId"): node for node in _all(root, "DiskSection", "Disk")}
        hardware = _child(system, "VirtualHardwareSection")
        if hardware is None:
            raise UsageError("the guest in the OVF has no hardware", _HINT)
        self._hardware = hardware
        self._items = [item for item in hardware if tree.name(item) in ("Item", "StorageItem", "EthernetPortItem")]

    def machine(self) -> Machine:
        return Machine(
            name=(_text(self._system, "Name") or _get(self._system, "id"))[:200],
            cpus=self._count(_CPU, 1, 1024),
            memory=self._memory(),
            firmware=self._firmware(),
            disks=tuple(self._disks()),
            cards=tuple(self._cards()),
            notes=(*self._notes, *self._others()),
        )

    def _of(self, kind: str) -> list[Element]:
        return [item for item in self._items if _text(item, "ResourceType") == kind]

    def _count(self, kind: str, least: int, most: int) -> int:
        found = self._of(kind)
        value = tree.number(_text(found[0], "VirtualQuantity")) if found else None
        if value is None or not least <= value <= most:
            raise UsageError("the OVF says no number of CPUs that a guest can have", _HINT)
        return value

    def _memory(self) -> int:
        found = self._of(_MEMORY)
        value = tree.number(_text(found[0], "VirtualQuantity")) if found else None
        size = _scaled(value, _text(found[0], "AllocationUnits") or "MegaBytes") if found else None
        if size is None or not 1 << 20 <= size <= MAX_SIZE:
            raise UsageError("the OVF says no memory that a guest can have", _HINT)
        return size >> 20 << 20

    def _firmware(self) -> str:
        for node in self._hardware.iter():
            if tree.name(node) == "Config" and _get(node, "key") == "firmware":
                return "uefi" if _get(node, "value").lower() == "efi" else "bios"
        return "bios"

    def _disks(self) -> Iterator[Disk]:
        buses = {_text(item, "InstanceID"): _CONTROLLERS[kind] for kind in _CONTROLLERS for item in self._of(kind)}
        for item in self._of(_DISK):
            image = self._images.get(_text(item, "HostResource").rpartition("/")[2])
            if image is None:
                raise UsageError("a disk of the OVF has no image", _HINT)
            capacity = _scaled(tree.number(_get(image, "capacity")), _get(image, "capacityAllocationUnits") or "byte")
            file = self._files.get(_get(image, "fileRef"), "")
            if not _FILE.fullmatch(file) or ".." in file:
                raise UsageError(f"a disk of the OVF is in {file[:60]!r}, which is no file beside it", _HINT)
            if capacity is None or not 0 < capacity <= MAX_SIZE:
                raise UsageError(f"the OVF does not say the size of {file}", _HINT)
            yield Disk(file, capacity, buses.get(_text(item, "Parent"), "sata"))

    def _cards(self) -> Iterator[Card]:
        for item in self._of(_ETHERNET):
            said = _text(item, "ResourceSubType")
            model = _CARDS.get(said.strip().lower())
            if model is None:
                self._notes.append(f"network card {said[:40] or 'of no said model'} becomes an e1000")
            yield Card((_text(item, "Connection") or "default")[:100], model or "e1000")

    def _others(self) -> Iterator[str]:
        known = {_CPU, _MEMORY, _DISK, _ETHERNET, *_CONTROLLERS}
        for item in self._items:
            kind = _text(item, "ResourceType")
            if kind in known or _IGNORED.get(kind) == "":
                continue
            if kind in (_CDROM, _FLOPPY):
                yield f"left out: {'CD-ROM' if kind == _CDROM else 'floppy'} drive"
            else:
                name = _text(item, "ElementName") or _text(item, "Caption")
                yield f"left out: {_IGNORED.get(kind) or f'a device of type {kind[:10]}'} ({name[:60]})"


def _all(root: Element, section: str, name: str) -> Iterator[Element]:
    for part in root:
        if tree.name(part) == section:
            yield from (node for node in part if tree.name(node) == name)


def _child(node: Element, name: str) -> Element | None:
    return next((child for child in node if tree.name(child) == name), None)


def _text(node: Element, name: str) -> str:
    child = _child(node, name)
    return "" if child is None else (child.text or "").strip()


def _get(node: Element, name: str) -> str:
    """An attribute, in whatever namespace."""
    return next((value for key, value in node.attrib.items() if key.rpartition("}")[2] == name), "")


def _scaled(value: int | None, unit: str) -> int | None:
    power = _POWER.fullmatch(unit.strip())
    factor = int(power[1]) ** int(power[2]) if power else _UNITS.get(unit.strip().lower())
    return None if value is None or factor is None or value < 0 else value * factor


@dataclass(frozen=True, slots=True)
class Written:
    """The file of a disk as it is written: bytes of the file, and those that a guest sees."""

    file: str
    size: int
    capacity: int


def render(machine: Machine, files: tuple[Written, ...], ident: str) -> str:
    """The envelope of a guest whose disks are in these files, in the order of its disks. `ident` names it in there."""
    for prefix, uri in (("ovf", ENVELOPE), ("rasd", _RASD), ("vssd", _VSSD), ("vmw", _VMW)):
        ElementTree.register_namespace(prefix, uri)
    root = Element(_o("Envelope"))
    references = SubElement(root, _o("References"))
    section = _section(root, "DiskSection", "The disks")
    for index, file in enumerate(files):
        SubElement(
            references, _o("File"), {_o("id"): f"file{index}", _o("href"): file.file, _o("size"): str(file.size)}
        )
        disk = {_o("diskId"): f"disk{index}", _o("fileRef"): f"file{index}", _o("capacity"): str(file.capacity)}
        SubElement(section, _o("Disk"), disk | {_o("capacityAllocationUnits"): "byte", _o("format"): _STREAM})
    section = _section(root, "NetworkSection", "The networks")
    for network in dict.fromkeys(card.network for card in machine.cards):
        _text_node(SubElement(section, _o("Network"), {_o("name"): network}), _o("Description"), network)
    system = SubElement(root, _o("VirtualSystem"), {_o("id"): ident})
    _text_node(system, _o("Info"), "A guest")
    _text_node(system, _o("Name"), machine.name)
    _hardware(_section(system, "VirtualHardwareSection", "What it has"), machine, ident)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _o(name: str) -> str:
    return f"{{{ENVELOPE}}}{name}"


def _section(parent: Element, name: str, info: str) -> Element:
    section = SubElement(parent, _o(name))
    _text_node(section, _o("Info"), info)
    return section


def _text_node(parent: Element, tag: str, text: str) -> None:
    SubElement(parent, tag).text = text


def _hardware(section: Element, machine: Machine, ident: str) -> None:
    system = SubElement(section, _o("System"))
    values = {"ElementName": "Hardware", "InstanceID": "0", "VirtualSystemIdentifier": ident}
    for key, value in (values | {"VirtualSystemType": "vmx-11"}).items():
        _text_node(system, f"{{{_VSSD}}}{key}", value)
    ids = iter(range(1, 10_000))
    _item(section, ids, ElementName="CPUs", ResourceType=_CPU, VirtualQuantity=str(machine.cpus))
    memory = str(machine.memory >> 20)
    _item(section, ids, "byte * 2^20", ElementName="Memory", ResourceType=_MEMORY, VirtualQuantity=memory)
    controller = _item(section, ids, ElementName="SATA", ResourceType=_SATA, ResourceSubType="vmware.sata.ahci")
    for index, _disk in enumerate(machine.disks):
        place = {"AddressOnParent": str(index), "HostResource": f"ovf:/disk/disk{index}", "Parent": controller}
        _item(section, ids, ElementName=f"Disk {index}", ResourceType=_DISK, **place)
    for index, card in enumerate(machine.cards):
        what = {"Connection": card.network, "ResourceSubType": _THEIRS.get(card.model, "E1000")}
        _item(section, ids, ElementName=f"Network {index}", ResourceType=_ETHERNET, **what)
    if machine.firmware == "uefi":
        config = {_o("required"): "false", f"{{{_VMW}}}key": "firmware", f"{{{_VMW}}}value": "efi"}
        SubElement(section, f"{{{_VMW}}}Config", config)


def _item(section: Element, ids: Iterator[int], units: str = "", **values: str) -> str:
    """One device; its number. Their readers want the elements in the order of the alphabet."""
    number = str(next(ids))
    values |= {"InstanceID": number} | ({"AllocationUnits": units} if units else {})
    item = SubElement(section, _o("Item"))
    for key in sorted(values):
        _text_node(item, f"{{{_RASD}}}{key}", values[key])
    return number
