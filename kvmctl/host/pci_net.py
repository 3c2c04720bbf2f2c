"""What the host uses its network cards for: addresses, default routes, bridges and bonds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kvmctl.host.files import read_permitted
from kvmctl.host.pci_block import names_in, pci_in
from kvmctl.model.pci import Use

_NET = "sys/class/net"
_UPPER = "upper_"
_UP, _REJECT = 0x1, 0x200
"""Flags of a route (include/uapi/linux/route.h)."""

Addresses = Mapping[str, Sequence[str]]


def addresses() -> dict[str, list[str]]:
    """The addresses of each interface of this machine, without those of the link alone, which IPv6 gives to all."""
    import socket

    import psutil

    found: dict[str, list[str]] = {}
    for name, each in psutil.net_if_addrs().items():
        for one in each:
            if one.family in (socket.AF_INET, socket.AF_INET6) and not one.address.lower().startswith("fe80:"):
                found.setdefault(name.partition(":")[0], []).append(one.address.partition("%")[0])
    return found


def uses(root: Path, known: Addresses) -> Iterator[tuple[str, Use]]:
    """What the host uses its network cards for, each with the PCI device that it hangs on; `known` as `addresses`."""
    routed = _default_routes(root)
    for name in names_in(root / _NET):
        cards = pci_in(root / _NET / name)
        for use in _uses_of(name, root, known, routed) if cards else ():
            yield from ((card, use) for card in cards)


def _uses_of(name: str, root: Path, known: Addresses, routed: Sequence[str]) -> Iterator[Use]:
    above = _above(name, root)
    for one in (name, *above):
        if one in routed:
            yield Use("route", through=one)
        yield from (Use("address", address, one) for address in known.get(one, ()))
    yield from (Use("carries", one, name) for one in above)


def _above(name: str, root: Path) -> list[str]:
    """The interfaces on top of one, to any height: bridges, bonds, VLANs, a guest's macvtap."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        links = names_in(root / _NET / waiting.pop())
        upper = [link.removeprefix(_UPPER) for link in links if link.startswith(_UPPER)]
        waiting += [one for one in upper if one not in found]
        found += [one for one in upper if one not in found]
    return found


def _default_routes(root: Path) -> list[str]:
    """The interfaces that a default route of the main table leads through."""
    found = []
    for line in (read_permitted(root / "proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and _leads(fields[3]):
            found.append(fields[0])
    for line in (read_permitted(root / "proc/net/ipv6_route") or "").splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and _leads(fields[8]):
            found.append(fields[9])
    return sorted({name for name in found if name != "lo"})


def _leads(flags: str) -> bool:
    try:
        value = int(flags, 16)
    except ValueError:
        return False
    return bool(value & _UP) and not value & _REJECT
