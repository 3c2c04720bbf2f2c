"""The fields of a guest file: how each is read from text and how its value is written.

`FIELDS` holds the single values, by the dotted key that the file, `kvmctl set` and `kvmctl diff` use. The
entries of the lists (`DISK`, `NIC`, `PASSED`) and of the seed (`CLOUD_INIT`) are the guest file's alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvmctl.model import values
from kvmctl.model.errors import UsageError
from kvmctl.model.modes import MODES
from kvmctl.model.names import check_name
from kvmctl.model.rules import check
from kvmctl.model.spec import ConsoleSpec, GuestSpec, VncSpec
from kvmctl.model.units import format_bits, format_rate, format_size
from kvmctl.model.wording import nearest, quoted


def _unheard(text: str, cores: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Context:
    """What reading a value depends on besides its text. `base_mhz` is the host's base clock, if known."""

    base_mhz: float | None = None
    converted: Callable[[str, float], None] = _unheard
    """Told of each amount that is said in MHz or GHz: its text, and the cores that it is."""


@dataclass(frozen=True, slots=True)
class Field:
    """One value. `parse` raises ValueError with a sentence; `show` is its inverse up to spelling, and keeps None."""

    key: str
    parse: Callable[[str, Context], object]
    show: Callable[[object], object]
    help: str
    listed: bool = False
    """Whether a file may also write it as a list of what stands between commas in the text."""


def _same(value: object) -> object:
    return value


def _show_cores(value: object) -> object:
    if not isinstance(value, float):
        return value
    if math.isinf(value):
        return "unlimited"
    return int(value) if value.is_integer() else round(value, 3)


def _show_size(value: object) -> object:
    return format_size(value) if isinstance(value, int) else value


def _show_weight(value: object) -> object:
    return "default" if value == 0 else value


def _show_rate(value: object) -> object:
    return format_rate(value) if isinstance(value, int) and value else _show_ceiling(value)


def _show_ceiling(value: object) -> object:
    return "unlimited" if value == 0 else value


def _show_bits(value: object) -> object:
    return format_bits(value) if isinstance(value, int) and value else _show_ceiling(value)


def _show_burst(value: object) -> object:
    return _show_size(value) if value else _show_ceiling(value)


def _show_pages(value: object) -> object:
    return False if value == 0 else _show_size(value)


def _show_pin(value: object) -> object:
    return "none" if value == "" else value


def _show_port(value: object) -> object:
    return "auto" if value == 0 else value


def _show_vlan(value: object) -> object:
    return "none" if value == 0 else value


