"""The host's policy file: YAML in, policy out. No file is opened here."""

from collections.abc import Mapping
from typing import get_args

from kvmctl.model import values
from kvmctl.model.document import MapNode, TextNode, read_document
from kvmctl.model.fields import Context, Field
from kvmctl.model.hostpolicy import Care, Correction, CpuPolicy, Foreign, HostPolicy, MemoryPolicy
from kvmctl.model.nodes import Faults, NodeReader


def _word(key: str, kind: object, help_text: str) -> Field:
    """One of the words of a Literal."""
    parse = values.choice(*get_args(kind))
    return Field(key, lambda text, _: parse(text), str, help_text)


def _reserve(text: str, context: Context) -> float:
    return values.host_reserve(text, context.base_mhz)


def _size(text: str, _context: Context) -> int:
    return values.host_memory(text)


def _ratio(text: str, _context: Context) -> float:
    return values.percent(text, 100, 10_000)


def _part(text: str, _context: Context) -> float:
    return values.percent(text, 0, 100)


_ATTRIBUTES = {"ksm-cpu": "ksm_cores"}
"""What a key is called in `MemoryPolicy`, where that is another word."""

FIELDS: Mapping[str, Field] = {
    field.key: field
    for field in (
        Field("cpu.reserve", _reserve, str, "CPU kept for the host: 0.5, 50%, 1200MHz"),
        _word("cpu.parent", Care, "whether the weight of the guests' common control group is set"),
        _word("cpu.threads", Care, "whether emulator and I/O threads are kept from eating a vCPU's part"),
        _word("cpu.correct", Correction, "how measured drift is corrected"),
        _word("cpu.foreign", Foreign, "what is done with a weight that somebody else has changed"),
        Field("memory.reserve", _size, str, "memory kept for the host: 2GiB"),
        Field("memory.limit", _size, str, "what the guests may have together at most: 24GiB"),
        Field("memory.overcommit", _ratio, str, "what running guests may grow to, of the memory for guests: 150%"),
        Field("memory.cover", _part, str, "the part of merged and ballooned memory that free memory and swap cover"),
        _word("memory.sharing", Care, "whether KSM is driven by the host's state"),
        _word("memory.balloon", Care, "whether balloons are moved"),
        _word("memory.swap", Care, "whether cold memory is swapped where balloons do not suffice"),
        Field("memory.ksm-cpu", _reserve, str, "CPU that KSM may use at most: 0.5, 50%"),
    )
}
"""What the file can say, by dotted key."""

_EXAMPLES = {"cpu": "cpu: {reserve: 0.5}", "memory": "memory: {reserve: 2GiB, overcommit: 150%}"}
"""The file's groups, each as it may be written."""


def load(name: str, data: bytes, context: Context) -> HostPolicy:
    """Read the content of a host's policy file called `name`. An empty one says nothing, so all defaults hold.

    Raises FileError with every fault in it.
    """
    faults = Faults()
    said: dict[str, dict[str, object]] = {}
    with faults.raised(name):
        nodes = NodeReader(0, name, context, faults)
        root = read_document(data, nodes.report)
        if root is not None and not (isinstance(root, TextNode) and root.is_null):
            top = nodes.mapping(root, "a host's policy", _EXAMPLES["cpu"])
            said = {} if top is None else _groups(nodes, top)
    memory = {_ATTRIBUTES.get(key, key): value for key, value in said.get("memory", {}).items()}
    # Each field's own reader made its value.
    return HostPolicy(CpuPolicy(**said.get("cpu", {})), MemoryPolicy(**memory))  # type: ignore[arg-type]


def _groups(nodes: NodeReader, top: MapNode) -> dict[str, dict[str, object]]:
    nodes.known_keys(top, _EXAMPLES, elsewhere=FIELDS)
    said: dict[str, dict[str, object]] = {}
    for group, example in _EXAMPLES.items():
        prefix = f"{group}."
        fields = {key.removeprefix(prefix): field for key, field in FIELDS.items() if key.startswith(prefix)}
        inner = nodes.mapping(top.entries[group][1], group, example) if group in top.entries else None
        if inner is not None:
            nodes.known_keys(inner, fields, prefix)
            said[group] = nodes.values(inner, fields, prefix, {})
    return said
