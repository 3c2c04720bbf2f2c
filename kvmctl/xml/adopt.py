"""A definition that came from somebody else, made fit for this host: what it is to reach here is said by us, and
whatever else it would reach is found, named, and taken out or refused.

It names what is allowed rather than what is not: libvirt learns new ways into a host with each version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from lxml import etree
from lxml.etree import _Element

from kvmctl.model.errors import UsageError
from kvmctl.xml import dom
from kvmctl.xml.metadata import NAMESPACE, PATH

_TOP = frozenset(
    {
        "name", "uuid", "genid", "title", "description", "metadata", "maxMemory", "memory", "currentMemory",
        "blkiotune", "memtune", "memoryBacking", "vcpu", "vcpus", "iothreads", "iothreadids", "defaultiothread",
        "cputune", "numatune", "sysinfo", "os", "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash",
        "on_lockfailure", "pm", "perf", "devices",
    }
)  # fmt: skip
_HOSTS_OWN = ("seclabel", "resource")
"""Parts that say how another host was set up: they are left out without a word."""
_DEVICES = frozenset(
    {
        "disk", "controller", "interface", "serial", "parallel", "console", "channel", "input", "graphics", "audio",
        "sound", "video", "memballoon", "rng", "watchdog", "panic", "vsock", "iommu", "hub", "redirdev", "memory",
        "tpm",
    }
)  # fmt: skip
_DISK = frozenset(
    {
        "driver", "source", "target", "readonly", "shareable", "boot", "address", "alias", "serial", "wwn", "vendor",
        "product", "iotune", "blockio", "geometry",
    }
)  # fmt: skip
_CHARACTERS = ("serial", "parallel", "console", "channel", "redirdev")
_INNER = ("pty", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent")
"""Kinds of character devices that end within QEMU, or at a terminal that libvirt makes."""
_RANDOM = ("/dev/random", "/dev/urandom")
_PROSE = frozenset({"name", "title", "description", "cmdline", "metadata"})
"""Elements whose text is the user's, and names no file."""
_DOMAIN_TYPES = ("kvm", "qemu")
_HINT = "kvmctl inspect shows what is in the file"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the parts of a guest come to lie on this host: paths; `drives` with their format, by target."""

    drives: Mapping[str, tuple[str, str]]
    kernel: str | None = None
    initrd: str | None = None
    nvram: str | None = None
    seed: str | None = None
    loaders: frozenset[str] | None = frozenset()
    """Firmware images that this host offers its guests; None where it is not asked."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """Names of networks and bridges there, and the names that they have here."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """The definition for this host. `foreign` names what reached beyond it, and is not in it any more."""

    xml: str
    foreign: tuple[str, ...]
    notes: tuple[str, ...]
    networks: frozenset[str]
    bridges: frozenset[str]


def adopt(xml: str, placed: Placed) -> Adopted:
    """Make a definition fit for this host. Raises UsageError where it is none of a virtual machine."""
    root = _load(xml)
    foreign: list[str] = []
    notes: list[str] = []
    dom.mark(root, "id", None)
    dom.drop(root, *_HOSTS_OWN)
    for child in _elements(root):
        if child.tag not in _TOP:
            foreign.append(_called(child))
            dom.remove(child)
    _os(root, placed, foreign)
    for device in _elements(dom.child(root, "devices")):
        _device(device, placed, foreign, notes)
    _net(root, placed, foreign)
    _metadata(root, placed)
    sources = root.findall("devices/interface/source")
    return Adopted(
        etree.tostring(root, encoding="unicode"),
        tuple(dict.fromkeys(foreign)),
        tuple(notes),
        frozenset(source.get("network", "") for source in sources) - {""},
        frozenset(source.get("bridge", "") for source in sources if not source.get("network")) - {""},
    )


def _load(xml: str) -> _Element:
    root = dom.load(xml)
    if "<!DOCTYPE" in xml:
        raise UsageError("the definition has a document type, which libvirt writes none of", _HINT)
    if root.tag != "domain" or root.get("type") not in _DOMAIN_TYPES or root.findtext("os/type") != "hvm":
        raise UsageError("the definition is not one of a virtual machine of QEMU's", _HINT)
    if len(root.findall("os")) != 1 or len(root.findall("devices")) > 1:
        raise UsageError("the definition has a section twice", _HINT)
    return root


def _elements(parent: _Element) -> list[_Element]:
    """The children, less comments and the like."""
    return [child for child in parent if isinstance(child.tag, str)]


def _called(node: _Element) -> str:
    """An element as a reader would call it."""
    name = etree.QName(node).localname
    if node.prefix:
        name = f"{node.prefix}:{name}"
    parent = node.getparent()
    what = f"device <{name}>" if parent is not None and parent.tag == "devices" else f"<{name}>"
    kind = node.get("type") or node.get("model")
    return f"{what} of type {kind[:40]}" if kind else what


def _os(root: _Element, placed: Placed, foreign: list[str]) -> None:
    boot = dom.child(root, "os")
    for tag, path in (("kernel", placed.kernel), ("initrd", placed.initrd)):
        node = boot.find(tag)
        if node is None:
            continue
        if path is None:
            foreign.append(f"<{tag}> {(node.text or '').strip()[:100]}, which is not in the file")
            dom.remove(node)
        else:
            node.text = path
    loader = boot.find("loader")
    offered = placed.loaders
    if loader is not None and loader.text and offered is not None and loader.text.strip() not in offered:
        foreign.append(f"firmware {loader.text.strip()[:100]}, which this host does not offer")
        dom.remove(loader)
    dom.drop(boot, "nvram")
    if placed.nvram:
        dom.child(boot, "nvram").text = placed.nvram


def _device(device: _Element, placed: Placed, foreign: list[str], notes: list[str]) -> None:
    if device.tag == "emulator":
        dom.remove(device)  # libvirt chooses this host's own
        return
    check = _CHECKS.get(str(device.tag), _nothing)
    reason = check(device, placed, notes) if device.tag in _DEVICES else _called(device)
    if reason:
        foreign.append(reason)
        dom.remove(device)


_Check = Callable[[_Element, Placed, list[str]], str]


def _nothing(_device: _Element, _placed: Placed, _notes: list[str]) -> str:
    return ""


def _disk(disk: _Element, placed: Placed, notes: list[str]) -> str:
    target = disk.find("target")
    name = "" if target is None else target.get("dev", "")
    removable = disk.get("device", "disk") in ("cdrom", "floppy")
    if disk.get("device", "disk") not in ("disk", "cdrom", "floppy"):
        return f"drive {name[:20]}, which passes through one of the host's"
    for child in _elements(disk):
        if child.tag not in _DISK:
            dom.remove(child)
    source = disk.find("source")
    dom.drop(disk, "source")
    disk.set("type", "file")
    if name in placed.drives:
        path, form = placed.drives[name]
        dom.child(disk, "source").set("file", path)
        dom.child(disk, "driver").set("type", form)
        return ""
    if removable and source is not None and source.attrib:
        notes.append(f"drive {name[:20]} is empty: what was in it is not in the file")
    return "" if removable else f"drive {name[:20]}, whose image is not in the file"


def _interface(interface: _Element, placed: Placed, _notes: list[str]) -> str:
    kind = interface.get("type")
    programs = interface.find("script") is not None or interface.find("downscript") is not None
    if kind not in ("network", "bridge", "user") or programs:
        return _called(interface)
    source = interface.find("source")
    if kind != "user" and source is not None:
        old = source.get(kind, "")
        new = placed.networks.get(old, old)
        for child in list(source.attrib):
            del source.attrib[child]
        source.set(kind, new)
    target = interface.find("target")
    if target is not None and target.get("dev", "").startswith("vnet"):
        dom.remove(target)
    return ""


def _character(device: _Element, _placed: Placed, notes: list[str]) -> str:
    kind = device.get("type")
    target = device.find("target")
    agent = kind == "unix" and device.tag == "channel" and target is not None and target.get("type") == "virtio"
    if kind not in _INNER and not agent:
        return _called(device)
    log = device.find("log")
    if log is not None:
        notes.append(f"what it says on its {device.tag} device is not logged to {log.get('file', '')[:100]} any more")
        dom.remove(log)
    if kind != "spiceport":
        dom.drop(device, "source")  # libvirt chooses the terminal or the socket
    if agent:
        dom.insert(device, device.makeelement("source", {"mode": "bind"}))
    dom.mark(device, "tty", None)
    return ""


def _rng(device: _Element, _placed: Placed, _notes: list[str]) -> str:
    backends = device.findall("backend")
    for backend in backends:
        text = (backend.text or "").strip()
        if backend.get("model") not in ("random", "builtin") or text not in ("", *_RANDOM) or len(backend):
            return _called(device)
    return ""


def _memory(device: _Element, _placed: Placed, _notes: list[str]) -> str:
    return _called(device) if device.get("model") != "dimm" or device.find("source/path") is not None else ""


def _graphics(device: _Element, _placed: Placed, notes: list[str]) -> str:
    if device.get("type") not in ("vnc", "spice") or device.get("socket"):
        return _called(device)
    for listen in device.findall("listen"):
        if listen.get("type", "address") == "socket":
            return _called(device)
        if listen.get("type", "address") == "network":
            return f"{_called(device)} on a network"
    shown = device.get("listen", "127.0.0.1")
    if shown not in ("127.0.0.1", "::1", "localhost"):
        notes.append(f"its {device.get('type')} display listens on {shown[:60]}, beyond this host")
    return ""


def _input(device: _Element, _placed: Placed, _notes: list[str]) -> str:
    return _called(device) if device.find("source") is not None else ""


def _tpm(device: _Element, _placed: Placed, _notes: list[str]) -> str:
    """Only one that the host emulates, with the state that comes in the file, or none."""
    backends = device.findall("backend")
    if len(backends) != 1 or backends[0].get("type") != "emulator":
        return f"{_called(device)}, which is none that is emulated"
    known = set(backends[0].attrib) <= {"type", "version", "persistent_state"}
    return "" if known and {node.tag for node in _elements(backends[0])} <= {"active_pcr_banks"} else _called(device)


_CHECKS: dict[str, _Check] = {
    "disk": _disk,
    "interface": _interface,
    "rng": _rng,
    "memory": _memory,
    "graphics": _graphics,
    "input": _input,
    "tpm": _tpm,
    **dict.fromkeys(_CHARACTERS, _character),
}


def _net(root: _Element, placed: Placed, foreign: list[str]) -> None:
    """Whatever still looks like a path of the host: a last net under what is known of each device."""
    ours = {path for path, _form in placed.drives.values()}
    ours |= {path for path in (placed.kernel, placed.initrd, placed.nvram, *_RANDOM) if path}
    ours |= placed.loaders or set()
    for node in _unprosaic(root):
        values = [*node.attrib.values(), node.text or ""]
        paths = [value for value in map(str, values) if _is_path(value) and value.strip() not in ours]
        if paths:
            culprit = _removable(node, root)
            foreign.append(f"{_called(culprit)}, which names {paths[0].strip()[:100]}")
            dom.remove(culprit)


def _unprosaic(parent: _Element) -> Iterator[_Element]:
    for node in _elements(parent):
        if node.tag not in _PROSE and not (node.tag == "loader" and parent.tag == "os"):  # that was looked at
            yield node
            if node.getparent() is not None:  # it may have been taken out meanwhile
                yield from _unprosaic(node)


def _is_path(value: str) -> bool:
    text = value.strip()
    return text.startswith(("/", "~")) or "../" in text


def _removable(node: _Element, root: _Element) -> _Element:
    """The whole device or section that an element belongs to; of what a guest cannot do without, the element."""
    while (parent := node.getparent()) is not None:
        if parent.tag in ("devices", "os") or (parent is root and node.tag not in ("os", "devices")):
            return node
        node = parent
    return node


def _metadata(root: _Element, placed: Placed) -> None:
    """Our own metadata tells where the seed is, and which cards another host had; others' is theirs."""
    for card in root.findall(f"{PATH}/{{{NAMESPACE}}}passthrough"):
        dom.remove(card)
    node = root.find(f"{PATH}/{{{NAMESPACE}}}cloud-init")
    if node is not None:
        dom.mark(node, "seed", placed.seed)
