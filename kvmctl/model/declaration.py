"""What one guest file declares, read from its nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmctl.model.document import EMPTY, MapNode, Node, TextNode, read_document
from kvmctl.model.fields import (
    CLOUD_INIT,
    DISK,
    FIELDS,
    LABEL,
    LABEL_KEY,
    NAME,
    NIC,
    PASSED,
    PROJECT,
    Field,
    attribute,
    put,
)
from kvmctl.model.nodes import NodeReader, Place
from kvmctl.model.rules import check
from kvmctl.model.spec import CloudInitSpec, DiskSpec, GuestSpec, NicSpec, PassedSpec

MAX_GUESTS = 1000

_GROUPS: dict[str, dict[str, Field]] = {}
"""`FIELDS` by the part before the dot, then by the part after it; what has no dot is under the empty string."""
for _key, _entry in FIELDS.items():
    _group, _, _name = _key.rpartition(".")
    _GROUPS.setdefault(_group, {})[_name] = _entry
_SINGLES = _GROUPS.pop("")
_SWITCHES = ("console", "vnc")
"""Groups that `true` or `false` can stand for."""
_FILE_KEYS = ("project", "defaults", "guests")
_GUEST_KEYS = ("name", *_SINGLES, "labels", *_GROUPS, "disks", "nics", "passthrough", "cloud-init")
_LISTS = ("disks", "nics", "passthrough")
_PASSED: Mapping[str, Mapping[str, Field]] = {
    "passthrough": PASSED,
    "disks": {key: PASSED[key] for key in ("pci", "vf-of")},
    "nics": {key: field for key, field in PASSED.items() if key != "mdev"},
}
"""What an entry of each list says of a device of the host; in the latter two, beside `mode: passthrough`."""
_EXAMPLES = {
    "cpu": "cpu: {count: 2}",
    "memory": "memory: {size: 1GiB}",
    "io": "io: {weight: 500}",
    "boot": "boot: {iso: /path}",
    "console": "console: {log: /path}",
    "vnc": "vnc: {listen: 127.0.0.1}",
}


@dataclass(frozen=True, slots=True)
class Declared:
    """A guest, and where each of its fields is said, by dotted key; the guest itself is under the empty string."""

    spec: GuestSpec
    places: Mapping[str, Place]

    def place(self, key: str) -> Place:
        """Where `key` is said, or else what is around it."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places[key]


