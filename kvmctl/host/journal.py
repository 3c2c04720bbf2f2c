"""What kvmctl changed in this host's kernel, old → new, and what it has begun and not finished.

Both are one small file, so that a change can be undone, a foreign change is noticed rather than
fought, and a run that was killed leaves the next one a list of what it was in the middle of.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvmctl.host.files import (
    Stamp,
    make_private_directory,
    read_permitted,
    read_text,
    stamp,
    state_directory,
    write_atomic,
)
from kvmctl.model.errors import KvmctlError

VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """One value that kvmctl changed: `old` from before its first change, `new` as last written.

    `boot` is the kernel's boot id, `time` seconds since the epoch.
    """

    old: Any
    new: Any
    boot: str
    time: float


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing that was begun and not finished; `data` is what its owner needs to finish or undo it."""

    kind: str
    key: str
    data: Any
    time: float


@dataclass
class _Content:
    changes: dict[str, dict[str, Entry]] = field(default_factory=dict)
    intents: dict[str, dict[str, Intent]] = field(default_factory=dict)


moved_aside: list[str] = []
"""A sentence for the user about each unusable journal that this process has moved aside."""
_ASIDE = ".unusable-"
_SEEN: dict[tuple[Path, str], tuple[Stamp, _Content]] = {}
"""What was read of a journal in a boot, with the stamp of its file: a tick of many guests reads it a dozen times, and
hardly ever it is another."""
_SETTLED = 100_000_000
"""Nanoseconds after which a file that has the same time as before was not written since."""


def boot_id() -> str:
    """What tells this boot of the machine from every other."""
    return (read_permitted(_BOOT_ID) or "").strip()


class Journal:
    """The journal of this host. Every method raises KvmctlError where the file cannot be read or written."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or state_directory() / "journal.json"
        self._boot = boot_id()

    def record(self, kind: str, key: str, old: Any, new: Any) -> None:
        """Note, before changing it, that `key` goes from `old` to `new` (values JSON can hold).

        A second record of a key keeps its first `old`. If this raises, nothing has been changed yet.
        """
        self.record_all(kind, {key: (old, new)})

    def record_all(self, kind: str, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """`record` for several keys, each with its (old, new), at the cost of one."""
        otherwise = f"the change of {', '.join(changes)} is not recorded, so it was not made"
        with self._writing(otherwise) as content:
            entries = content.changes.setdefault(kind, {})
            for key, (old, new) in changes.items():
                first = entries[key].old if key in entries else old
                entries[key] = Entry(first, new, self._boot, time.time())

    def entries(self, kind: str) -> dict[str, Entry]:
        """What kvmctl changed of `kind`, by key. A reboot undoes all of it, so older entries do not count."""
        return dict(self._read().changes.get(kind, {}))

    def kinds(self) -> list[str]:
        """The kinds that kvmctl changed something of."""
        return sorted(kind for kind, entries in self._read().changes.items() if entries)

    def forget(self, kind: str, *keys: str) -> None:
        """The old values are back in place, or no longer ours to put back."""
        with self._writing(f"the journal still lists {', '.join(keys)}") as content:
            for key in keys:
                content.changes.get(kind, {}).pop(key, None)

    def begin(self, kind: str, key: str, data: Any) -> None:
        """Note, before doing it, that something is begun which a killed run would leave half done."""
        with self._writing(f"{kind} {key} was not begun") as content:
            content.intents.setdefault(kind, {})[key] = Intent(kind, key, data, time.time())

    def done(self, kind: str, key: str) -> None:
        """What was begun is finished or undone."""
        with self._writing(f"the journal still lists {kind} {key} as unfinished") as content:
            content.intents.get(kind, {}).pop(key, None)

    def unfinished(self, kind: str | None = None) -> tuple[Intent, ...]:
        """What was begun and not finished, oldest first; of every kind where none is given."""
        intents = self._read().intents
        kinds = intents if kind is None else [kind]
        found = [intent for each in kinds for intent in intents.get(each, {}).values()]
        return tuple(sorted(found, key=lambda intent: intent.time))

    def earlier(self) -> list[str]:
        """A sentence for each unusable journal that was moved aside and still lies there."""
        return [
            f"an earlier journal was unusable, so what kvmctl had changed then is not known: it is {path}"
            for path in sorted(self.path.parent.glob(f"{self.path.name}{_ASIDE}*"))
        ]

    def _read(self) -> _Content:
        key = (self.path, self._boot)
        found = stamp(self.path)
        if found is not None and key in _SEEN and _SEEN[key][0] == found:
            return _SEEN[key][1]
        _SEEN.pop(key, None)
        content = self._parsed(read_text(self.path))
        # Its time is the kernel's, of a few milliseconds: one written just now may be replaced within the same.
        if found is not None and found == stamp(self.path) and time.time_ns() - found[1] > _SETTLED:
            _SEEN[key] = (found, content)
        return content

    def _parsed(self, text: str | None) -> _Content:
        try:
            return self._parse(text)
        except ValueError:
            # Only under the lock: another kvmctl may have replaced the file since it was read.
            with self._locked():
                return self._read_locked()

    def _read_locked(self) -> _Content:
        try:
            return self._parse(read_text(self.path))
        except ValueError as error:
            self._move_aside(str(error))
            return _Content()

    @contextmanager
    def _writing(self, otherwise: str) -> Iterator[_Content]:
        try:
            with self._locked():
                content = self._read_locked()
                begun = bool(content.intents)
                yield content
                # What was changed in the kernel ends with the boot, as this record of it may. What was begun does not.
                write_atomic(self.path, _dump(content), durable=begun or bool(content.intents))
        except KvmctlError as error:
            raise KvmctlError(f"{error.message}: {otherwise}", error.hint) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_directory(self.path.parent)
        path = self.path.with_suffix(".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise KvmctlError(f"cannot open {path}: {error.strerror}", "run this as root") from error
        try:
            # Held for one read and one write, by a kvmctl that may hold any hypervisor's lock or none.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _move_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.name}{_ASIDE}{time.time_ns()}")
        try:
            self.path.rename(aside)
        except OSError as error:
            raise KvmctlError(f"{self.path} is unusable ({reason}) and cannot be moved: {error.strerror}") from error
        moved_aside.append(f"the journal {self.path} is unusable ({reason}); it was moved to {aside}")

    def _parse(self, text: str | None) -> _Content:
        if text is None:
            return _Content()
        try:
            document = json.loads(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(document, dict) or document.get("version") != VERSION:
            found = document.get("version") if isinstance(document, dict) else None
            raise ValueError(f"its version is {found}, and this kvmctl reads version {VERSION}")
        try:
            return self._content(document)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("it is not laid out as a journal") from error

    def _content(self, document: dict[str, Any]) -> _Content:
        content = _Content()
        for kind, entries in document["changes"].items():
            values = {key: Entry(**value) for key, value in entries.items()}
            content.changes[kind] = {key: entry for key, entry in values.items() if entry.boot == self._boot}
        for kind, intents in document["intents"].items():
            content.intents[kind] = {
                key: Intent(kind, key, value["data"], float(value["time"])) for key, value in intents.items()
            }
        return content


def _dump(content: _Content) -> str:
    document = {
        "version": VERSION,
        "changes": {
            kind: {key: asdict(entry) for key, entry in entries.items()}
            for kind, entries in content.changes.items()
            if entries
        },
        "intents": {
            kind: {key: {"data": intent.data, "time": intent.time} for key, intent in intents.items()}
            for kind, intents in content.intents.items()
            if intents
        },
    }
    return json.dumps(document, indent=1) + "\n"
