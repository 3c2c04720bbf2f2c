"""One check of the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from kvmctl.model.errors import KvmctlError

Result = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was `found`; where that is not good, the `cause` and the `next` thing to do.

    `fail` is what keeps guests from being started or promises from being kept; `warn` what makes them
    slow or unsafe; `unknown` what could not be found out.
    """

    name: str
    result: Result
    found: str
    cause: str = ""
    next: str = ""


def attempt(name: str, examine: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of one kind; if they cannot be made, the reason, so that the others still are."""
    try:
        yield from examine()
    except KvmctlError as error:
        yield Check(name, "unknown", "could not be examined", error.message, error.hint)
