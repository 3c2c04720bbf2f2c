"""A YAML document as plain nodes that know where they stand.

Only what the files that people write for kvmctl need: text, lists and mappings, with anchors, aliases and merge
keys. The nodes are built from the parser's events, which come one by one, so that nothing that a file holds can
exhaust the stack or the memory before it is refused.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

from kvmctl.model.units import MIB
from kvmctl.model.wording import quoted

MAX_BYTES = MIB
MAX_DEPTH = 20
MAX_NODES = 100_000
"""Texts, lists and mappings of one file, with every alias counted as what it stands for."""

_TOO_DEEP = f"this is nested more than {MAX_DEPTH} deep"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class TextNode:
    """One scalar, exactly as written. `plain` is without quotes. Lines and columns count from 1."""

    text: str
    plain: bool
    line: int
    column: int

    @property
    def is_null(self) -> bool:
        """Whether nothing is written here, or a word that means so."""
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class ListNode:
    """A sequence."""

    items: tuple["Node", ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping: the key's node and the value by the key's text. Merge keys are merged already."""

    entries: dict[str, tuple[TextNode, "Node"]]
    line: int
    column: int


Node = TextNode | ListNode | MapNode
EMPTY = TextNode("", True, 0, 0)
"""What a file without any document holds."""
Report = Callable[[int, int, str], None]
"""Takes one fault: line, column (0 where it is of the file as a whole) and a sentence."""


class _DocumentError(Exception):
    """The document is not read any further."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(line, column, message)
        self.line = line
        self.column = column
        self.message = message


@dataclass(slots=True)
class _Built:
    """A node with what it amounts to when its aliases are written out."""

    node: Node
    nodes: int = 1
    depth: int = 0


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    start: CollectionStartEvent
    children: list[_Built] = field(default_factory=list)


def read_document(data: bytes, report: Report) -> Node | None:
    """The one document in `data`, or None with the reason reported. Duplicate keys are reported, and the first kept."""
    text = ""
    try:
        text = _decoded(data)
        return _Composer(report).compose(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        report(*_sentence(error, text))
    except yaml.YAMLError as error:
        report(0, 0, f"this is not YAML: {error}")
    except _DocumentError as error:
        report(error.line, error.column, error.message)
    return None


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _DocumentError(0, 0, f"the file is larger than {MAX_BYTES // MIB}MiB, and more is not read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode("utf-8-sig", "replace"))
        raise _DocumentError(line, column, f"byte 0x{data[error.start]:02X} is not UTF-8 text") from None
    found = _FORBIDDEN.search(text)
    if found:
        line, column = _position(text[: found.start()])
        raise _DocumentError(line, column, f"the control character U+{ord(found[0]):04X} cannot stand in YAML")
    return text


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _sentence(error: yaml.MarkedYAMLError, text: str) -> tuple[int, int, str]:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 0, 0, f"this is not YAML: {error.problem}"
    at = text.split("\n")[mark.line : mark.line + 1]
    if at and at[0][mark.column : mark.column + 1] == "\t":
        return mark.line + 1, mark.column + 1, "this is not YAML: a tab stands where only spaces may"
    if "nesting depth" in (error.problem or ""):
        # libyaml from 0.2.6 on has a bound of its own, which its reading ahead meets before ours.
        return mark.line + 1, mark.column + 1, _TOO_DEEP
    return mark.line + 1, mark.column + 1, f"this is not YAML: {error.problem}"


class _Composer:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._anchors: dict[str, _Built] = {}
        self._open: list[_Open] = []
        self._nodes = 0

    def compose(self, events: Iterable[Event]) -> Node:
        root: _Built | None = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _fault(event, "a second document begins here: the file has to be one")
            elif isinstance(event, CollectionStartEvent):
                self._start(event)
            elif isinstance(event, (ScalarEvent, AliasEvent, CollectionEndEvent)):
                root = self._close(event)
        return EMPTY if root is None else root.node

    def _start(self, event: CollectionStartEvent) -> None:
        self._check_tag(event)
        self._open.append(_Open(event))
        if len(self._open) > MAX_DEPTH:
            raise _fault(event, _TOO_DEEP)

    def _close(self, event: ScalarEvent | AliasEvent | CollectionEndEvent) -> _Built:
        """Put the node that `event` completes into the one that is open, if any, and return it."""
        if isinstance(event, AliasEvent):
            built, anchor = self._alias(event), None
        elif isinstance(event, ScalarEvent):
            self._check_tag(event)
            built, anchor = _Built(TextNode(event.value, not event.style, *_place(event))), event.anchor
        else:
            opened = self._open.pop()
            built, anchor = self._collection(opened), opened.start.anchor
        self._count(event, built.nodes if isinstance(event, AliasEvent) else 1)
        if anchor is not None:
            self._anchors[anchor] = built
        if self._open:
            self._open[-1].children.append(built)
        return built

    def _alias(self, event: AliasEvent) -> _Built:
        built = self._anchors.get(event.anchor or "")
        if built is None:
            raise _fault(event, f"the alias *{event.anchor} stands for nothing that is complete before it")
        if len(self._open) + built.depth > MAX_DEPTH:
            raise _fault(event, f"with the alias *{event.anchor} this is nested more than {MAX_DEPTH} deep")
        return built

    def _check_tag(self, event: CollectionStartEvent | ScalarEvent) -> None:
        if event.tag is not None:
            self._report(*_place(event), f"the tag {quoted(event.tag)} is not allowed: only plain values are")

    def _count(self, event: Event, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _fault(event, f"the file holds more than {MAX_NODES} values, counting what its aliases stand for")

    def _collection(self, opened: _Open) -> _Built:
        children = opened.children
        node: Node
        if isinstance(opened.start, MappingStartEvent):
            node = MapNode(self._entries(children), *_place(opened.start))
        else:
            node = ListNode(tuple(child.node for child in children), *_place(opened.start))
        depth = 1 + max((child.depth for child in children), default=0)
        return _Built(node, 1 + sum(child.nodes for child in children), depth)

    def _entries(self, children: list[_Built]) -> dict[str, tuple[TextNode, Node]]:
        entries: dict[str, tuple[TextNode, Node]] = {}
        merged: dict[str, tuple[TextNode, Node]] = {}
        for built_key, built_value in zip(children[::2], children[1::2], strict=True):
            key, value = built_key.node, built_value.node
            if not isinstance(key, TextNode):
                self._report(key.line, key.column, "a key has to be a plain word, not a list or mapping")
            elif key.plain and key.text == "<<":
                for name, entry in self._merge(value):
                    merged.setdefault(name, entry)
            elif key.text in entries:
                first = entries[key.text][0].line
                self._report(key.line, key.column, f"the key {quoted(key.text)} stood in line {first} already")
            else:
                entries[key.text] = (key, value)
        return merged | entries

    def _merge(self, value: Node) -> Iterable[tuple[str, tuple[TextNode, Node]]]:
        for source in value.items if isinstance(value, ListNode) else (value,):
            if isinstance(source, MapNode):
                yield from source.entries.items()
            else:
                self._report(source.line, source.column, "`<<` merges mappings, and this is none")


def _place(event: Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _fault(event: Event, message: str) -> _DocumentError:
    return _DocumentError(*_place(event), message)
