"""What a network card lets one of its virtual functions do: the spoof check and trust, which libvirt has no word for.

The kernel takes both by netlink from the card's interface, so iproute2 says them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.host.files import read_permitted
from kvmctl.host.journal import Journal
from kvmctl.host.pci_block import names_in
from kvmctl.host.pci_kernel import DEVICES, ROOT, link
from kvmctl.model.errors import KvmctlError, NotFoundError, RefusedError, TimedOutError

KIND = "sriov-function"
"""The kind of these entries in the journal, by the function's address."""
SECONDS = 30.0
_UP = 1
"""IFF_UP of an interface's flags."""
_WORDS: Mapping[str, str] = {"spoof_check": "spoofchk", "trust": "trust"}
"""iproute2's name for each, in its commands and in its JSON."""


@dataclass(frozen=True, slots=True)
class Function:
    """A virtual function as its card knows it: the card's interface, and the function's number there."""

    interface: str
    number: int


def card_of(address: str, root: Path = ROOT) -> str | None:
    """The physical function that a device is a virtual function of; None where it is none, or is gone."""
    return link(root / DEVICES / address / "physfn")


def is_network(address: str, root: Path = ROOT) -> bool:
    """Whether a device is a virtual function of a card that has a network interface."""
    card = card_of(address, root)
    return bool(card and names_in(root / DEVICES / card / "net"))


def interface_down(address: str, root: Path = ROOT) -> str | None:
    """The interface of the card that a function is of, where it is down: libvirt cannot set anything up by it then."""
    for name in names_in(root / DEVICES / (card_of(address, root) or "-") / "net"):
        flags = read_permitted(root / "sys/class/net" / name / "flags")
        if flags and not int(flags, 16) & _UP:
            return name
    return None


def function(address: str, root: Path = ROOT) -> Function:
    """Where the settings of a virtual function are. Raises NotFoundError."""
    card = card_of(address, root)
    folder = root / DEVICES / (card or address)
    for name in names_in(folder) if card else ():
        if name.startswith("virtfn") and (folder / name).readlink().name == address:
            for interface in names_in(folder / "net"):
                return Function(interface, int(name.removeprefix("virtfn")))
    raise NotFoundError(
        f"{address} is no virtual function of a network card with a driver", "kvmctl pci list shows the devices"
    )


def read(one: Function) -> dict[str, bool]:
    """The spoof check and trust of a function, as far as its card's driver tells. Raises KvmctlError."""
    return found_in(_ip("-j", "link", "show", "dev", one.interface), one.number)


def found_in(text: str, number: int) -> dict[str, bool]:
    """The same, in what `ip -j link show` prints."""
    try:
        links = json.loads(text)
        functions: list[dict[str, Any]] = [each for link in links for each in link.get("vfinfo_list", ())]
        mine = next((each for each in functions if each["vf"] == number), {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvmctlError(f"ip did not tell of virtual functions in a way that is known: {error}") from error
    return {name: mine[word] for name, word in _WORDS.items() if isinstance(mine.get(word), bool)}


def write(one: Function, wanted: Mapping[str, bool]) -> None:
    """Set the spoof check or trust of a function, and read it back. Raises KvmctlError, RefusedError where the card's
    driver knows no such setting."""
    for name, value in wanted.items():
        _ip("link", "set", "dev", one.interface, "vf", str(one.number), _WORDS[name], "on" if value else "off")
    found = read(one)
    for name, value in wanted.items():
        if name in found and found[name] != value:
            raise KvmctlError(
                f"{_WORDS[name]} of virtual function {one.number} of {one.interface} is {found[name]} after it was set",
                "dmesg may tell more",
            )


def _ip(*words: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["ip", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, text=True, check=False
        )
    except OSError as error:
        raise RefusedError(f"ip cannot be run: {error.strerror}", "install iproute2") from error
    except subprocess.TimeoutExpired as error:
        text = f"ip {' '.join(words)} has not ended within {SECONDS:g} s"
        raise TimedOutError(text, "dmesg may tell more") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("RTNETLINK answers: ") if said else f"it ends with {done.returncode}"
        kind = RefusedError if "not supported" in reason else KvmctlError
        raise kind(f"ip {' '.join(words)}: {reason}", "the driver of the card decides what it can do")
    return done.stdout


def configure(address: str, wanted: Mapping[str, bool], journal: Journal, root: Path = ROOT) -> bool:
    """Give a function these settings; whether any was another. The journal knows the former ones before that.

    What is not wanted is as before kvmctl: a guest has nothing of what the one before it was trusted with.
    """
    entry = journal.entries(KIND).get(address)
    first: Mapping[str, bool] = entry.old if entry else {}
    due = {**first, **wanted}
    if not due:
        return False
    one = function(address, root)
    old = read(one)
    changed = {name: value for name, value in due.items() if old.get(name) != value}
    if changed:
        journal.record(KIND, address, old, old | changed)
        write(one, changed)
    if entry and old | due == first:
        journal.forget(KIND, address)
    return bool(changed)


def put_back(address: str, old: Mapping[str, bool], root: Path = ROOT) -> dict[str, bool]:
    """The settings from before kvmctl; what is then. Raises KvmctlError."""
    one = function(address, root)
    now = read(one)
    write(one, {name: value for name, value in old.items() if name in _WORDS and now.get(name) != value})
    return read(one)
