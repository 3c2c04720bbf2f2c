"""The file that names hosts: YAML in, hosts out. No file is opened here."""

from dataclasses import dataclass

from kvmctl.model import values
from kvmctl.model.document import MapNode, Node, TextNode, read_document
from kvmctl.model.fields import Context, Field
from kvmctl.model.names import check_name
from kvmctl.model.nodes import Faults, NodeReader
from kvmctl.model.wording import quoted

_EXAMPLE = "hosts: [{name: node1, uri: qemu+ssh://node1/system}]"


@dataclass(frozen=True, slots=True)
class NamedHost:
    """One host. `policy` is the path, on this machine, of the policy file that holds there."""

    name: str
    uri: str
    policy: str | None = None


def _uri(text: str) -> str:
    if "://" not in text and "+" not in text and ":///" not in text:
        raise ValueError(f"{quoted(text)} is not a connection URI: write qemu+ssh://HOST/system")
    return values.line("a URI", 1023)(text)


_FIELDS = {
    field.key: field
    for field in (
        Field("name", lambda text, _: check_name(text), str, "what the host is called here"),
        Field("uri", lambda text, _: _uri(text), str, "the connection URI of its hypervisor"),
        Field("policy", lambda text, _: values.absolute(text), str, "a copy of its policy file on this machine"),
    )
}


def load(name: str, data: bytes) -> tuple[NamedHost, ...]:
    """Read the content of a hosts file called `name`, in its order. An empty one names nobody.

    Raises FileError with every fault in it.
    """
    faults = Faults()
    found: list[NamedHost] = []
    with faults.raised(name):
        nodes = NodeReader(0, name, Context(), faults)
        root = read_document(data, nodes.report)
        if root is not None and not (isinstance(root, TextNode) and root.is_null):
            top = nodes.mapping(root, "a hosts file", _EXAMPLE)
            if top is not None:
                found = _hosts(nodes, top)
    return tuple(found)


def _hosts(nodes: NodeReader, top: MapNode) -> list[NamedHost]:
    nodes.known_keys(top, ["hosts"], elsewhere=_FIELDS)
    if "hosts" not in top.entries:
        return []
    items = nodes.items(top.entries["hosts"][1], "hosts", _EXAMPLE) or ()
    found: list[NamedHost] = []
    for item in items:
        host = _host(nodes, item)
        if host and any(host.name == other.name for other in found):
            nodes.report(item.line, item.column, f"a host named {host.name} is there already")
        elif host:
            found.append(host)
    return found


def _host(nodes: NodeReader, item: Node) -> NamedHost | None:
    entry = nodes.mapping(item, "a host", "{name: node1, uri: qemu+ssh://node1/system}")
    if entry is None:
        return None
    nodes.known_keys(entry, _FIELDS)
    said = nodes.values(entry, _FIELDS, "", {})
    for key in ("name", "uri"):
        if key not in entry.entries:
            nodes.report(entry.line, entry.column, f"a host needs a {key}")
    if "name" not in said or "uri" not in said:
        return None
    policy = said.get("policy")
    return NamedHost(str(said["name"]), str(said["uri"]), None if policy is None else str(policy))