def _show_order(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _field(
    key: str,
    parse: Callable[[str], object],
    help_text: str,
    show: Callable[[object], object] = _same,
    listed: bool = False,
) -> Field:
    return Field(key, lambda text, _: parse(text), show, help_text, listed)


def _cores(key: str, parse: Callable[[str, float | None], float], help_text: str) -> Field:
    def read(text: str, context: Context) -> float:
        cores = parse(text, context.base_mhz)
        if text.endswith("Hz"):
            context.converted(text, cores)
        return cores

    return Field(key, read, _show_cores, help_text)


def _table(*fields: Field) -> Mapping[str, Field]:
    return {field.key: field for field in fields}


FIELDS: Mapping[str, Field] = _table(
    _field("description", values.prose, "text for people"),
    _field("accelerator", values.choice("auto", "kvm", "tcg"), "auto (what works on this host), kvm or tcg"),
    _field("cpu.count", values.whole("vCPUs", 1, values.MAX_CPUS), "vCPUs the guest has now"),
    _field("cpu.max", values.whole("vCPUs", 1, values.MAX_CPUS), "vCPUs that can be plugged in while it runs"),
    _field("cpu.shares", values.shares, "relative weight of the whole guest: a number, or low, normal, high"),
    _cores("cpu.limit", values.limit, "most CPU it may use: 1.5, 150%, 2.4GHz or unlimited"),
    _cores("cpu.reservation", values.reservation, "CPU it is guaranteed: 0.5, 50%, 1200MHz"),
    _field("cpu.pin", values.cpus, "host CPUs it may run on: 0-3,8, or none", _show_pin, listed=True),
    _field(
        "cpu.emulator-pin", values.cpus, "host CPUs that its QEMU's other threads may run on", _show_pin, listed=True
    ),
    _field("cpu.model", values.word("a CPU model"), "host-passthrough, host-model, maximum or a model's name"),
    _field("memory.size", values.memory, "memory the guest has now: 1GiB", _show_size),
    _field("memory.max", values.memory, "memory that its balloon can give back up to", _show_size),
    _field("memory.reservation", values.mebibytes, "memory that is never reclaimed: 512MiB", _show_size),
    _field("memory.shares", values.shares, "relative claim to memory: a number, or low, normal, high"),
    _field("memory.sharing", values.boolean, "whether KSM may merge its pages"),
    _field("memory.swap", values.boolean, "whether it may be paged out by kvmctl"),
    _field("memory.hugepages", values.hugepages, "true, false, 2MiB or 1GiB", _show_pages),
    _field("io.weight", values.io_weight, "its part of disks that others want: 10 to 1000, or default", _show_weight),
    _field("boot.kernel", values.absolute, "path of a Linux kernel to start directly"),
    _field("boot.initrd", values.absolute, "path of that kernel's initial RAM disk"),
    _field("boot.cmdline", values.prose, "that kernel's command line"),
    _field("boot.iso", values.absolute, "path of an ISO image to start from"),
    _field("boot.order", values.boot_order, "what it starts from: disk,cdrom,network", _show_order, listed=True),
    _field("boot.firmware", values.choice("bios", "uefi"), "bios or uefi"),
    _field("boot.machine", values.word("a machine type"), "q35, pc, or a versioned machine type"),
    _field("console.enabled", values.boolean, "whether it has a serial console"),
    _field("console.log", values.absolute, "file that the console's output is appended to"),
    _field("vnc.enabled", values.boolean, "whether it has a VNC display"),
    _field("vnc.listen", values.ip_address, "IP address that VNC listens on"),
    _field("vnc.port", values.vnc_port, "port of VNC: auto, or 5900 and above", _show_port),
    _field("agent", values.boolean, "whether it has a channel for the guest agent"),
    _field("rng", values.boolean, "whether it has a random number generator"),
    _field("autostart", values.boolean, "whether it starts with the host"),
    _field("rebalance", values.boolean, "whether kvmctl rebalance may move its CPU weight"),
    _field("state", values.choice("running", "paused", "stopped"), "what apply brings a new guest to"),
)

DISK: Mapping[str, Field] = _table(
    _field("path", values.absolute, "an existing file or block device"),
    _field("volume", values.file_name, "a volume, made if it does not exist"),
    _field("pool", values.file_name, "the storage pool of the volume"),
    _field("size", values.disk_size, "size of a volume to be made", _show_size),
    _field("format", values.choice("qcow2", "raw"), "qcow2 or raw"),
    _field("base", values.base_image, "image that a new volume overlays: a volume, or a path"),
    _field("bus", values.choice("virtio", "scsi", "sata", "ide"), "virtio, scsi, sata or ide"),
    _field("device", values.choice("disk", "cdrom"), "disk or cdrom"),
    _field("target", values.target, "its name in the guest's definition, such as vda"),
    _field("cache", values.choice("none", "writeback", "writethrough", "directsync", "unsafe"), "QEMU's cache mode"),
    _field("read-only", values.boolean, "whether the guest may only read it"),
    _field("mode", values.choice(*MODES), "emulated or paravirtual: the bus comes of it; or passthrough"),
    _field("iothread", values.boolean, "whether a thread of its own serves it"),
    *(
        _field(f"{way}{what}{burst}", read, f"{'burst of ' if burst else ''}{words}, {of}", show)
        for what, read, show, words in (
            ("iops", values.iops, _show_ceiling, "operations per second"),
            ("bandwidth", values.disk_rate, _show_rate, "bytes per second: 50MiB/s"),
        )
        for way, of in (("", "reading and writing together"), ("read-", "reading"), ("write-", "writing"))
        for burst in ("", "-burst")
    ),
    _field("burst-seconds", values.whole("seconds", 1, 3600), "how long a burst may last"),
)

NIC: Mapping[str, Field] = _table(
    _field("network", values.file_name, "a libvirt network"),
    _field("bridge", values.bridge, "a bridge of the host"),
    _field("user", values.boolean, "QEMU's own network, which needs nothing of the host"),
    _field("model", values.nic_model, "virtio, e1000e, rtl8139"),
    _field("mac", values.mac, "its MAC address"),
    _field("mode", values.choice(*MODES), "emulated or paravirtual: the model comes of it; or passthrough"),
    _field("queues", values.whole("queues", 1, 256), "vCPUs that can use it at once"),
    *(
        _field(f"bandwidth.{way}{part}", read, f"{words} {what}", show)
        for way, what in (("in", "that comes to the guest"), ("out", "that the guest sends"))
        for part, read, show, words in (
            ("", values.bit_rate, _show_bits, "traffic: 100Mbit"),
            ("-peak", values.bit_rate, _show_bits, "most traffic at times: 200Mbit"),
            ("-burst", values.burst_size, _show_burst, "amount at the peak's speed: 1MiB"),
        )
        if (way, part) != ("out", "-peak")  # the kernel has none
    ),
)

PASSED: Mapping[str, Field] = _table(
    _field("pci", values.pci_address, "address of a PCI device of the host"),
    _field("vf-of", values.pci_address, "address of a card, of which a free virtual function is taken"),
    _field("mdev", values.mdev, "UUID of a mediated device"),
    _field("mac", values.mac, "MAC address of a network function"),
    _field("vlan", values.vlan, "VLAN that a network function is in: 1 to 4094, or none", _show_vlan),
    _field("spoof-check", values.boolean, "whether the card drops what comes from another MAC address"),
    _field("trust", values.boolean, "whether the guest may change its MAC address and receive everything"),
)

CLOUD_INIT: Mapping[str, Field] = _table(
    _field("hostname", values.host_name, "the guest's host name"),
    _field("user", values.user_name, "a user to make, who may use sudo"),
    _field("ssh-keys", values.ssh_key, "public keys, or paths of their files"),
    _field("user-data", values.absolute, "path of a complete user-data file"),
    _field("network-config", values.absolute, "path of a network-config file"),
)

NAME = _field("name", check_name, "the guest's name")
PROJECT = _field("project", values.project, "what the guests of a file have in common")
LABEL_KEY = _field("labels", values.label_key, "the key of a label")
LABEL = _field("labels.KEY", values.line("the value of a label"), "text to find guests by")


def attribute(key: str) -> str:
    """The attribute of a spec that a key of one of these tables, without what it is in, stands for."""
    return key.replace("-", "_").replace(".", "_")


KEYS: Mapping[str, str] = {attribute(key): key for table in (DISK, NIC, PASSED, CLOUD_INIT) for key in table}
"""The inverse, for the entries of lists and the seed."""
_GROUPS: Mapping[str, type[ConsoleSpec | VncSpec]] = {"console": ConsoleSpec, "vnc": VncSpec}
"""The sub-values that a spec may lack, with what stands in for them when one of their fields is said."""
_LABELS = "labels."


def get(spec: GuestSpec, key: str) -> object:
    """The value of one of `FIELDS`, or of a label (`labels.role`). None where it is not said."""
    if key.startswith(_LABELS):
        return dict(spec.labels or ()).get(key.removeprefix(_LABELS))
    group, _, name = key.rpartition(".")
    owner = getattr(spec, group) if group else spec
    return None if owner is None else getattr(owner, attribute(name))


def put(spec: GuestSpec, key: str, value: object) -> GuestSpec:
    """`spec` with one of `FIELDS`, or a label, set to `value`; None makes it unsaid."""
    if key.startswith(_LABELS):
        return _put_label(spec, key.removeprefix(_LABELS), value)
    group, _, name = key.rpartition(".")
    owner = getattr(spec, group) if group else spec
    if owner is None and value is None:
        return spec
    inner = _replaced(_GROUPS[group]() if owner is None else owner, attribute(name), value)
    changed: GuestSpec = dataclasses.replace(spec, **{group: inner}) if group else inner
    return changed


def _put_label(spec: GuestSpec, key: str, value: object) -> GuestSpec:
    labels = {k: v for k, v in spec.labels or () if k != key}
    if value is not None:
        labels[key] = str(value)
    elif spec.labels is None:
        return spec
    return dataclasses.replace(spec, labels=tuple(sorted(labels.items())))


def _replaced(owner: Any, name: str, value: object) -> Any:
    if value is None:
        value = next(field.default for field in dataclasses.fields(owner) if field.name == name)
    return dataclasses.replace(owner, **{name: value})


def parse(key: str, text: str, context: Context) -> object:
    """Read `text` as the value of `key`, one of `FIELDS` or a label. Raises ValueError with a sentence."""
    if key.startswith(_LABELS):
        LABEL_KEY.parse(key.removeprefix(_LABELS), context)
        return LABEL.parse(text, context) if text else None
    if key not in FIELDS:
        raise ValueError(_unknown(key))
    return FIELDS[key].parse(text, context)


def _unknown(key: str) -> str:
    if key == "name":
        return "a guest cannot be renamed"
    if key.partition(".")[0] in ("disks", "nics"):
        return "this is not a single value: write disks.vda.iops, or the list in the guest's file"
    if key.partition(".")[0] in ("cloud-init", "passthrough"):
        return "this is not a single value: write it in the guest's file and apply that"
    if inner := [known for known in FIELDS if known.startswith(f"{key}.")]:
        return f"this is not one field: write one of {', '.join(inner)}"
    if key == "labels":
        return f"this is not one field: write {LABEL.key}"
    return f"there is no such field; {nearest(key, [*FIELDS, LABEL.key])}"


def set_fields(spec: GuestSpec, assignments: Mapping[str, str], context: Context) -> GuestSpec:
    """`spec` with every assignment made. It may be a guest's whole spec, or one that says nothing yet.

    Raises UsageError that names each assignment that cannot be read or that brings in a contradiction.
    """
    faults: list[str] = []
    changed = spec
    for key, text in assignments.items():
        try:
            value = parse(key, text, context)
        except ValueError as error:
            faults.append(f"{key if key in FIELDS else quoted(key)}: {error}")
            value = None  # so that what contradicts only the value from before is not reported
        if key in FIELDS or key.startswith(_LABELS):
            changed = put(changed, key, value)
    before = check(spec, complete=False)
    faults += [f"{key}: {text}" for key, text in check(changed, complete=False) if (key, text) not in before]
    if faults:
        raise UsageError("\n".join(faults), f"guest {spec.name} was not changed")
    return changed
