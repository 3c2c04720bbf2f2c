"""libvirt's errors become ours by their code, here and nowhere else."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from kvmctl.model.errors import (
    ConflictError,
    KvmctlError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnreachableError,
    UsageError,
)

# Without a handler libvirt prints every error to stderr by itself, beside our own report.
libvirt.registerErrorHandler(lambda _context, _error: None, None)

_CLASSES: dict[type[KvmctlError], tuple[str, ...]] = {
    NotFoundError: (
        "NO_DOMAIN", "NO_NETWORK", "NO_STORAGE_POOL", "NO_STORAGE_VOL", "NO_NODE_DEVICE",
        "NO_DOMAIN_SNAPSHOT", "NO_DOMAIN_METADATA", "NO_SECRET", "NO_INTERFACE",
    ),
    ConflictError: ("DOM_EXIST", "STORAGE_VOL_EXIST", "NETWORK_EXIST", "OPERATION_INVALID", "RESOURCE_BUSY"),
    UnreachableError: (
        "NO_CONNECT", "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "ACCESS_DENIED",
        "OPERATION_DENIED", "RPC", "INVALID_CONN", "NO_CLIENT", "GNUTLS_ERROR", "LIBSSH", "SSH",
    ),
    TimedOutError: ("OPERATION_TIMEOUT", "AGENT_UNRESPONSIVE", "AGENT_COMMAND_TIMEOUT"),
    UsageError: ("INVALID_ARG", "XML_ERROR", "XML_DETAIL", "XML_INVALID_SCHEMA"),
    RefusedError: ("CONFIG_UNSUPPORTED",),
}  # fmt: skip
_BY_CODE = {
    getattr(libvirt, f"VIR_ERR_{name}"): error
    for error, names in _CLASSES.items()
    for name in names
    if hasattr(libvirt, f"VIR_ERR_{name}")
}
_HINTS: dict[type[KvmctlError], str] = {
    UnreachableError: "kvmctl host doctor shows which part of the connection is missing",
    NotFoundError: "kvmctl list shows the guests of this hypervisor",
    ConflictError: "kvmctl list shows the state of each guest",
    TimedOutError: "try again; kvmctl host doctor examines the way to the hypervisor",
    UsageError: "correct what was asked for; kvmctl xml shows a guest's whole definition",
    RefusedError: "kvmctl host show tells what this host has",
    KvmctlError: "kvmctl host doctor examines the host; libvirt's log may have more",
}
_NOISE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (?=qemu)")
"""The time that QEMU puts before its complaints."""


def said(error: libvirt.libvirtError) -> str:
    """libvirt's own words, without what is there for its developers."""
    text = (error.get_error_message() or str(error)).strip()
    return _NOISE.sub("", text.removeprefix("internal error: "))


def translate(error: libvirt.libvirtError, doing: str, hint: str = "") -> KvmctlError:
    """The kvmctl error for what libvirt reported while `doing` something, such as `start guest web1`."""
    text = said(error)
    # A daemon that stops, is killed or hangs has "system" and "internal" errors, told only by the part they are from.
    lost = error.get_error_domain() == libvirt.VIR_FROM_RPC
    kind = _BY_CODE.get(error.get_error_code(), UnreachableError if lost else KvmctlError)
    return kind(f"cannot {doing}: {text}", hint or _HINTS[kind])


def is_gone(error: libvirt.libvirtError) -> bool:
    """Whether libvirt says that the object does not exist (any more)."""
    return _BY_CODE.get(error.get_error_code()) is NotFoundError


@contextmanager
def doing(what: str, hint: str = "") -> Iterator[None]:
    """Translate libvirt errors of the block; `what` completes the sentence "cannot …"."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, what, hint) from error
