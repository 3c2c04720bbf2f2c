"""What guests do, told by libvirt's own event loop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing, translate
from kvmctl.hypervisor.event_words import READERS, Words
from kvmctl.model.errors import KvmctlError, UnreachableError
from kvmctl.model.event import KINDS, Event
from kvmctl.model.wording import argument

MOST_WAITING = 100_000
"""Events that are kept for a reader who is slow; what comes beyond them is counted, and not kept."""
_CLOSED = {
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "its daemon has ended",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "its daemon does not answer any more",
}


def wait_for_reboot(hypervisor: Hypervisor, domain: Any, ask: Callable[[], None], timeout: float) -> bool:
    """Call `ask`, then wait until the guest has reset itself; False after `timeout` seconds."""
    seen = threading.Event()
    with doing(f"watch guest {domain.name()}"):
        callback = hypervisor.connection.domainEventRegisterAny(
            domain, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_event: seen.set(), None
        )
    try:
        ask()
        return seen.wait(timeout)
    finally:
        with doing(f"stop watching guest {domain.name()}"):
            hypervisor.connection.domainEventDeregisterAny(callback)


class Feed:
    """What happens to the guests of a hypervisor, from its making until `close`; a connection has one at a time."""

    def __init__(self, hypervisor: Hypervisor, kinds: Iterable[str] = KINDS, sink: int | None = None) -> None:
        """Follow these kinds of events; `missing` are those that this hypervisor has not.

        The feed ends by itself when the file descriptor `sink` has no reader any more.
        Raises UnreachableError, and KvmctlError where the hypervisor has none of the kinds.
        """
        self.missing: list[str] = []
        self._hypervisor = hypervisor
        self._connection = hypervisor.connection
        self._told: SimpleQueue[Event | KvmctlError | None] = SimpleQueue()
        """Events, and what ends the feed: an error, or None where nobody reads it."""
        self._lost = 0
        self._callbacks: list[int] = []
        # A descriptor of its own: what writes to `sink` may turn that to elsewhere when it finds its reader gone.
        self._sink = -1 if sink is None else os.dup(sink)
        self._watch = -1
        try:
            self._follow(kinds)
        except BaseException:
            self.close()
            raise

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """The events as they come, for `timeout` seconds. Raises UnreachableError when the connection is lost."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                found = self._told.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except Empty:
                return
            if found is None:
                return
            if isinstance(found, KvmctlError):
                raise found
            yield found

    def take_lost(self) -> int:
        """How many events were lost since it was last asked, because too many waited for the reader."""
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> None:
        """Follow nothing any more; a connection that broke meanwhile is no error."""
        for callback in self._callbacks:
            with suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(callback)
        self._callbacks.clear()
        with suppress(libvirt.libvirtError):
            self._connection.unregisterCloseCallback()
        if self._watch >= 0:
            libvirt.virEventRemoveHandle(self._watch)
            self._watch = -1
        if self._sink >= 0:
            os.close(self._sink)
            self._sink = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self, kinds: Iterable[str]) -> None:
        refused: libvirt.libvirtError | None = None
        for kind in kinds:
            before = len(self._callbacks)
            for event, words in READERS[kind].items():
                try:
                    self._register(event, words)
                except libvirt.libvirtError as error:
                    if isinstance(translate(error, ""), UnreachableError):
                        raise translate(error, f"follow the guests of {self._hypervisor.uri}") from error
                    refused = error
            if len(self._callbacks) == before:
                self.missing.append(kind)
        if not self._callbacks and refused:
            hint = "kvmctl list shows the state of its guests"
            raise translate(refused, f"follow the guests of {self._hypervisor.uri}", hint) from refused
        with suppress(libvirt.libvirtError):  # a driver without a daemon has nothing to lose
            self._connection.registerCloseCallback(self._lose, None)
        if self._sink >= 0:
            gone = libvirt.VIR_EVENT_HANDLE_ERROR | libvirt.VIR_EVENT_HANDLE_HANGUP
            self._watch = libvirt.virEventAddHandle(self._sink, gone, self._leave, None)

    def _register(self, event: str, words: Callable[..., Words]) -> None:
        number = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{event}", None)
        if number is None:  # a libvirt older than the event
            return
        callback = self._connection.domainEventRegisterAny(None, number, self._tell, words)
        self._callbacks.append(callback)

    def _tell(self, _connection: object, domain: Any, *told: Any) -> None:
        *values, words = told
        if self._told.qsize() >= MOST_WAITING:
            self._lost += 1
        else:
            self._told.put(Event(time.time(), domain.name(), domain.UUIDString(), *words(*values)))

    def _lose(self, _connection: object, reason: int, _opaque: object) -> None:
        uri = self._hypervisor.uri
        self._told.put(
            UnreachableError(
                f"the connection to {uri} is lost: {_CLOSED.get(reason, 'it broke')}",
                f"kvmctl -c {argument(uri)} host doctor says which part is missing",
            )
        )

    def _leave(self, watch: int, _sink: int, _events: int, _opaque: object) -> None:
        libvirt.virEventUpdateHandle(watch, 0)  # else it is called again at once
        self._told.put(None)
