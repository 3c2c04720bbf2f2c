"""Which texts XML can carry without losing or changing anything."""

import dataclasses
import re
from collections.abc import Iterator

from kvmctl.model.errors import UsageError
from kvmctl.model.spec import GuestSpec
from kvmctl.model.wording import quoted

_PROSE = ("description", "cmdline")
_LINE = re.compile(r"[^\x00-\x1f\ud800-\udfff\ufffe\uffff]*")
_LINES = re.compile(r"[^\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]*")
"""XML has no place for control characters, reads a carriage return as a line feed, and either in an attribute
as a space."""


def check_texts(spec: GuestSpec, present: GuestSpec | None = None) -> None:
    """Raises UsageError where a text of `spec`, that `present` has not already, holds a character that XML cannot
    carry."""
    known = {text for _, text in _texts(present, "")}
    for field, text in _texts(spec, "name"):
        pattern = _LINES if field in _PROSE else _LINE
        if text not in known and not pattern.fullmatch(text):
            raise UsageError(
                f"{field.replace('_', '-')} {quoted(text)} of guest {quoted(spec.name)} "
                "holds a control character, which XML cannot carry",
                "take it out",
            )


def _texts(value: object, field: str) -> Iterator[tuple[str, str]]:
    """Every text in `value`, with the name of the field that it is in."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item, field)
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            yield from _texts(getattr(value, part.name), part.name)
