"""What a guest file cannot say of a definition, in plain words.

Whatever is not known here to be in the spec, or to be furniture (addresses, aliases, controllers that libvirt
adds by itself), is named: an element that libvirt has only since yesterday is never passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from xml.etree.ElementTree import Element

from kvmctl.model import throttle
from kvmctl.xml import devices, passed

Known = frozenset[str]
"""What needs no mention, as paths below an element: `target` an element, `driver@type` an attribute,
`alias*` an element with all that is in it; `=` narrows each to one value."""


def _known(*paths: str) -> Known:
    return frozenset(("alias*", "address*", *paths))


_SAID = frozenset({"name", "uuid", "description", "metadata", "memory", "currentMemory", "vcpus"})
_USUAL = {
    "iothreads": ("1",),
    "on_poweroff": ("destroy",),
    "on_reboot": ("restart",),
    "on_crash": ("destroy", "restart"),
}
_SECTIONS: dict[str, Known] = {
    "vcpu": _known("@placement=static", "@cpuset", "@current"),
    "blkiotune": _known("weight"),
    "cputune": _known("shares", "global_period", "global_quota", "emulatorpin", "emulatorpin@cpuset"),
    "memoryBacking": _known(
        "nosharepages", "hugepages", "hugepages/page", "hugepages/page@size", "hugepages/page@unit"
    ),
    "os": _known(
        "@firmware", "type", "type@arch", "type@machine", "kernel", "initrd", "cmdline",
        "boot", "boot@dev=hd", "boot@dev=cdrom", "boot@dev=network",
    ),
    "features": _known("acpi", "apic"),
    "cpu": _known("@mode", "@match", "@check", "@migratable", "model", "model@fallback"),
    "clock": _known("@offset=utc", "timer=rtc*", "timer=pit*", "timer=hpet*"),
    "resource": _known("partition=/machine"),
    "seclabel": _known("@type=dynamic", "@model", "@relabel", "label", "imagelabel", "baselabel"),
}  # fmt: skip
_CHOSEN_BY_LIBVIRT = frozenset({"loader*", "nvram*", "firmware*"})
"""What comes of `<os firmware=…>`."""
_DISK = _known(
    "@type", "@device", "driver", "driver@name", "driver@type", "driver@cache", "driver@discard=unmap",
    "driver@iothread=1", "source",
    "source@file", "source@dev", "source@pool", "source@volume", "source@index", "target", "target@dev", "target@bus",
    "readonly", "backingStore*", "iotune",
    *(f"iotune/{name}{length}" for name in throttle.DISK.values() for length in ("", throttle.LENGTH)),
)  # fmt: skip
_NIC = _known(
    "@type", "mac", "mac@address", "source", "source@network", "source@bridge", "source@portid", "model", "model@type",
    "target", "target@dev", "driver", "driver@queues", "bandwidth",
    *(path for way, name, _ in throttle.NIC.values() for path in (f"bandwidth/{way}", f"bandwidth/{way}@{name}")),
)  # fmt: skip
_PASSED = _known(
    "@mode=subsystem", "@type", "@managed=yes", "driver", "driver@name=vfio", "source", "source/address*",
)  # fmt: skip
_MDEV = _known("@mode=subsystem", "@type", "@managed=no", "@model", "@display=off", "source", "source/address*")
_FUNCTION = _PASSED | _known("mac", "mac@address", "vlan", "vlan/tag", "vlan/tag@id")
_CONSOLE = _known("@type", "@tty", "source*", "target*", "log", "log@file", "log@append=on", "protocol*")
_CHANNEL = _known("@type=unix", "source*", "target", "target@type", "target@name", "target@state")
_GRAPHICS = _known(
    "@type", "@port", "@autoport", "@websocket", "@listen", "listen", "listen@type", "listen@address", "image*"
)
_VIDEO = _known("model", "model@type", "model@heads", "model@primary", "model@vram", "model@ram", "model@vgamem")
_RNG = _known("@model=virtio", "backend", "backend@model")
_BALLOON = _known("@model=virtio", "@autodeflate", "@freePageReporting", "stats", "stats@period")
_CONTROLLER = _known("@type", "@index", "@model", "@ports", "@vectors", "model*", "target*", "master*")
_PLAIN_VIDEO = ("virtio", "vga", "cirrus", "bochs", "none")
_PLAIN_CONTROLLERS = ("usb", "pci", "ide", "sata", "virtio-serial", "fdc")
_NAMESPACES = {
    f"http://libvirt.org/schemas/domain/{driver}/1.0": driver for driver in ("qemu", "lxc", "xen", "bhyve", "vmware")
}
_TELLING = ("model", "type", "name", "mode")
_LONGEST = 60


def unexpressed(root: Element) -> tuple[str, ...]:
    """Each thing of a domain that its spec leaves out, once, in the order of the XML."""
    found: list[str] = []
    for child in root:
        tag = _tag(child)
        if tag == "devices":
            found += _devices(root, child)
        elif tag in _SECTIONS:
            known = _SECTIONS[tag]
            if tag == "os" and child.get("firmware"):
                known |= _CHOSEN_BY_LIBVIRT
            found += _line(tag, chain(_strangers(child, known), _demands(child)))
        elif tag not in _SAID and (child.text or "").strip() not in _USUAL.get(tag, ("\0",)):
            found.append(_words(child))
    return tuple(dict.fromkeys(found))


def _demands(section: Element) -> Iterator[str]:
    """What a spec says otherwise: its huge pages have a size, its firmware no Secure Boot and no keys."""
    if section.find("hugepages") is not None and section.find("hugepages/page") is None:
        yield "hugepages of the host's default size"
    for feature in section.iterfind("firmware/feature[@enabled='yes']"):
        yield f"firmware feature {feature.get('name')}"


def _line(what: str, strangers: Iterable[str]) -> list[str]:
    together = ", ".join(dict.fromkeys(strangers))
    return [f"{what}: {together}"] if together else []


def _strangers(element: Element, known: Known, path: str = "") -> Iterator[str]:
    """What of the element, which stands at `path`, is not known."""
    for key, value in element.items():
        if f"{path}@{key}" not in known and f"{path}@{key}={value}" not in known:
            yield _below(path, _attribute(key, value))
    for child in element:
        place = f"{path}/{_tag(child)}" if path else _tag(child)
        if f"{place}*" in known:
            continue
        value = child.get("name") or (child.text or "").strip()
        if place in known or f"{place}={value}" in known:
            yield from _strangers(child, known, place)
        elif f"{place}={value}*" not in known:
            yield _below(path, _words(child))


def _below(path: str, words: str) -> str:
    return f"{path.replace('/', ' ')} {words}" if path else words


def _attribute(key: str, value: str) -> str:
    return f"{key} (not shown)" if "passwd" in key else f"{key}={value}"


def _words(element: Element) -> str:
    """The element in a few words: its tag, and what tells it from others of that tag."""
    text = (element.text or "").strip()
    telling = [value for key in _TELLING if (value := element.get(key))]
    if not telling:
        telling = [_attribute(key, value) for key, value in element.items() if "}" not in key]
    if text and not len(element):
        telling.append(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
    return " ".join([_tag(element), *telling])


def _tag(element: Element) -> str:
    if "}" not in element.tag:
        return element.tag
    namespace, _, name = element.tag.rpartition("}")
    prefix = _NAMESPACES.get(namespace.removeprefix("{"), namespace.removeprefix("{"))
    return f"{prefix}:{name}" if prefix else name


def _devices(root: Element, parent: Element) -> Iterator[str]:
    consoles = devices.consoles(root)
    display = next((graphics for graphics in parent.iterfind("graphics") if devices.is_vnc(graphics)), None)
    for device in parent:
        tag = _tag(device)
        if tag in ("serial", "console"):
            if device in consoles:
                yield from _line("console", _strangers(device, _CONSOLE))
            elif tag == "serial" or _of(device, "target", "type") != "serial":
                yield f"{tag} {device.get('type')} {_of(device, 'target', 'type')}".rstrip()
        elif tag == "graphics":
            yield from _device(device, _GRAPHICS if device is display else None, _words(device))
        elif tag == "video":
            plain = display is not None and _of(device, "model", "type") in _PLAIN_VIDEO
            yield from _device(device, _VIDEO if plain else None, f"video {_of(device, 'model', 'type')}")
        else:
            yield from _DEVICES.get(tag, _other)(device)


def _device(device: Element, known: Known | None, words: str) -> list[str]:
    """One of a kind: what is strange about it where it is in the spec, and its words where it is not."""
    return [words] if known is None else _line(words, _strangers(device, known))


def _of(device: Element, child: str, attribute: str) -> str:
    found = device.find(child)
    return "" if found is None else found.get(attribute, "")


def _disk(device: Element) -> list[str]:
    spec = devices.disk(device)
    what = f"disk {_of(device, 'target', 'dev')}".rstrip()
    if isinstance(spec, str):
        return [f"{what}: {spec}"]
    lengths = {part.text for part in device.iterfind("iotune/*") if part.tag.endswith(throttle.LENGTH)}
    differing = ["iotune bursts of different lengths"] if len(lengths) > 1 else []
    return _line(what, (*_strangers(device, _DISK), *differing))


def _nic(device: Element) -> list[str]:
    if function := passed.device(device):
        return _line(f"device {function.pci}", _strangers(device, _FUNCTION))
    spec = devices.nic(device)
    what = f"nic {_of(device, 'mac', 'address')}".rstrip()
    return [f"{what}: {spec}"] if isinstance(spec, str) else _line(what, _strangers(device, _NIC))


def _channel(device: Element) -> list[str]:
    words = f"channel {device.get('type')} {_of(device, 'target', 'name')}".rstrip()
    return _device(device, _CHANNEL if devices.is_agent(device) else None, words)


def _rng(device: Element) -> list[str]:
    return _device(device, _RNG if devices.is_rng(device) else None, f"rng {_of(device, 'backend', 'model')}")


def _balloon(device: Element) -> list[str]:
    return _device(device, _BALLOON if device.get("model") == "virtio" else None, _words(device))


def _controller(device: Element) -> list[str]:
    kind, model = device.get("type", ""), device.get("model", "")
    plain = kind in _PLAIN_CONTROLLERS or (kind == "scsi" and model in ("virtio-scsi", ""))
    return _device(device, _CONTROLLER if plain else None, f"controller {kind} {model}".rstrip())


def _hostdev(device: Element) -> list[str]:
    if one := passed.device(device):
        return _line(f"device {one.pci or one.mdev}", _strangers(device, _MDEV if one.mdev else _PASSED))
    source = device.find("source")
    what = "" if source is None else _host_device(source)
    return [" ".join(filter(None, ("hostdev", device.get("type"), what)))]


def _host_device(source: Element) -> str:
    vendor = _of(source, "vendor", "id").removeprefix("0x")
    if vendor:
        return f"{vendor}:{_of(source, 'product', 'id').removeprefix('0x')}"
    address = source.find("address")
    part = {} if address is None else {key: value.removeprefix("0x") for key, value in address.items()}
    if "slot" in part:
        return f"{part.get('domain', ''):0>4}:{part.get('bus', ''):0>2}:{part['slot']:0>2}.{part.get('function', '0')}"
    return part.get("uuid") or " ".join(f"{key}={value}" for key, value in part.items())


def _filesystem(device: Element) -> list[str]:
    return [f"filesystem {_of(device, 'source', 'dir')} as {_of(device, 'target', 'dir')}"]


def _furniture(*kinds: tuple[str, str]) -> Callable[[Element], list[str]]:
    """Names a device unless it is one of those that libvirt adds by itself, by (type, bus)."""

    def name(device: Element) -> list[str]:
        kind = (device.get("type", ""), device.get("bus", ""))
        return [] if kind in kinds else [" ".join(filter(None, (_tag(device), *kind)))]

    return name


def _other(device: Element) -> list[str]:
    return [_words(device)]


_DEVICES: dict[str, Callable[[Element], list[str]]] = {
    "emulator": lambda _: [],
    "disk": _disk,
    "interface": _nic,
    "channel": _channel,
    "rng": _rng,
    "memballoon": _balloon,
    "controller": _controller,
    "hostdev": _hostdev,
    "filesystem": _filesystem,
    "input": _furniture(("mouse", "ps2"), ("keyboard", "ps2"), ("mouse", ""), ("keyboard", "")),
    "audio": _furniture(("none", ""), ("spice", "")),
}