class FileReader:
    """Reads the guests of one file."""

    def __init__(self, nodes: NodeReader) -> None:
        self.nodes = nodes
        self.declared: list[Declared] = []
        self.project: str | None = None
        self.project_place: Place = (0, 0)

    def read(self, data: bytes) -> None:
        """Read the file's content into `declared` and `project`, reporting every fault."""
        root = read_document(data, self.nodes.report)
        if root is EMPTY:
            self.nodes.report(0, 0, "the file is empty: it needs at least `guests:`")
        if root is None or root is EMPTY:
            return
        top = self.nodes.mapping(root, "a guest file", "guests: [{name: web1}]")
        if top is None:
            return
        self.nodes.known_keys(top, _FILE_KEYS)
        if "project" in top.entries:
            node = top.entries["project"][1]
            project = self.nodes.value(PROJECT, node, "project")
            self.project = None if project is None else str(project)
            self.project_place = (node.line, node.column)
        defaults = self._defaults(top)
        if "guests" in top.entries:
            self._guests(top.entries["guests"][1], defaults)
        else:
            self.nodes.report(top.line, top.column, "the file has no `guests:`")

    def _defaults(self, top: MapNode) -> MapNode:
        """What every guest is merged over, after its own faults have been reported."""
        empty = MapNode({}, top.line, top.column)
        if "defaults" not in top.entries:
            return empty
        node = self.nodes.mapping(top.entries["defaults"][1], "defaults", "defaults: {cpu: {count: 2}}")
        if node is None:
            return empty
        node = _with_switches(node)
        self.nodes.owner = "defaults: "
        if "name" in node.entries:
            place = node.entries.pop("name")[0]
            self.nodes.report(place.line, place.column, "a name is one guest's own and cannot stand here")
        self._spec("", node, {})
        self.nodes.owner = ""
        return node

    def _guests(self, node: Node, defaults: MapNode) -> None:
        items = self.nodes.items(node, "guests", "guests: [{name: web1}]") or ()
        if len(items) > MAX_GUESTS:
            extra = items[MAX_GUESTS]
            self.nodes.report(extra.line, extra.column, f"there are {len(items)} guests: at most {MAX_GUESTS} can be")
            return
        for number, item in enumerate(items, start=1):
            self.nodes.owner = f"guest {number}: "
            guest = self.nodes.mapping(item, "it", "- name: web1")
            if guest is not None:
                self._guest(guest, defaults)
            self.nodes.owner = ""

    def _guest(self, node: MapNode, defaults: MapNode) -> None:
        self.nodes.failed.clear()
        places = {"": (node.line, node.column)}
        name = self.nodes.values(node, {"name": NAME}, "", places).get("name")
        if name is not None:
            self.nodes.owner = f"guest {name}: "
        elif "name" not in node.entries:
            self.nodes.report(node.line, node.column, "it needs a name: begin it with `- name:`")
        spec = self._spec(str(name or ""), _merged(defaults, _with_switches(node)), places)
        declared = Declared(spec, places)
        if name is not None:
            self.declared.append(declared)
        owner, self.nodes.owner = self.nodes.owner, ""
        for key, message in check(spec):
            if not self._incomplete(key):
                # One default can be wrong for several guests: each is told, so the guest is part of the sentence.
                self.nodes.report(*declared.place(key), f"{owner}{key}: {message}")

    def _incomplete(self, key: str) -> bool:
        """Whether the fault at `key` may be only that something beside it could not be read."""
        group, _, rest = key.partition(".")
        entry = f"{group}.{rest.partition('.')[0]}" if group in _LISTS else group
        if entry in ("cpu", "memory"):  # nothing is missed there
            return False
        return any(failed == entry or failed.startswith(f"{entry}.") for failed in self.nodes.failed)

    def _spec(self, name: str, node: MapNode, places: dict[str, Place]) -> GuestSpec:
        self.nodes.known_keys(node, _GUEST_KEYS, elsewhere=FIELDS)
        spec = GuestSpec(
            name,
            disks=self._entries(node, "disks", DISK, DiskSpec, places),
            nics=self._entries(node, "nics", NIC, NicSpec, places),
            passthrough=self._passed(node, places),
            cloud_init=self._cloud_init(node, places),
            labels=self._labels(node),
        )
        for key, value in self.nodes.values(node, _SINGLES, "", places).items():
            spec = put(spec, key, value)
        for group, fields in _GROUPS.items():
            if group in node.entries:
                inner = self.nodes.mapping(node.entries[group][1], group, _EXAMPLES[group])
                for key, value in self._group(inner, fields, f"{group}.", places).items():
                    spec = put(spec, f"{group}.{key}", value)
        return spec

    def _group(
        self, node: MapNode | None, fields: Mapping[str, Field], prefix: str, places: dict[str, Place]
    ) -> dict[str, object]:
        if node is None:
            return {}
        node = self._flat(node, fields, prefix)
        self.nodes.known_keys(node, fields, prefix)
        return self.nodes.values(node, fields, prefix, places)

    def _flat(self, node: MapNode, fields: Mapping[str, Field], prefix: str) -> MapNode:
        """`node` with `bandwidth: {in: 1Mbit}` written out as `bandwidth.in: 1Mbit`, where that is a key."""
        entries: dict[str, tuple[TextNode, Node]] = {}
        for key, (place, value) in node.entries.items():
            if any(name.startswith(f"{key}.") for name in fields):
                inner = self.nodes.mapping(value, f"{prefix}{key}", f"{key}: {{in: 100Mbit}}")
                for name, pair in inner.entries.items() if inner else ():
                    entries[f"{key}.{name}"] = pair
            else:
                entries[key] = (place, value)
        return MapNode(entries, node.line, node.column)

    def _entries(
        self, node: MapNode, key: str, fields: Mapping[str, Field], make: type[Any], places: dict[str, Place]
    ) -> tuple[Any, ...] | None:
        """The entries of disks or nics, or None where the list is not said; less those that are passed through."""
        if key not in node.entries:
            return None
        items = [item for item in self._items(node, key) if not _is_passed(item)]
        return tuple(
            make(**_attributes(self._entry(item, key, f"{key}.{index}", fields, places)))
            for index, item in enumerate(items)
        )

    def _passed(self, node: MapNode, places: dict[str, Place]) -> tuple[PassedSpec, ...] | None:
        """The devices of the host, also those among disks and nics; None where none of the lists says one."""
        said = [
            (key, item)
            for key in ("passthrough", "disks", "nics")
            for item in self._items(node, key)
            if key == "passthrough" or _is_passed(item)
        ]
        if not said and "passthrough" not in node.entries:
            return None
        made = []
        for index, (key, item) in enumerate(said):
            if key != "passthrough" and isinstance(item, MapNode):
                entries = {name: pair for name, pair in item.entries.items() if name != "mode"}
                item = MapNode(entries, item.line, item.column)  # noqa: PLW2901
            found = self._entry(item, key, f"passthrough.{index}", _PASSED[key], places)
            made.append(PassedSpec(**_attributes(found)))
        return tuple(made)

    def _items(self, node: MapNode, key: str) -> Sequence[Node]:
        return (self.nodes.items(node.entries[key][1], key, _example(key)) or ()) if key in node.entries else ()

    def _entry(
        self, item: Node, key: str, prefix: str, fields: Mapping[str, Field], places: dict[str, Place]
    ) -> dict[str, object]:
        places[prefix] = (item.line, item.column)
        inner = self.nodes.mapping(item, f"an entry of {key}", _example(key))
        if inner is None:
            self.nodes.failed.add(prefix)
        return self._group(inner, fields, f"{prefix}.", places)

    def _cloud_init(self, node: MapNode, places: dict[str, Place]) -> CloudInitSpec | None:
        if "cloud-init" not in node.entries:
            return None
        inner = self.nodes.mapping(node.entries["cloud-init"][1], "cloud-init", "cloud-init: {hostname: web1}")
        single = {key: field for key, field in CLOUD_INIT.items() if key != "ssh-keys"}
        if inner is None:
            return None
        self.nodes.known_keys(inner, CLOUD_INIT, "cloud-init.")
        said = self.nodes.values(inner, single, "cloud-init.", places)
        if "ssh-keys" in inner.entries:
            listed = inner.entries["ssh-keys"][1]
            places["cloud-init.ssh-keys"] = (listed.line, listed.column)
            items = self.nodes.items(listed, "cloud-init.ssh-keys", "ssh-keys: [/root/.ssh/id_ed25519.pub]") or ()
            keys = [self.nodes.value(CLOUD_INIT["ssh-keys"], item, "cloud-init.ssh-keys") for item in items]
            said["ssh-keys"] = tuple(key for key in keys if key is not None)
        return CloudInitSpec(**_attributes(said))

    def _labels(self, node: MapNode) -> tuple[tuple[str, str], ...] | None:
        if "labels" not in node.entries:
            return None
        inner = self.nodes.mapping(node.entries["labels"][1], "labels", "labels: {role: web}")
        if inner is None:
            return None
        labels = {}
        for place, value in inner.entries.values():
            key = self.nodes.value(LABEL_KEY, place, "labels")
            text = self.nodes.value(LABEL, value, f"labels.{place.text}")
            if key is not None and text is not None:
                labels[str(key)] = str(text)
        return tuple(sorted(labels.items()))


