"""Which names kvmctl gives to guests. libvirt itself accepts `1`, `-rf`, `..` and a lone space."""

import re

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", re.ASCII)
MAX_NAME = 63
"""A guest's name becomes part of file names and, with cloud-init, a host name; both end here."""


def check_name(name: str) -> str:
    """Return `name` if a new guest may bear it. Raises ValueError with the reason."""
    if not name:
        raise ValueError("the name is empty")
    if len(name) > MAX_NAME:
        raise ValueError(f"the name {name[:20]!r}… has {len(name)} characters: at most {MAX_NAME} are allowed")
    if name.isascii() and name.isdigit():
        raise ValueError(f"the name {name!r} is all digits: virsh would take it for a domain's ID")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name {name!r} is not usable: letters, digits and . _ + - are allowed, "
            "and the first must be a letter, a digit or _"
        )
    return name
