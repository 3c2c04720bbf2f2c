"""Reading XML that libvirt, or anybody, wrote: text, numbers and sizes, with None for what is not there."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kvmctl.model.errors import UsageError

_HINT = "libvirt writes the XML of a guest with virsh dumpxml"
_LARGEST = 1 << 63
_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgtpe", 1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
"""libvirt's units of memory, in lower case."""


def read(xml: str, tag: str = "domain") -> Element:
    """The root of a document. Raises UsageError where it is not XML, or not a `<tag>`."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 - expat bounds the expansion of entities and fetches none
    except (ElementTree.ParseError, ValueError) as error:
        raise not_xml(error) from error
    if root.tag != tag:
        raise UsageError(f"this is the XML of a {root.tag}, not of a {tag}", _HINT)
    return root


def not_xml(error: Exception) -> UsageError:
    """What a parser's error is to the user."""
    return UsageError(f"this is not well-formed XML: {error}", _HINT)


def text(parent: Element, path: str) -> str | None:
    """What the element at `path` says; None where it is absent or empty."""
    return parent.findtext(path) or None


def number(value: str | None) -> int | None:
    """A whole number, or None for what is not one that libvirt could hold."""
    try:
        found = int(value or "")
    except ValueError:
        return None
    return found if -_LARGEST <= found < _LARGEST else None


def size(parent: Element, path: str) -> int | None:
    """The bytes that the element at `path` says, in KiB where it has no unit."""
    element = parent.find(path)
    return None if element is None else scaled(element.text, element.get("unit"))


def scaled(value: str | None, unit: str | None) -> int | None:
    """A number of libvirt's units of memory (KiB where it has none) in bytes."""
    count, factor = number(value), _UNITS.get((unit or "KiB").lower())
    return None if count is None or factor is None or count < 0 else count * factor


def name(element: Element) -> str:
    """The element's tag without its namespace."""
    return element.tag.rpartition("}")[2]
