"""The serial console of a guest as a byte stream, served by libvirt's event loop."""

from __future__ import annotations

import os
import threading
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import translate
from kvmctl.model.errors import ConflictError
from kvmctl.model.wording import argument

ESCAPE = b"\x1d"
"""Ctrl-], as in telnet and virsh."""


def attach(hypervisor: Hypervisor, domain: Any, source: int, sink: int, force: bool = False) -> bool:
    """Copy between the guest's console and two file descriptors until Ctrl-] or the end of either.

    Returns whether the user ended it. Raises ConflictError when somebody else has the console and `force` is not given.
    """
    stream = hypervisor.connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    _open(domain, stream, force)
    bridge = _Bridge(stream, source, sink)
    try:
        bridge.over.wait()
    finally:
        bridge.close()
    return bridge.left


def _open(domain: Any, stream: Any, force: bool) -> None:
    try:
        domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else libvirt.VIR_DOMAIN_CONSOLE_SAFE)
    except libvirt.libvirtError as error:
        name = domain.name()
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_FAILED:
            raise ConflictError(
                f"somebody else has the console of guest {name}",
                f"take it from them: kvmctl console --force {argument(name)}",
            ) from error
        hint = "the guest may have none: `console: true` in its guest file adds one at its next start"
        raise translate(error, f"open the console of guest {name}", hint) from error


class _Bridge:
    """What runs in the thread of the event loop, but for `close`; `over` is set at the end."""

    def __init__(self, stream: Any, source: int, sink: int) -> None:
        self.stream = stream
        self.sink = sink
        self.waiting = b""
        self.left = False
        self.over = threading.Event()
        stream.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE, self._from_guest, None)
        self.watch = libvirt.virEventAddHandle(source, libvirt.VIR_EVENT_HANDLE_READABLE, self._from_user, None)

    def close(self) -> None:
        libvirt.virEventRemoveHandle(self.watch)
        try:
            self.stream.eventRemoveCallback()
            self.stream.abort()
        except libvirt.libvirtError:
            return

    def _from_guest(self, stream: Any, events: int, _opaque: object) -> None:
        try:
            if events & libvirt.VIR_STREAM_EVENT_WRITABLE:
                self._flush()
            if events & libvirt.VIR_STREAM_EVENT_READABLE:
                self._show(stream.recv(4096))
            elif events & (libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP):
                self.over.set()
        except (libvirt.libvirtError, OSError):  # one of the two ends is gone
            self.over.set()

    def _show(self, received: bytes | int) -> None:
        if isinstance(received, int):  # -2: nothing there after all
            return
        if not received:
            self.over.set()
        while received:
            received = received[os.write(self.sink, received) :]

    def _from_user(self, _watch: int, source: int, _events: int, _opaque: object) -> None:
        try:
            typed = os.read(source, 4096)
            before, escape, _after = typed.partition(ESCAPE)
            self.waiting += before
            self._flush()
        except (libvirt.libvirtError, OSError):
            typed, escape = b"", b""
        if escape or not typed:
            self.left = bool(escape)
            self.over.set()

    def _flush(self) -> None:
        while self.waiting:
            sent = self.stream.send(self.waiting)
            if sent == -2:  # the guest does not read just now
                break
            self.waiting = self.waiting[sent:]
        wanted = libvirt.VIR_STREAM_EVENT_READABLE | (libvirt.VIR_STREAM_EVENT_WRITABLE if self.waiting else 0)
        self.stream.eventUpdateCallback(wanted)
