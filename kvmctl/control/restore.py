"""Putting back what kvmctl has changed on this machine, each value only where it is still kvmctl's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from kvmctl.control import parent as parents
from kvmctl.control import pci, protect, reclaim, swap, weights
from kvmctl.control import threads as groups
from kvmctl.control.foreign import foreign
from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.host import cgroup, ksm, parent, process, protection
from kvmctl.host.journal import Entry, Journal
from kvmctl.host.lock import lock_all
from kvmctl.host.pci_kernel import Kernel
from kvmctl.hypervisor import domains, live, scheduler
from kvmctl.hypervisor.connection import open_hypervisor
from kvmctl.hypervisor.uri import is_local, meant
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError
from kvmctl.xml import tree
from kvmctl.xml.metadata import promise_in
from kvmctl.xml.reclaimable import memory_size, stats_period

Result = Literal["changed", "unchanged", "pending", "not applied"]

_KINDS = (
    weights.KIND,
    weights.BALLOON,
    weights.REPORTS,
    reclaim.SCORE,
    groups.KIND,
    parents.KIND,
    protect.KIND,
    ksm.KIND,
    swap.KIND,
    pci.KIND,
    pci.FUNCTION,
    pci.SRIOV,
)
_RUN = re.compile(r"(?P<uri>.*?) (?P<id>-?\d+) (?P<guest>.*)", re.DOTALL)
"""A key of guests' weights: one run of a guest."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of one value. `old` is what it was found as, `wanted` what it was before kvmctl; None is unknown."""

    kind: str
    name: str
    old: object
    wanted: object
    found: object
    result: Result
    reason: str = ""
    respected: bool = False
    """Somebody else's change, left alone on purpose."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One value that kvmctl changed. `read` tells it now, `write` is given the old one, and tells what is found then;
    both raise NotFoundError where what had the value is gone."""

    kind: str
    key: str
    name: str
    entry: Entry
    read: Callable[[], object]
    write: Callable[[Any], object]

    def became(
        self, result: Result, present: object, found: object, reason: str = "", respected: bool = False
    ) -> Restored:
        """The item as a line of the report."""
        return Restored(self.kind, self.name, present, self.entry.old, found, result, reason, respected)


def restore(uri: str | None, force: bool, dry_run: bool) -> tuple[list[Restored], list[str]]:
    """Put back what was before kvmctl, also where somebody else has changed it since with `force`; with `dry_run`
    say only what would be. What became of each value, and sentences for the user.

    The guests of a hypervisor elsewhere get their weights back only where `uri` names it, and then nothing else is
    put back. Raises LockedError while another kvmctl is at work.
    """
    journal = Journal()
    found: list[Restored] = []
    settled: dict[str, list[str]] = {}
    with nullcontext() if dry_run else lock_all(LOCK_WAIT):
        try:
            for item in _items(meant(uri), journal):
                restored = _settle(item, force, dry_run)
                found += [restored] if restored else []
                if restored is None or restored.result in ("changed", "unchanged"):
                    settled.setdefault(item.kind, []).append(item.key)
        finally:
            for kind, keys in settled.items() if not dry_run else ():
                journal.forget(kind, *keys)
    unknown = [kind for kind in journal.kinds() if kind not in _KINDS]
    notes = [f"{kind}: a newer kvmctl changed this, and has to put it back" for kind in unknown]
    return found, [*journal.earlier(), *notes]


def failed(restored: Sequence[Restored]) -> list[Restored]:
    """What could not be put back. A foreign change that was left alone is no failure."""
    return [one for one in restored if one.result == "not applied" and not one.respected]


def _settle(item: _Item, force: bool, dry_run: bool) -> Restored | None:
    """What becomes of the item; None where what had the value is gone."""
    present: object = None
    try:
        present = item.read()
        return _put_back(item, present, force, dry_run)
    except (NotFoundError, ConflictError):
        return None  # it ended meanwhile, and what was changed of it with it
    except KvmctlError as error:
        return item.became("not applied", present, present, error.message)


def _put_back(item: _Item, present: object, force: bool, dry_run: bool) -> Restored:
    said = foreign(item.entry, present)
    if present == item.entry.old:
        if item.kind == weights.BALLOON and not dry_run:
            # The guest may not have begun to follow what it was told last, and would still.
            item.write(present)
        return item.became("unchanged", present, present)
    if said and not force:
        return item.became("not applied", present, present, f"{said}: --force overrides", respected=True)
    if dry_run:
        return item.became("pending", present, present, said)
    found = item.write(item.entry.old)
    if found != item.entry.old:
        return item.became("not applied", present, found, f"it is {found} after {item.entry.old} was set")
    return item.became("changed", present, found, said)


def _items(uri: str, journal: Journal) -> Iterator[_Item]:
    """All that kvmctl changed, in the order to put it back in. An item has been settled when the next is asked for."""
    for kind in _ACCESS:
        yield from _guests(kind, uri, journal)
    if is_local(uri):
        yield from _cgroups(journal)
        yield from _protected(journal)
        yield from _ksm(journal)
        yield from _swap(journal)
        yield from _pci(uri, journal)


def _guests(kind: str, named: str, journal: Journal) -> Iterator[_Item]:
    entries = journal.entries(kind)
    runs: dict[str, list[re.Match[str]]] = {}
    for key in entries:
        if run := _RUN.fullmatch(key):
            runs.setdefault(run["uri"], []).append(run)
    for uri, found in runs.items():
        if uri == named or (is_local(uri) and is_local(named)):
            yield from _guests_of(kind, uri, found, entries)


