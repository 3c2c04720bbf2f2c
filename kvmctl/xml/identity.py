"""What a guest is told from every other by: its name, UUID, generation ID, MAC addresses, and where its NVRAM lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from lxml.etree import _Element

from kvmctl.xml import dom

MAC_PREFIX = "52:54:00"
"""The part of a MAC address that QEMU's guests have in common."""
ZERO_MAC = "00:00:00:00:00:00"
"""What libvirt reads as none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that is a guest's alone. `genid` and `nvram` are None where the guest has none.

    `macs` are lower case, in the order of the definition's interfaces, one for each.
    """

    name: str
    uuid: str
    macs: tuple[str, ...] = ()
    genid: str | None = None
    nvram: str | None = None


def read(xml: str) -> Identity:
    """The identity that a definition has; an interface without an address has the empty string. Raises UsageError
    where the text is no XML."""
    return of(dom.load(xml))


def of(root: _Element) -> Identity:
    """The identity of a domain."""
    genid, nvram = root.find("genid"), root.find("os/nvram")
    return Identity(
        name=root.findtext("name") or "",
        uuid=(root.findtext("uuid") or "").strip().lower(),
        macs=tuple(_mac(interface) for interface in root.iterfind("devices/interface")),
        genid=None if genid is None else (genid.text or "").strip(),
        nvram=None if nvram is None else _nvram(nvram) or None,
    )


def _mac(interface: _Element) -> str:
    node = interface.find("mac")
    address = "" if node is None else node.get("address", "").lower()
    return "" if address == ZERO_MAC else address


def _nvram(nvram: _Element) -> str:
    source = nvram.find("source")
    return (nvram.text or "").strip() or ("" if source is None else source.get("file", ""))


def mac(tail: bytes) -> str:
    """The MAC address of a guest's interface, from three random bytes."""
    return f"{MAC_PREFIX}:{tail[0]:02x}:{tail[1]:02x}:{tail[2]:02x}"


def nvram_path(old: str | None, name: str) -> str | None:
    """Where the NVRAM of a guest of that name lies, beside the one that it is a copy of; None where it has none."""
    return None if old is None else str(PurePosixPath(old).parent / f"{name}_VARS.fd")


def renew(xml: str, identity: Identity) -> str:
    """The definition with another identity; everything else stays as it stands.

    A part of `identity` that is None, or a MAC address too few, leaves the old one out, so that libvirt chooses.
    Raises UsageError where the text is no XML.
    """
    root = dom.load(xml)
    put(root, identity)
    return dom.dump(root, xml)


def put(root: _Element, identity: Identity) -> None:
    """Give a domain another identity."""
    dom.say(root, "name", identity.name)
    dom.say(root, "uuid", identity.uuid)
    genid = root.find("genid")
    if genid is not None:
        genid.text = identity.genid
    # The firmware shows the guest this one, and libvirt refuses a definition where it is another.
    for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = identity.uuid
    _put_nvram(root, identity.nvram)
    for index, interface in enumerate(root.iterfind("devices/interface")):
        _put_mac(interface, identity.macs[index] if index < len(identity.macs) else "")
    _forget_run(root)


def _put_nvram(root: _Element, path: str | None) -> None:
    nvram = root.find("os/nvram")
    if nvram is None:
        return
    source = nvram.find("source")
    if source is not None and path:
        source.set("file", path)
    else:
        dom.drop(nvram, "source")
        dom.mark(nvram, "type", None)
        nvram.text = path


def _put_mac(interface: _Element, address: str) -> None:
    if address:
        dom.child(interface, "mac").set("address", address)
    else:
        dom.drop(interface, "mac")


def _forget_run(root: _Element) -> None:
    """Take out what libvirt chose for one running guest of that name, and would give to two of them."""
    dom.mark(root, "id", None)
    for channel in root.iterfind("devices/channel"):
        source = channel.find("source")
        path = "" if source is None else source.get("path", "")
        if source is not None and channel.get("type") == "unix" and "/channel/target/" in path:
            dom.remove(source)
    for target in root.iterfind("devices/interface/target"):
        if target.get("dev", "").startswith("vnet"):
            dom.remove(target)
