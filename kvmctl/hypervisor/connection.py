"""One connection to one hypervisor."""

import os
import threading
from functools import cache
from types import TracebackType
from typing import Any, Self

import libvirt

from kvmctl.hypervisor.errors import doing, said
from kvmctl.hypervisor.uri import given
from kvmctl.model.errors import UnreachableError, UsageError
from kvmctl.model.wording import argument

SYSTEM_URIS = ("qemu:///system", "xen:///system", "lxc:///system")
OPEN_DEADLINE = 30.0
"""Seconds for a hypervisor to take a connection."""
KEEPALIVE = (5, 6)
"""Seconds between two questions whether the daemon is there still, and how many may stay unanswered: virsh's own.
One that is only slow answers them; without them a call to one that hangs never returns."""


class Hypervisor:
    """An open connection; `connection` is libvirt's own handle."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        with doing("ask the hypervisor for its URI"):
            self.uri: str = connection.getURI()

    @property
    def local(self) -> bool:
        """Whether this machine's /proc and /sys are the hypervisor's own."""
        from socket import gethostname
        from urllib.parse import urlsplit

        parts = urlsplit(self.uri)
        if parts.scheme == "test" or (parts.hostname and parts.hostname not in ("localhost", gethostname())):
            return False
        return "+ssh" not in parts.scheme and "+tcp" not in parts.scheme and "+tls" not in parts.scheme

    def close(self) -> None:
        """Close the connection; a connection that broke meanwhile is no error."""
        try:
            self.connection.close()
        except libvirt.libvirtError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_hypervisor(uri: str | None = None) -> Hypervisor:
    """Open `uri`, or LIBVIRT_DEFAULT_URI, or the first hypervisor of this machine that answers.

    libvirt's event loop serves every connection.
    Raises UnreachableError where none answers in time, UsageError for a URI that libvirt cannot read.
    """
    serve_events()
    wanted = given(uri)
    if wanted:
        return Hypervisor(_open(wanted))
    candidates = SYSTEM_URIS if os.geteuid() == 0 else (*SYSTEM_URIS, "qemu:///session")
    first: UnreachableError | None = None
    for candidate in candidates:
        try:
            return Hypervisor(_open(candidate))
        except UnreachableError as error:
            first = first or error
    assert first is not None
    raise first


@cache
def serve_events() -> None:
    """Run libvirt's event loop in a thread: events and keepalives come by it."""
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt events", daemon=True).start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _open(uri: str) -> Any:
    hint = f"kvmctl -c {argument(uri)} host doctor says which part is missing"
    if ":" not in uri:
        hint = "it is no name of hosts.yaml either; a URI is written as in -c qemu+ssh://HOST/system"
    try:
        connection = libvirt.open(uri) if "ssh" in uri.partition("://")[0] else _open_in_time(uri, hint)
        _keep_alive(connection)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_INVALID_ARG:
            raise UsageError(f"cannot connect to {uri}: {said(error)}", "write it as in -c qemu:///system") from error
        raise UnreachableError(f"cannot connect to {uri}: {said(error)}", hint) from error
    return connection


def _open_in_time(uri: str, hint: str) -> Any:
    """libvirt.open, which by itself waits for ever for a daemon that hangs, and cannot be interrupted either.

    Not for ssh: that asks its user for a password, and has deadlines of its own.
    """
    opened: list[Any] = []

    def opening() -> None:
        try:
            opened.append(libvirt.open(uri))
        except libvirt.libvirtError as error:
            opened.append(error)

    thread = threading.Thread(target=opening, name="libvirt open", daemon=True)
    thread.start()
    thread.join(OPEN_DEADLINE)
    if not opened:
        raise UnreachableError(f"{uri} takes connections, but has not answered within {OPEN_DEADLINE:g} s", hint)
    if isinstance(opened[0], libvirt.libvirtError):
        raise opened[0]
    return opened[0]


def _keep_alive(connection: Any) -> None:
    try:
        connection.setKeepAlive(*KEEPALIVE)
    except libvirt.libvirtError as error:
        # A driver without a daemon, such as the test driver, has nobody to ask.
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
            raise
