"""What a connection URI means, without connecting to it, and without libvirt."""

from __future__ import annotations

import os

from kvmctl.model.errors import UsageError
from kvmctl.model.wording import quoted

DEFAULT_URI = "qemu:///system"


def given(uri: str | None) -> str | None:
    """The URI that a user gave, by option or by environment. Raises UsageError for what cannot be one."""
    if uri is None:
        uri = os.environ.get("LIBVIRT_DEFAULT_URI") or None
    if uri == "":
        # An option whose variable is not set must not end on another host than the one it was meant for.
        raise UsageError("the connection URI is empty", f"write it as in -c {DEFAULT_URI}, or leave out -c")
    if uri is not None and not (uri.isprintable() and _has_parts(uri)):
        raise UsageError(f"{quoted(uri)} is not a connection URI", f"write it as in -c {DEFAULT_URI}")
    return uri


def _has_parts(uri: str) -> bool:
    if uri.isascii() and not {"[", "]"} & set(uri):
        return True  # nothing else is refused, and loading the parser takes longer than the rest
    from urllib.parse import urlsplit

    try:
        urlsplit(uri)
    except ValueError:  # brackets that are not around an IPv6 address
        return False
    return True


def meant(uri: str | None) -> str:
    """The URI that a user means who gave `uri`, or none. Raises UsageError."""
    return given(uri) or DEFAULT_URI


def is_local(uri: str) -> bool:
    """Whether a URI means a hypervisor of this machine; the test driver's is of none."""
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    return parts.scheme != "test" and not parts.hostname
