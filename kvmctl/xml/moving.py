"""What of a guest's definition matters when it moves to another host."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kvmctl.model.migration import MovedDisk
from kvmctl.xml import tree

_CPU_DETAILS = ("topology", "numa", "cache", "maxphysaddr")
"""What says nothing about the processor that a guest needs."""


def cpu(root: Element) -> str | None:
    """The CPU that the guest needs, as libvirt compares it; None where the definition leaves it to QEMU."""
    found = root.find("cpu")
    if found is None or (found.find("model") is None and found.get("mode") in (None, "custom")):
        return None
    wanted = Element("cpu", dict(found.attrib))
    wanted.extend(child for child in found if child.tag not in _CPU_DETAILS)
    return ElementTree.tostring(wanted, encoding="unicode")


def host_cpu(capabilities_xml: str) -> str | None:
    """The host's own processor as its capabilities have it."""
    found = tree.read(capabilities_xml, "capabilities").find("host/cpu")
    return None if found is None else ElementTree.tostring(found, encoding="unicode")


def host_uuid(capabilities_xml: str) -> str | None:
    """What tells one host from another."""
    return tree.read(capabilities_xml, "capabilities").findtext("host/uuid")


def disks(root: Element) -> tuple[MovedDisk, ...]:
    """The guest's disks and discs, as its definition alone knows them; drives without a disc are left out."""
    return tuple(found for disk in root.iterfind("devices/disk") if (found := _disk(disk)))


def _disk(disk: Element) -> MovedDisk | None:
    source, driver = disk.find("source"), disk.find("driver")
    if source is None or not source.attrib:
        return None
    path = source.get("file") or source.get("dev")
    if source.get("volume"):
        path = f"{source.get('pool')}/{source.get('volume')}"
    backing = disk.find("backingStore")
    return MovedDisk(
        target=_of(disk, "target", "dev"),
        path=path or source.get("name"),
        kind=disk.get("type", "file"),
        form="raw" if driver is None else driver.get("type", "raw"),
        cache=None if driver is None else driver.get("cache"),
        read_only=disk.find("readonly") is not None or disk.get("device") == "cdrom",
        shareable=disk.find("shareable") is not None,
        backing=backing is not None and backing.find("source") is not None,
    )


def networks(root: Element) -> tuple[str, ...]:
    """The virtual networks that its NICs are on."""
    found = (_of(nic, "source", "network") for nic in root.iterfind("devices/interface[@type='network']"))
    return tuple(dict.fromkeys(filter(None, found)))


def interfaces(root: Element) -> tuple[str, ...]:
    """The bridges and devices of the host that its NICs are on."""
    found = [_of(nic, "source", "bridge") for nic in root.iterfind("devices/interface[@type='bridge']")]
    found += [_of(nic, "source", "dev") for nic in root.iterfind("devices/interface[@type='direct']")]
    return tuple(dict.fromkeys(filter(None, found)))


def host_devices(root: Element) -> tuple[str, ...]:
    """The devices of the host that it has to itself, each in words."""
    devices = root.iterfind("devices/hostdev")
    found = [f"{device.get('type', '')} device {_address(device)}".strip() for device in devices]
    found += ["network interface of type hostdev" for _ in root.iterfind("devices/interface[@type='hostdev']")]
    return tuple(found)


def _address(device: Element) -> str:
    address = device.find("source/address")
    part = {} if address is None else {key: value.removeprefix("0x") for key, value in address.items()}
    if "slot" in part:
        return f"{part.get('domain', ''):0>4}:{part.get('bus', ''):0>2}:{part['slot']:0>2}.{part.get('function', '0')}"
    return " ".join(f"{key}={value}" for key, value in part.items())


def immovable(root: Element) -> tuple[str, ...]:
    """Other devices that QEMU does not move, each in words."""
    return tuple(_immovable(root))


def _immovable(root: Element) -> Iterator[str]:
    for filesystem in root.iterfind("devices/filesystem"):
        yield f"the folder {_of(filesystem, 'source', 'dir')} that it shares with its host"
    for shmem in root.iterfind("devices/shmem"):
        yield f"the shared memory {shmem.get('name', '')}".rstrip()
    for nic in root.iterfind("devices/interface"):
        if nic.get("type") in ("vhostuser", "vdpa"):
            yield f"a network interface of type {nic.get('type')}"
    for feature in root.iterfind("cpu/feature[@name='invtsc']"):
        if feature.get("policy") in (None, "require", "force"):
            yield "a time stamp counter that is the host's own (CPU feature invtsc)"


def files(root: Element) -> tuple[str, ...]:
    """The other files of the host that it starts from."""
    found = [root.findtext(f"os/{name}") for name in ("kernel", "initrd", "dtb", "loader")]
    return tuple(path for path in found if path)


def is_uefi(root: Element) -> bool:
    """Whether its firmware is UEFI."""
    return _of(root, "os", "firmware") == "efi" or _of(root, "os/loader", "type") == "pflash"


def has_nvram(root: Element) -> bool:
    """Whether its firmware keeps variables in a file."""
    return root.find("os/nvram") is not None


def has_tpm(root: Element) -> bool:
    """Whether it has an emulated TPM, whose state is in a folder of the host."""
    return root.find("devices/tpm/backend[@type='emulator']") is not None


def _of(element: Element, child: str, attribute: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(attribute, "")
