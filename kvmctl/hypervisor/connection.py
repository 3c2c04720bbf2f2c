"""One connection to one hypervisor."""

import os
import socket
from shlex import quote
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import libvirt

from kvmctl.hypervisor.errors import doing, said, translate
from kvmctl.hypervisor.uri import given
from kvmctl.model.errors import UnreachableError

SYSTEM_URIS = ("qemu:///system", "xen:///system", "lxc:///system")


class Hypervisor:
    """An open connection; `connection` is libvirt's own handle."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        with doing("ask the hypervisor for its URI"):
            self.uri: str = connection.getURI()

    @property
    def local(self) -> bool:
        """Whether this machine's /proc and /sys are the hypervisor's own."""
        parts = urlsplit(self.uri)
        if parts.scheme == "test" or (parts.hostname and parts.hostname not in ("localhost", socket.gethostname())):
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


def open_hypervisor(uri: str | None = None, events: bool = False) -> Hypervisor:
    """Open `uri`, or LIBVIRT_DEFAULT_URI, or the first hypervisor of this machine that answers.

    With `events` the connection serves libvirt's event loop, which its user then has to run.
    Raises UnreachableError where none answers, UsageError for a URI that libvirt cannot read.
    """
    if events:
        libvirt.virEventRegisterDefaultImpl()
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


def _open(uri: str) -> Any:
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_INVALID_ARG:
            raise translate(error, f"connect to {uri}") from error
        raise UnreachableError(
            f"cannot connect to {uri}: {said(error)}", f"kvmctl -c {quote(uri)} host doctor says which part is missing"
        ) from error
