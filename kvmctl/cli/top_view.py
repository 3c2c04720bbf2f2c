"""What the user of `kvmctl top` looks at: which guests, in which order, and what each key does to that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kvmctl.model.top import TopGuest

SORTS = {"c": "cpu", "m": "memory", "n": "name", "s": "steal"}
"""The orders, by the key that chooses each."""

_KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
_NAMED = {
    "\x1b[A": "up", "\x1bOA": "up", "k": "up",
    "\x1b[B": "down", "\x1bOB": "down", "j": "down",
    "\x1b[5~": "page up", "\x1b[6~": "page down", " ": "page down",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home",
    "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end",
}  # fmt: skip
_ENTER, _ESCAPE, _CLEAR = ("\r", "\n"), "\x1b", "\x15"
_BACKSPACE = ("\x7f", "\x08")


def keys(text: str) -> list[str]:
    """The keys in what a terminal sent; one that sends several characters is one key."""
    return _KEY.findall(text)


def is_cut_off(text: str) -> bool:
    """Whether the rest of a key may still be on its way."""
    return re.search(r"\x1b(?:\[[0-9;]*|O)?\Z", text) is not None


@dataclass
class View:
    """Order, filter and place; `rows` is how many guests the screen has room for."""

    sort: str = "cpu"
    filter: str = ""
    offset: int = 0
    rows: int = 1
    typing: bool = False
    """Whether keys go to the filter."""
    _kept: str = ""
    """The filter to go back to."""

    def press(self, key: str) -> bool:
        """Do what a key is for; whether it was the one that ends all."""
        if self.typing:
            self._type(key)
        elif key in ("q", "Q"):
            return True
        elif key in SORTS:
            self.sort, self.offset = SORTS[key], 0
        elif key == "/":
            self.typing, self._kept = True, self.filter
        elif key == _ESCAPE:
            self.filter = ""
        else:
            self._scroll(_NAMED.get(key, ""))
        return False

    def _type(self, key: str) -> None:
        if key in _ENTER:
            self.typing = False
        elif key == _ESCAPE:
            self.typing, self.filter = False, self._kept
        elif key in _BACKSPACE:
            self.filter = self.filter[:-1]
        elif key == _CLEAR:
            self.filter = ""
        elif len(key) == 1 and key.isprintable():
            self.filter += key
        self.offset = 0

    def _scroll(self, where: str) -> None:
        steps = {"up": -1, "down": 1, "page up": -self.rows, "page down": self.rows}
        if where in steps:
            self.offset = max(0, self.offset + steps[where])
        elif where in ("home", "end"):
            self.offset = 0 if where == "home" else 1 << 30  # `shown` finds the last page

    def shown(self, guests: Sequence[TopGuest]) -> list[TopGuest]:
        """The guests on the screen, of all that pass the filter; the place is put right where it is past the end."""
        found = self.arranged(guests)
        self.offset = max(0, min(self.offset, len(found) - self.rows))
        return found[self.offset : self.offset + self.rows]

    def arranged(self, guests: Sequence[TopGuest]) -> list[TopGuest]:
        """All guests that pass the filter, in order: the largest first, what is unknown last; equal ones by name."""
        passed = sorted((guest for guest in guests if matches(guest.name, self.filter)), key=lambda guest: guest.name)
        if self.sort == "name":
            return passed
        return sorted(passed, key=lambda guest: -_weight(guest, self.sort))


def matches(name: str, pattern: str) -> bool:
    """Whether a name passes: by a part of it or, with `*`, `?` or `[`, as a whole; capitals do not count."""
    low, wanted = name.casefold(), pattern.casefold()
    return fnmatchcase(low, wanted) if re.search(r"[*?[]", wanted) else wanted in low


def _weight(guest: TopGuest, sort: str) -> float:
    value = {"cpu": guest.used, "memory": guest.resident, "steal": guest.steal}[sort]
    return -1.0 if value is None else float(value)
