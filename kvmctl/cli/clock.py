"""Amounts of CPU that are said in MHz or GHz: by which clock they are divided, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvmctl.cli.app import App
from kvmctl.cli.output import note

if TYPE_CHECKING:
    from kvmctl.model.fields import Context


@contextmanager
def reading(app: App, has_clock: bool) -> Iterator[Context]:
    """What values are read with; `has_clock` says whether MHz or GHz are among them. After the block it is told
    what these came to, once each."""
    from kvmctl.model.fields import Context

    if not has_clock:
        yield Context()
        return
    from kvmctl.control.clock import clock_of
    from kvmctl.model.units import format_cores

    hypervisor = app.hypervisor()
    clock = clock_of(hypervisor)
    said: dict[str, float] = {}
    yield Context(clock.mhz if clock else None, said.__setitem__)
    if clock and said:
        amounts = ", ".join(f"{text} is {format_cores(cores)} cores" for text, cores in said.items())
        where = "this host's" if hypervisor.local else "the remote host's"
        note(app, f"{amounts} of {where} {clock.mhz:.0f} MHz base clock ({clock.source})")
