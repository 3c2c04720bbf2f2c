"""What a connection URI means, without connecting to it, and without libvirt."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

DEFAULT_URI = "qemu:///system"


def meant(uri: str | None) -> str:
    """The URI that a user means who gave `uri`, or none."""
    return uri or os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI


def is_local(uri: str) -> bool:
    """Whether a URI means a hypervisor of this machine; the test driver's is of none."""
    parts = urlsplit(uri)
    return parts.scheme != "test" and not parts.hostname
