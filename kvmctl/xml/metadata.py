"""What libvirt has no place for: one element of ours in the domain's `<metadata>`.

    <kvmctl:guest xmlns:kvmctl="urn:kvmctl:guest:1" project="lab" rebalance="no">
      <kvmctl:cpu shares="normal" reservation="0.5"/>
      <kvmctl:memory reservation="512MiB" shares="high" swap="no"/>
      <kvmctl:boot iso="sda"/>
      <kvmctl:label key="role">web</kvmctl:label>
      <kvmctl:passthrough pci="0000:07:02.0" vf-of="0000:07:00.0" trust="yes"/>
      <kvmctl:cloud-init hostname="web1" seed="/…/web1-seed.iso" digest="…">
        <kvmctl:ssh-key>/root/.ssh/id_ed25519.pub</kvmctl:ssh-key>
      </kvmctl:cloud-init>
    </kvmctl:guest>

What is absent has its default. What a newer kvmctl wrote is kept, and what cannot be read is a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from xml.etree.ElementTree import Element

from kvmctl.model.pci import is_address
from kvmctl.model.spec import MAX_SHARES, CloudInitSpec, GuestSpec, Level, PassedSpec, cpu_shares, memory_shares
from kvmctl.model.units import format_size, parse_cores, parse_size
from kvmctl.xml import reclaimable, resources, tree
from kvmctl.xml.passed import to_remember

if TYPE_CHECKING:
    from lxml.etree import _Element

    from kvmctl.model.promise import Promise

NAMESPACE = "urn:kvmctl:guest:1"
PREFIX = "kvmctl"
FIELDS = frozenset(
    {"cpu.shares", "cpu.reservation", "memory.reservation", "memory.shares", "memory.swap", "rebalance", "project"}
)
"""Keys of the fields that are stored here, labels aside; `cpu.shares` in part."""
INDENTED = 2
"""How deep in a definition the element stands."""
PATH = f"metadata/{{{NAMESPACE}}}guest"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The content of the element. Bytes and cores."""

    cpu_shares: int | Level | None = None
    """A level, or a number that `<shares>` cannot hold."""
    cpu_reservation: float = 0.0
    memory_reservation: int = 0
    memory_shares: int | Level | None = None
    swap: bool = True
    iso: str | None = None
    """The target of the drive that `boot.iso` is in."""
    rebalance: bool = True
    project: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    cloud_init: CloudInitSpec | None = None
    passed: tuple[PassedSpec, ...] = ()
    """What libvirt cannot say of devices of the host, by their addresses."""
    notes: tuple[str, ...] = ()
    """A sentence for each value that could not be read, and so counts as unsaid."""


def read(domain_xml: str) -> Metadata:
    """The metadata of a definition. Raises UsageError where that is not a domain's XML."""
    return of(tree.read(domain_xml))


def of(root: Element) -> Metadata:
    """The metadata of a domain."""
    guest = root.find(PATH)
    if guest is None:
        return Metadata()
    reader = _Reader(guest)
    return Metadata(
        cpu_shares=reader.get("cpu", "shares", _parse_shares, None),
        cpu_reservation=reader.get("cpu", "reservation", parse_cores, 0.0),
        memory_reservation=reader.get("memory", "reservation", parse_size, 0),
        memory_shares=reader.get("memory", "shares", _parse_shares, None),
        swap=reader.get("memory", "swap", _parse_bool, True),
        iso=reader.get("boot", "iso", str, None),
        rebalance=reader.get("", "rebalance", _parse_bool, True),
        project=guest.get("project") or None,
        labels=_labels(guest),
        cloud_init=_cloud_init(guest),
        passed=tuple(_passed(guest)),
        notes=tuple(reader.notes),
    )


class _Reader:
    """Reads attributes one by one and keeps what was wrong with them."""

    def __init__(self, guest: Element) -> None:
        self.guest = guest
        self.notes: list[str] = []

    def get(self, child: str, name: str, parse: Callable[[str], Value], otherwise: Value) -> Value:
        element = self.guest.find(_tag(child)) if child else self.guest
        text = None if element is None else element.get(name)
        if text is None:
            return otherwise
        try:
            return parse(text)
        except ValueError as error:
            self.notes.append(f"metadata: {f'{child} {name}'.strip()} is not readable: {error}")
            return otherwise


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _parse_shares(text: str) -> int | Level | None:
    if text in ("low", "normal", "high"):
        return cast("Level", text)
    shares = tree.number(text)
    if shares is None or not 0 < shares <= MAX_SHARES:
        raise ValueError(f"{text!r} is not a number of shares")
    return shares


