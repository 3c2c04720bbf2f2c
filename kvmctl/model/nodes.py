"""Taking the nodes of a file for what they should be, and reporting where they are not."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from kvmctl.model.document import ListNode, MapNode, Node, TextNode
from kvmctl.model.errors import FileError, Problem
from kvmctl.model.fields import Context, Field
from kvmctl.model.wording import nearest, quoted

MAX_PROBLEMS = 100
"""Faults that are listed; what has more is some other file."""

_HINT = "nothing was done: correct this and run the command again"

Place = tuple[int, int]
"""Line and column, from 1."""


class EnoughError(Exception):
    """So many faults that reading on is of no use."""


class Faults:
    """The faults of all files. One place says one thing once, however many guests it is merged into."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int, str], Problem] = {}

    def add(self, source: int, problem: Problem, sentence: str) -> None:
        """Add `problem` of the source with that number, unless the same sentence stands for that place already."""
        self._found.setdefault((source, problem.line, problem.column, sentence), problem)
        if len(self._found) >= MAX_PROBLEMS:
            raise EnoughError

    def in_order(self) -> list[Problem]:
        """Every fault, by file, line and column."""
        return [problem for _, problem in sorted(self._found.items())]

    @contextmanager
    def raised(self, last: str) -> Iterator[None]:
        """Raise FileError with every fault that reading in this block has found; `last` is the last file's name."""
        try:
            yield
        except EnoughError:
            more = Problem(last, 0, 0, f"there are more than the {MAX_PROBLEMS} faults listed")
            raise FileError([*self.in_order(), more], _HINT) from None
        if self._found:
            raise FileError(self.in_order(), _HINT)


class NodeReader:
    """Reads the nodes of one file.

    `owner` stands before every sentence: the guest that is being read. `failed` collects the dotted keys that could
    not be read, so that what is missing for that reason alone is not reported as missing.
    """

    def __init__(self, source: int, file: str, context: Context, faults: Faults) -> None:
        self.file = file
        self.owner = ""
        self.failed: set[str] = set()
        self._source = source
        self._context = context
        self._faults = faults

    def report(self, line: int, column: int, sentence: str) -> None:
        """Add one fault; 0 and 0 are the file as a whole."""
        self._faults.add(self._source, Problem(self.file, line, column, self.owner + sentence), sentence)

    def known_keys(self, node: MapNode, known: Iterable[str], prefix: str = "", elsewhere: Iterable[str] = ()) -> None:
        """Report every key that is not one of `known`; `elsewhere` are keys that it may have been meant for."""
        names = list(known)
        for key, (place, _) in node.entries.items():
            if key not in names:
                self.failed.add(prefix + key)
                near = nearest(key, names, elsewhere)
                self.report(place.line, place.column, f"unknown key {quoted(prefix + key)}: {near}")

    def mapping(self, node: Node, what: str, example: str) -> MapNode | None:
        """`node` if it is a mapping; `what` and `example` are for the sentence where it is not."""
        if isinstance(node, MapNode):
            return node
        self.report(node.line, node.column, f"{what} has to be a mapping such as `{example}`, not {_kind(node)}")
        return None

    def items(self, node: Node, what: str, example: str) -> tuple[Node, ...] | None:
        """What is in `node` if it is a list."""
        if isinstance(node, ListNode):
            return node.items
        self.report(node.line, node.column, f"{what} has to be a list such as `{example}`, not {_kind(node)}")
        return None

    def text(self, node: Node, what: str) -> str | None:
        """The text of `node` if it is a single value."""
        if isinstance(node, TextNode) and not node.is_null:
            return node.text
        if isinstance(node, TextNode):
            self.report(node.line, node.column, f"{what} has no value: write one, or leave the key out")
        else:
            self.report(node.line, node.column, f"{what} has to be a single value, not {_kind(node)}")
        return None

    def value(self, field: Field, node: Node, what: str) -> object:
        """What `field` reads in `node`; None where that is reported as wrong."""
        text = self._joined(node, what) if field.listed else self.text(node, what)
        try:
            return None if text is None else field.parse(text, self._context)
        except ValueError as error:
            self.report(node.line, node.column, f"{what}: {error}")
            return None

    def _joined(self, node: Node, what: str) -> str | None:
        if not isinstance(node, ListNode):
            return self.text(node, what)
        parts = [self.text(item, what) for item in node.items]
        return None if None in parts else ",".join(filter(None, parts))

    def values(
        self, node: MapNode, fields: Mapping[str, Field], prefix: str, places: dict[str, Place]
    ) -> dict[str, object]:
        """What `fields` read in the entries of `node` that they know. `places` gets where, by `prefix` and key."""
        found: dict[str, object] = {}
        for key, (_, node_of_value) in node.entries.items():
            if key in fields:
                places[prefix + key] = (node_of_value.line, node_of_value.column)
                value = self.value(fields[key], node_of_value, prefix + key)
                if value is None:
                    self.failed.add(prefix + key)
                else:
                    found[key] = value
        return found


def _kind(node: Node) -> str:
    if isinstance(node, TextNode):
        return "nothing" if node.is_null else "a single value"
    return "a list" if isinstance(node, ListNode) else "a mapping"
