"""Moves that have begun: noted before, settled after, and by the next run where this one has not come to that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from kvmctl.control import history
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.hypervisor import domains, moving, sharing
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError, LockedError, NotFoundError, UnreachableError
from kvmctl.model.migration import Presence
from kvmctl.model.wording import argument
from kvmctl.policy.moved import UNKNOWN, Place, Settlement
from kvmctl.policy.moved import settle as settled

INTENT = "migrate"
"""The journal's word for them."""
SETTLING = 15.0
"""Seconds that a host may take to finish or to give up what was cut off."""


ANSWER = 5.0
"""Seconds that a host may take to say what it has of a guest."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What is needed to finish or explain a move."""

    guest: str
    uuid: str
    source: str
    target: str
    autostart: bool
    offline: bool
    made: tuple[str, ...] = ()
    """Images that the move makes at the target."""
    asked: bool = True
    """Whether libvirt may have begun to move it: before, its images are copied."""

    @property
    def key(self) -> str:
        """The journal's."""
        return f"{self.source} {self.uuid}"


def lock_name(uuid: str) -> str:
    """The lock of one guest's move; it has no colon, as it is no hypervisor's."""
    return f"move-{uuid}"


def begin(journal: Journal, begun: Begun) -> None:
    """Note a move before it begins. Raises KvmctlError."""
    journal.begin(INTENT, begun.key, asdict(begun))


def settle(journal: Journal, begun: Begun, source: Hypervisor | None, target: Hypervisor | None) -> Place:
    """Find out where the guest is, and do what is left to do there. Raises KvmctlError where it cannot be told, or
    not be done: then the journal keeps the move, and the next run tries again. It does so as well where a guest has
    stayed, and the target, of which there is something to remove, does not answer."""
    here, there = _Side(begun, begun.source, source), _Side(begun, begun.target, target)
    found = _look(here, there, begun.offline) if begun.asked else Settlement("stayed")
    if found.place in ("unclear", "gone"):
        raise KvmctlError(
            f"what became of guest {begun.guest} is not clear: {found.text}",
            f"look at both: kvmctl -c {argument(begun.source)} list; kvmctl -c {argument(begun.target)} list; "
            "the next kvmctl migrate settles it where it can",
        )
    if found.place == "moved":
        _arrive(begun, found, here, there)
    elif (begun.made or found.undefine_target) and not _stay(begun, found, there):
        return found.place
    journal.done(INTENT, begun.key)
    change = Change(begun.guest, "host", begun.source, begun.target, reason="migrate")
    with suppress(KvmctlError):
        history.record(
            begun.source, time.time(), [Outcome(change, "changed" if found.place == "moved" else "not applied")]
        )
    return found.place


class _Side:
    """One host, over a connection that is made anew where it is broken."""

    def __init__(self, begun: Begun, uri: str, hypervisor: Hypervisor | None) -> None:
        self.uuid = begun.uuid
        self.uri = uri
        self.hypervisor = hypervisor

    def look(self) -> Presence | str | None:
        """What it has of the guest. A host that is cut off does not answer for half a minute, and cannot be
        interrupted: it is left behind before."""
        found: list[Presence | str | None] = []
        thread = threading.Thread(target=lambda: found.append(self._look()), daemon=True)
        thread.start()
        thread.join(ANSWER)
        return found[0] if found else UNKNOWN

    def _look(self) -> Presence | str | None:
        for _attempt in range(2):
            with suppress(KvmctlError):
                if self.hypervisor is None:
                    self.hypervisor = open_hypervisor(self.uri)
                return moving.presence(self.hypervisor, self.uuid)
            self.hypervisor = None
        return UNKNOWN

    @property
    def open(self) -> Hypervisor:
        """The connection. Raises UnreachableError."""
        if self.hypervisor is None:
            self.hypervisor = open_hypervisor(self.uri)
        return self.hypervisor

    def domain(self) -> Any:
        """The guest. Raises NotFoundError, UnreachableError."""
        return moving.find(self.open, self.uuid)


def _look(here: _Side, there: _Side, offline: bool) -> Settlement:
    """A daemon that has lost the other one needs a moment to give the move up."""
    deadline = time.monotonic() + SETTLING
    while True:
        source, target = here.look(), there.look()
        found = settled(source, target, offline)
        waits = found.place in ("unclear", "gone") or (isinstance(target, Presence) and target.moving_in)
        if not waits or UNKNOWN in (source, target) or time.monotonic() >= deadline:
            return found
        time.sleep(0.2)


def _arrive(begun: Begun, found: Settlement, here: _Side, there: _Side) -> None:
    domain = there.domain()
    if found.define_at_target:
        domain = domains.define(there.open, begun.guest, domains.definition(domain, secure=True))
    if begun.autostart != domains.autostart(domain):
        domains.set_autostart(domain, begun.autostart)
    if found.undefine_source:
        with suppress(NotFoundError):
            moving.undefine(here.domain())


def _stay(begun: Begun, found: Settlement, there: _Side) -> bool:
    """Whether nothing of the move is left at the target."""
    if there.look() == UNKNOWN:
        return False
    try:
        if found.undefine_target:
            with suppress(NotFoundError):
                moving.undefine(there.domain())
        for path in begun.made:
            # Half a copy, of which the next move would say that it is there already.
            sharing.delete_image(there.open, path)
    except KvmctlError:
        return False
    return True


def recover(
    journal: Journal, source: Hypervisor, target: Hypervisor | None, say: Callable[[str], None]
) -> dict[str, Place]:
    """Finish or explain the moves from or to `source` that runs before this one have left; where each guest is, by
    UUID. One that goes on now is left to its own run."""
    places: dict[str, Place] = {}
    for intent in journal.unfinished(INTENT):
        begun = read(intent.data)
        if begun is None or source.uri not in (begun.source, begun.target):
            continue
        if _is_gone(begun, source, target):
            journal.done(INTENT, begun.key)
            say(f"a move of guest {begun.guest} was cut off: it is on neither host now, so somebody has removed it")
            continue
        ends = {one.uri: one for one in (source, target) if one is not None}
        here, there = ends.get(begun.source), ends.get(begun.target)
        try:
            with lock(lock_name(begun.uuid)):
                if _goes_on(_Side(begun, begun.source, here)):
                    say(f"guest {begun.guest} is still being moved to {begun.target}: its daemon goes on with it")
                    continue
                places[begun.uuid] = settle(journal, begun, here, there)
        except LockedError:
            continue
        except KvmctlError as error:
            say(f"a move of guest {begun.guest} was cut off: {error.message}")
            continue
        where = begun.target if places[begun.uuid] == "moved" else begun.source
        say(f"a move of guest {begun.guest} was cut off: it is at {where}, and that is settled now")
    return places


def _is_gone(begun: Begun, *known: Hypervisor | None) -> bool:
    """Whether both hosts are known, and have nothing of the guest."""
    ends = {one.uri: one for one in known if one is not None}
    sides = [_Side(begun, uri, ends.get(uri)) for uri in (begun.source, begun.target) if uri in ends]
    return len(sides) == 2 and all(side.look() is None for side in sides)


def _goes_on(source: _Side) -> bool:
    """Whether the source's daemon is still moving the guest, whoever asked for it."""
    try:
        return moving.busy_with(source.domain()) is not None
    except (NotFoundError, UnreachableError):
        return False


def read(data: Any) -> Begun | None:
    """What was begun; None where the journal holds what another version wrote."""
    if not isinstance(data, Mapping):
        return None
    try:
        values = dict(data)
        return Begun(**(values | {"made": tuple(values.get("made", ()))}))
    except TypeError:
        return None