def _guests_of(kind: str, uri: str, runs: list[re.Match[str]], entries: dict[str, Entry]) -> Iterator[_Item]:
    with ExitStack() as stack:
        try:
            hypervisor = stack.enter_context(open_hypervisor(uri))
            active = domains.domains(hypervisor, active_only=True)
            found = {(str(domain.ID()), domain.name()): domain for domain in active}
        except KvmctlError as error:
            yield from (_broken(kind, run, entries[run[0]], error) for run in runs)
        else:
            yield from (_of_guest(kind, run, entries[run[0]], found.get((run["id"], run["guest"]))) for run in runs)


def _broken(kind: str, run: re.Match[str], entry: Entry, error: KvmctlError) -> _Item:
    """What was changed of a guest that is gone, or that nothing can be said of."""

    def fail(*_arguments: object) -> NoReturn:
        raise error

    return _Item(kind, run[0], run["guest"], entry, fail, fail)


def _of_guest(kind: str, run: re.Match[str], entry: Entry, domain: Any | None) -> _Item:
    if domain is None:
        return _broken(kind, run, entry, NotFoundError(f"guest {run['guest']} has stopped"))
    read, write = _ACCESS[kind]
    try:
        entry = _owed(domain, entry) if kind == weights.BALLOON else entry
    except KvmctlError as error:
        return _broken(kind, run, entry, error)
    return _Item(kind, run[0], run["guest"], entry, partial(read, domain), partial(write, domain))


def _owed(domain: Any, entry: Entry) -> Entry:
    """The entry with what the guest's balloon is to leave it then: no more than it is to have, which its owner may have
    changed since, and no less than is reserved for it, whoever had taken that."""
    root = tree.read(domains.definition(domain))
    size = memory_size(root)
    if not isinstance(entry.old, int) or size is None:
        return entry
    return replace(entry, old=min(size, max(entry.old, promise_in(root).memory_reservation)))


def _write_weight(domain: Any, value: int) -> int | None:
    scheduler.set_weight(domain, value)
    return scheduler.weight(domain)


def _write_balloon(domain: Any, value: int) -> int:
    live.set_balloon(domain, value)
    live.set_stats_period(domain, stats_period(tree.read(domains.definition(domain))))
    # The guest follows over seconds, if it can.
    return value


def _write_period(domain: Any, value: int) -> int:
    live.set_stats_period(domain, value)
    return _period(domain)


def _period(domain: Any) -> int:
    return stats_period(tree.read(domains.live_definition(domain)))


def _pid(domain: Any) -> int:
    found = process.find_guests([domain.UUIDString()])
    if not found:
        raise NotFoundError(f"guest {domain.name()} has stopped")
    return next(iter(found.values()))


_ACCESS: dict[str, tuple[Callable[[Any], object], Callable[[Any, int], object]]] = {
    weights.KIND: (scheduler.weight, _write_weight),
    weights.BALLOON: (live.balloon, _write_balloon),
    weights.REPORTS: (_period, _write_period),
    reclaim.SCORE: (
        lambda domain: process.oom_score_adj(_pid(domain)),
        lambda domain, value: process.set_oom_score_adj(_pid(domain), value),
    ),
}
"""How what was changed of guests is read and written, by kind."""


def _cgroups(journal: Journal) -> Iterator[_Item]:
    """The weights of guests' threads, and that of their parent."""
    mount = cgroup.cpu_mount(cgroup.mounts())
    if mount is None:
        return
    for key, entry in journal.entries(groups.KIND).items():
        path = Path(key)
        name = f"{cgroup.own_directory(path.parent).name}/{path.name}"
        write = partial(cgroup.set_weight, path, mount.version)
        yield _Item(groups.KIND, key, name, entry, partial(_read, path, mount.version), write)
    for key, entry in journal.entries(parents.KIND).items():
        found = parent.at(Path(key), mount)
        read = partial(_read, found.path, mount.version)
        yield _Item(parents.KIND, key, found.path.name, entry, read, partial(parent.set_weight, found))


def _protected(journal: Journal) -> Iterator[_Item]:
    """What the kernel leaves to guests, and to the groups above them."""
    for key, entry in journal.entries(protect.KIND).items():
        path = Path(key)
        yield _Item(protect.KIND, key, path.name, entry, partial(_low, path), partial(protection.set_low, path))


def _low(directory: Path) -> int | None:
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is gone")
    return protection.low(directory)


def _read(directory: Path, version: int) -> int | None:
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is gone")
    return cgroup.weight(directory, version)


def _ksm(journal: Journal) -> Iterator[_Item]:
    for name, entry in ksm.changed(journal).items():
        write = partial(_write_ksm, name, entry, journal)
        yield _Item(ksm.KIND, name, name, entry, partial(ksm.value, name), write)


def _swap(journal: Journal) -> Iterator[_Item]:
    for name, entry in swap.kept(journal):
        read, write = partial(swap.state, name, journal), partial(swap.put_back, name, journal)
        yield _Item(swap.KIND, name, name, entry, read, write)


def _pci(uri: str, journal: Journal) -> Iterator[_Item]:
    kernel = Kernel()
    with ExitStack() as stack:
        hypervisor = None
        for number, (kind, address, entry) in enumerate(pci.kept(journal)):
            if not number:
                with suppress(KvmctlError):  # without libvirt, there is none to be told
                    hypervisor = stack.enter_context(open_hypervisor(uri))
            read = partial(pci.state, kind, address, journal, kernel)
            write = partial(pci.put_back, kind, address, journal, kernel, hypervisor=hypervisor)
            yield _Item(kind, address, address, entry, read, write)


def _write_ksm(name: str, entry: Entry, journal: Journal, value: str) -> str:
    setting = ksm.put_back(name, entry, journal, force=True)
    if setting.wanted != value:
        raise NotFoundError(f"{name} is nobody's to set: {setting.reason}")
    if setting.result == "not applied":
        raise KvmctlError(setting.reason)
    return setting.found
