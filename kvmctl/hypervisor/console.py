"""The serial console of a guest as a byte stream, driven by libvirt's event loop."""

from __future__ import annotations

import os
from typing import Any

import libvirt

from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.errors import doing

ESCAPE = b"\x1d"
"""Ctrl-], as in telnet and virsh."""


def attach(hypervisor: Hypervisor, domain: Any, source: int, sink: int, force: bool = False) -> str:
    """Copy between the guest's console and two file descriptors until Ctrl-] or the end of either.

    The hypervisor must have been opened with `events`. Returns why it ended: `left`, `input ended` or
    `guest ended`. Raises ConflictError when somebody else has the console and `force` is not given.
    """
    stream = hypervisor.connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    with doing(f"open the console of guest {domain.name()}"):
        domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else libvirt.VIR_DOMAIN_CONSOLE_SAFE)
    bridge = _Bridge(stream, source, sink)
    try:
        return bridge.run()
    finally:
        bridge.close()


class _Bridge:
    def __init__(self, stream: Any, source: int, sink: int) -> None:
        self.stream = stream
        self.source = source
        self.sink = sink
        self.waiting = b""
        self.ended = ""
        stream.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE, self._from_guest, None)
        self.watch = libvirt.virEventAddHandle(source, libvirt.VIR_EVENT_HANDLE_READABLE, self._from_user, None)

    def run(self) -> str:
        while not self.ended:
            libvirt.virEventRunDefaultImpl()
        return self.ended

    def close(self) -> None:
        libvirt.virEventRemoveHandle(self.watch)
        try:
            self.stream.eventRemoveCallback()
            self.stream.abort()
        except libvirt.libvirtError:
            return

    def _from_guest(self, stream: Any, events: int, _opaque: object) -> None:
        try:
            received = stream.recv(4096) if events & libvirt.VIR_STREAM_EVENT_READABLE else b""
        except libvirt.libvirtError:
            received = b""
        if received == -2:  # nothing there after all
            return
        if received:
            os.write(self.sink, received)
        else:
            self.ended = "guest ended"
        if events & libvirt.VIR_STREAM_EVENT_WRITABLE:
            self._flush()

    def _from_user(self, _watch: int, source: int, _events: int, _opaque: object) -> None:
        typed = os.read(source, 4096)
        before, escape, _after = typed.partition(ESCAPE)
        self.waiting += before
        if escape or not typed:
            self.ended = "left" if escape else "input ended"
        self._flush()

    def _flush(self) -> None:
        while self.waiting:
            try:
                sent = self.stream.send(self.waiting)
            except libvirt.libvirtError:
                self.ended = "guest ended"
                return
            if sent == -2:  # the guest does not read just now
                break
            self.waiting = self.waiting[sent:]
        wanted = libvirt.VIR_STREAM_EVENT_READABLE | (libvirt.VIR_STREAM_EVENT_WRITABLE if self.waiting else 0)
        self.stream.eventUpdateCallback(wanted)