def _parse_bool(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is not yes or no")
    return text == "yes"


def _labels(guest: Element) -> tuple[tuple[str, str], ...]:
    labels = {label.get("key", ""): label.text or "" for label in guest.iterfind(_tag("label"))}
    return tuple(sorted((key, value) for key, value in labels.items() if key))


_CLOUD_INIT = {
    "hostname": "hostname", "user": "user", "user-data": "user_data", "network-config": "network_config",
    "seed": "seed", "digest": "digest",
}  # fmt: skip


def _cloud_init(guest: Element) -> CloudInitSpec | None:
    element = guest.find(_tag("cloud-init"))
    if element is None:
        return None
    keys = tuple(key.text or "" for key in element.iterfind(_tag("ssh-key")))
    texts = {field: element.get(name) for name, field in _CLOUD_INIT.items()}
    return CloudInitSpec(ssh_keys=keys, **cast("dict[str, Any]", texts))


def _passed(guest: Element) -> Iterator[PassedSpec]:
    """Each that can be read, and names an address; the cards of others, and words that are neither yes nor no, count
    as unsaid."""
    switches = {"yes": True, "no": False}
    for element in guest.iterfind(_tag("passthrough")):
        name, card = element.get("pci", ""), element.get("vf-of", "")
        if is_address(name):
            yield PassedSpec(
                pci=name,
                vf_of=card if is_address(card) else None,
                spoof_check=switches.get(element.get("spoof-check", "")),
                trust=switches.get(element.get("trust", "")),
            )


def promise(domain_xml: str, vcpus: int | None = None) -> Promise:
    """What a definition promises its guest, with levels of shares as numbers.

    `vcpus` is how many the guest has now, where that differs from its definition. Memory shares count by the
    definition's size: a running guest's own XML has the balloon's instead. Raises UsageError.
    """
    return promise_in(tree.read(domain_xml), vcpus)


def promise_in(root: Element, vcpus: int | None = None) -> Promise:
    """As `promise`, of a definition that is read already."""
    from kvmctl.model.promise import Promise

    said = of(root)
    cpu, memory = resources.cpu(root, said), resources.memory(root, said)
    count = vcpus or cpu.count or 1
    return Promise(
        cpu_shares=cpu_shares(cpu.shares, count),
        cpu_limit=resources.ceiling(root, cpu.limit, count),
        cpu_reservation=said.cpu_reservation,
        memory_shares=memory_shares(memory.shares, memory.size or 0),
        memory_reservation=said.memory_reservation,
        sharing=memory.sharing is True,
        swap=memory.swap is True,
        project=said.project,
        labels=said.labels,
        rebalance=said.rebalance,
        memory_max=memory.max or 0,
        memory_pinned=(memory.max or 0) if reclaimable.pinned(root) else 0,
    )


def of_spec(spec: GuestSpec, iso: str | None) -> Metadata:
    """What has to be stored of a filled `spec`; `iso` is the target of the ISO's drive."""
    return Metadata(
        cpu_shares=stored_shares(spec.cpu.shares),
        cpu_reservation=spec.cpu.reservation or 0.0,
        memory_reservation=spec.memory.reservation or 0,
        memory_shares=stored_memory_shares(spec.memory.shares),
        swap=spec.memory.swap is not False or bool(spec.memory.hugepages),
        iso=iso,
        rebalance=spec.rebalance is not False,
        project=spec.project,
        labels=spec.labels or (),
        cloud_init=spec.cloud_init,
        passed=to_remember(spec.passthrough or (), ()),
    )


def stored_shares(shares: int | Level | None) -> int | Level | None:
    """CPU shares that `<shares>` cannot say: a level, or a number beyond its range."""
    return None if isinstance(shares, int) and resources.clamp_shares(shares) == shares else shares


def stored_memory_shares(shares: int | Level | None) -> int | Level | None:
    """Memory shares, unless they are the default."""
    return None if shares == "normal" else shares


def qualified(spec: GuestSpec, iso: str | None = None) -> str:
    """The metadata of a filled `spec` as a definition has it. Empty where there is nothing to store."""
    from lxml import etree

    guest = etree.Element(_tag("guest"), nsmap={PREFIX: NAMESPACE})
    put(guest, of_spec(spec, iso))
    etree.indent(guest, level=INDENTED)
    return etree.tostring(guest, encoding="unicode") if is_anything(guest) else ""


def extract(domain_xml: str) -> str | None:
    """The metadata of a definition as virDomainSetMetadata takes it; None where there is none.

    libvirt adds the namespace by itself, and refuses an element that has it already.
    """
    from lxml import etree

    guest = etree.fromstring(domain_xml.encode(), etree.XMLParser(resolve_entities=False)).find(PATH)
    if guest is None or not is_anything(guest):
        return None
    for node in guest.iter(f"{{{NAMESPACE}}}*"):
        node.tag = etree.QName(node).localname
    guest.tail = None
    etree.cleanup_namespaces(guest)
    return etree.tostring(guest, encoding="unicode")


def is_anything(guest: _Element) -> bool:
    """Whether the element says anything at all."""
    return len(guest) > 0 or len(guest.attrib) > 0


def put(guest: _Element, said: Metadata) -> None:
    """Make the element say exactly `said`, beside what it has that this version does not know."""
    _set(guest, "project", said.project)
    _set(guest, "rebalance", None if said.rebalance else "no")
    reservation = f"{said.cpu_reservation:.6f}".rstrip("0").rstrip(".") if said.cpu_reservation else None
    _set_child(guest, "cpu", shares=_text(said.cpu_shares), reservation=reservation)
    _set_child(
        guest,
        "memory",
        reservation=format_size(said.memory_reservation) if said.memory_reservation else None,
        shares=_text(said.memory_shares),
        swap=None if said.swap else "no",
    )
    _set_child(guest, "boot", iso=said.iso)
    _put_labels(guest, said.labels)
    _put_cloud_init(guest, said.cloud_init)
    _put_passed(guest, said.passed)


def _text(shares: int | Level | None) -> str | None:
    return None if shares is None else str(shares)


def _set(node: _Element, name: str, value: str | None) -> None:
    if value:
        node.set(name, value)
    elif name in node.attrib:
        del node.attrib[name]


def _set_child(guest: _Element, name: str, **attributes: str | None) -> None:
    child = guest.find(_tag(name))
    if child is None:
        if not any(attributes.values()):
            return
        child = guest.makeelement(_tag(name))
        guest.append(child)
    for key, value in attributes.items():
        _set(child, key, value)
    if not is_anything(child):
        guest.remove(child)


def _put_labels(guest: _Element, labels: tuple[tuple[str, str], ...]) -> None:
    for label in guest.findall(_tag("label")):
        guest.remove(label)
    for key, value in labels:
        label = guest.makeelement(_tag("label"), {"key": key})
        label.text = value
        guest.append(label)


def _put_cloud_init(guest: _Element, spec: CloudInitSpec | None) -> None:
    if spec is None:
        return
    child = guest.find(_tag("cloud-init"))
    if child is None:
        child = guest.makeelement(_tag("cloud-init"))
        guest.append(child)
    for name, field in _CLOUD_INIT.items():
        _set(child, name, getattr(spec, field))
    for key in child.findall(_tag("ssh-key")):
        child.remove(key)
    for text in spec.ssh_keys:
        key = child.makeelement(_tag("ssh-key"))
        key.text = text
        child.append(key)


def _put_passed(guest: _Element, devices: Sequence[PassedSpec]) -> None:
    for node in guest.findall(_tag("passthrough")):
        guest.remove(node)
    for device in devices:
        node = guest.makeelement(_tag("passthrough"), {"pci": device.pci or ""})
        _set(node, "vf-of", device.vf_of)
        for name, value in (("spoof-check", device.spoof_check), ("trust", device.trust)):
            _set(node, name, None if value is None else "yes" if value else "no")
        guest.append(node)
