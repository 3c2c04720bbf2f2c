"""Pieces that the sentences of several rooms share."""

from collections.abc import Iterable

MOST_SHOWN = 40
"""Characters of a user's text that a message repeats."""


def quoted(text: str) -> str:
    """The text as a message shows it: in quotes, control characters escaped, cut where long."""
    return repr(text) if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]!r}…"


def argument(name: str) -> str:
    """A guest's name as it has to be typed in a shell after a command."""
    from shlex import quote  # only a hint pays for loading it

    return f"-- {quote(name)}" if name.startswith("-") else quote(name)


def nearest(word: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """`did you mean X?` for the word that is nearest, or else the list of what is `known` here."""
    import difflib  # only a faulty input pays for loading it

    words = list(known)
    near = difflib.get_close_matches(word.lower(), [*words, *elsewhere], n=1) if len(word) <= MOST_SHOWN else []
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(words)}"


def without_amounts(text: str) -> str:
    """A sentence without its bytes, seconds and per cent: what says the same again, of a little more or less."""
    import re  # only what is said again and again pays for loading it

    return re.sub(r"(?<![\w.-])[0-9]+(?:\.[0-9]+)?(?: s\b| ?%|[KMGT]?i?B\b)", "", text)
