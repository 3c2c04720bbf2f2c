"""Which guests a command is about: names, globs and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import NotFoundError, UsageError
from kvmctl.model.sample import GuestSample
from kvmctl.model.wording import quoted

Guest = tuple[GuestSample, Any]
"""A guest as the bulk call saw it, and its libvirt handle."""


def matching(hypervisor: Hypervisor, patterns: Sequence[str] = (), labels: Sequence[str] = ()) -> list[Guest]:
    """The guests that bear one of the names or globs (all, where none is given) and every label, by name.

    What is some guest's whole name is no glob: a guest that is called `*` stands for itself alone.
    """
    wanted = [parse_label(label) for label in labels]
    guests = domains.samples_with_domains(hypervisor)
    if patterns:
        globs = set(patterns) - {sample.name for sample, _domain in guests}
        guests = [guest for guest in guests if guest[0].name in patterns or _fits(guest[0].name, globs)]
    if not wanted:
        return guests
    by_name = {sample.name: (sample, domain) for sample, domain in guests}
    found = domains.definitions(domain for _sample, domain in guests)
    return [by_name[domain.name()] for domain, text in found if set(wanted) <= labels_of(text)]


def chosen(hypervisor: Hypervisor, patterns: Sequence[str], labels: Sequence[str]) -> list[Guest]:
    """Like `matching`, for commands that act: a name or glob that matches nothing is an error, and so is
    naming nobody. Raises NotFoundError, UsageError."""
    if not patterns and not labels:
        raise UsageError("no guest named", "name guests, or choose them by -l KEY=VALUE; '*' is all of them")
    guests = matching(hypervisor, patterns, labels)
    names = [sample.name for sample, _domain in guests]
    missing = [pattern for pattern in patterns if not labels and not any(_fits(name, [pattern]) for name in names)]
    if missing:
        raise NotFoundError(
            f"no guest on {hypervisor.uri} is named {', '.join(map(quoted, missing))}", "kvmctl list shows the guests"
        )
    if not guests:
        raise NotFoundError(
            f"no guest on {hypervisor.uri} bears {' and '.join(labels)}", "kvmctl list shows the guests"
        )
    return guests


def in_order(guests: Sequence[Guest], patterns: Sequence[str]) -> list[Guest]:
    """The guests in the order in which they were named; those that one glob stands for by name."""
    places = {sample.name: _place(sample.name, patterns) for sample, _domain in guests}
    return sorted(guests, key=lambda guest: (places[guest[0].name], guest[0].name))


def _place(name: str, patterns: Sequence[str]) -> int:
    return next((number for number, pattern in enumerate(patterns) if _fits(name, [pattern])), len(patterns))


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def parse_label(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as a pair. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{quoted(text)} is not a label: write KEY=VALUE", "for example: -l tier=front")
    return key, value


def labels_of(definition: str) -> set[tuple[str, str]]:
    """The labels recorded in a guest's definition."""
    from kvmctl.xml import metadata

    return set(metadata.read(definition).labels)