def _example(key: str) -> str:
    fields = {"disks": DISK, "nics": NIC, "passthrough": PASSED}[key]
    return f"{key}: [{{{next(iter(fields))}: …}}]"


def _is_passed(item: Node) -> bool:
    """Whether an entry of disks or nics is a device of the host."""
    mode = item.entries["mode"][1] if isinstance(item, MapNode) and "mode" in item.entries else None
    return isinstance(mode, TextNode) and mode.text == "passthrough"


def _attributes(said: Mapping[str, object]) -> dict[str, Any]:
    return {attribute(key): value for key, value in said.items()}


def _with_switches(node: MapNode) -> MapNode:
    """`node` with `console: true` written out as `console: {enabled: true}`, which can be merged."""
    entries = dict(node.entries)
    for key in _SWITCHES:
        place, value = entries.get(key, (None, None))
        if place is not None and isinstance(value, TextNode) and not value.is_null:
            at = (value.line, value.column)
            entries[key] = (place, MapNode({"enabled": (TextNode("enabled", True, *at), value)}, *at))
    return MapNode(entries, node.line, node.column)


def _merged(under: MapNode, over: MapNode) -> MapNode:
    """`over` with what only `under` says: mappings are merged deeply, anything else is replaced."""
    entries = dict(under.entries)
    for key, (place, value) in over.entries.items():
        below = entries[key][1] if key in entries else None
        if isinstance(below, MapNode) and isinstance(value, MapNode):
            value = _merged(below, value)  # noqa: PLW2901
        entries[key] = (place, value)
    return MapNode(entries, over.line, over.column)
