"""Kernel same-page merging: /sys/kernel/mm/ksm read, and written so that it can be put back.

Every value is journaled before it is changed. A value that is no longer what kvmctl wrote was changed
by someone else, and is left as it is unless the caller says otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvmctl.host import daemons, memory
from kvmctl.host.files import PAGE_SIZE, read_int, read_permitted, write_kernel
from kvmctl.host.journal import Entry, Journal
from kvmctl.model.errors import KvmctlError, RefusedError, UnreachableError
from kvmctl.model.host_sample import KsmSample
from kvmctl.model.units import human_size

ROOT = Path("/sys/kernel/mm/ksm")
KIND = "ksm"
"""The kind of these entries in the journal."""

PAGES_TO_SCAN = 1000
"""Where the kernel has no advisor: with 20 ms of sleep 200 MB a second and about a quarter of a core while
there is something to merge. The kernel's own 100 take minutes to merge anything between guests."""
SLEEP_MILLISECS = 20

NODES = "merge_across_nodes"

_STOP, _MERGE, _UNMERGE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class KsmSettings:
    """What `enable` is to write. None is the default where the kernel has the file, and gives way to a
    foreign change; a value that is given does not."""

    pages_to_scan: int | None = None
    """Pages a round; setting it turns the kernel's advisor off, which would set it itself."""
    sleep_millisecs: int | None = None
    merge_across_nodes: bool | None = None
    """Whether pages of different NUMA nodes merge; to change it, all that is merged is taken apart first."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One file of /sys/kernel/mm/ksm after it was to be written: `old`, `wanted` and what it was `found` to hold."""

    file: str
    old: str
    wanted: str
    found: str
    reason: str = ""
    """Why `found` is not `wanted`, or what else is to be said."""
    respected: bool = False
    """Somebody else's change, left alone on purpose."""

    @property
    def result(self) -> Literal["changed", "unchanged", "not applied"]:
        """In the words of every report."""
        if self.found != self.wanted:
            return "not applied"
        return "unchanged" if self.old == self.found else "changed"


def sample(root: Path = ROOT) -> KsmSample | None:
    """KSM's settings and counters; None where this kernel has no KSM."""
    run = read_int(root / "run")
    if run is None:
        return None
    return KsmSample(
        run=run,
        pages_to_scan=_count(root, "pages_to_scan"),
        sleep_millisecs=_count(root, "sleep_millisecs"),
        merge_across_nodes=read_int(root / "merge_across_nodes"),
        full_scans=_count(root, "full_scans"),
        pages_shared=_count(root, "pages_shared"),
        pages_sharing=_count(root, "pages_sharing"),
        pages_unshared=_count(root, "pages_unshared"),
        pages_volatile=_count(root, "pages_volatile"),
        general_profit=read_int(root / "general_profit"),
        use_zero_pages=read_int(root / "use_zero_pages"),
        ksm_zero_pages=read_int(root / "ksm_zero_pages"),
        smart_scan=read_int(root / "smart_scan"),
        advisor_mode=_value(root, "advisor_mode"),
    )


def managers() -> list[str]:
    """Other programs that set KSM on this host: they may change what kvmctl has set."""
    active = [unit for unit in ("ksm.service", "ksmtuned.service") if daemons.unit_is_active(unit)]
    if "ksmtuned.service" not in active:
        active += daemons.running(("ksmtuned",))
    return active


def _count(root: Path, name: str) -> int:
    """A figure that every kernel with KSM has."""
    value = read_int(root / name)
    if value is None:
        raise KvmctlError(f"{root / name} holds no number")
    return value


def _value(root: Path, name: str) -> str | None:
    """What a file holds; of a choice such as `[none] scan-time`, the chosen word."""
    text = read_permitted(root / name)
    if text is None:
        return None
    before, bracket, after = text.strip().partition("[")
    return after.partition("]")[0] if bracket else before


def enable(settings: KsmSettings, journal: Journal, force: bool = False, root: Path = ROOT) -> list[Setting]:
    """Let the kernel merge equal pages, and read back what it took.

    `force` overrides foreign changes of what `settings` leaves to the defaults. Raises RefusedError where
    this kernel has no KSM or too little memory is there for taking apart what is merged, UnreachableError for who may
    not change it.
    """
    _check(root)
    done = []
    if settings.merge_across_nodes is not None:
        done.append(_merge_across(settings.merge_across_nodes, journal, root))
    asked = {"run", *(name for name in ("pages_to_scan", "sleep_millisecs") if getattr(settings, name) is not None)}
    asked |= {"advisor_mode"} if settings.pages_to_scan is not None else set()
    entries = journal.entries(KIND)
    for name, wanted in _wanted(settings, root).items():
        present = _value(root, name)
        if present is None:
            continue
        entry = entries.get(name)
        foreign = entry is not None and present not in (entry.new, wanted)
        if foreign and entry and name not in asked and not force:
            done.append(Setting(name, present, wanted, present, _foreign(present, entry), respected=True))
            continue
        if present != wanted and name == "advisor_mode":
            # The kernel sets pages_to_scan anew whenever the advisor is switched.
            journal.record(KIND, "pages_to_scan", _value(root, "pages_to_scan"), None)
        setting = write(root, name, present, wanted, journal)
        if foreign and entry and not setting.reason:
            setting = replace(setting, reason=f"kvmctl had written {entry.new}, and someone else {present}")
        done.append(setting)
    return done


def _merge_across(wanted: bool, journal: Journal, root: Path) -> Setting:
    """Have pages of different nodes merge or not, before `run` is set. Raises RefusedError, with nothing changed."""
    present, entry = _value(root, NODES), journal.entries(KIND).get(NODES)
    if present is None:
        said = f"this kernel has no NUMA nodes to tell apart ({root / NODES} does not exist)"
        if not wanted:
            raise RefusedError(f"{said}, so pages merge wherever they are", "leave --no-merge-across-nodes out")
        return Setting(NODES, "1", "1", "1", said)
    setting = _set_nodes(present, str(int(wanted)), journal, root)
    if entry is not None and entry.new is not None and present != entry.new and not setting.reason:
        return replace(setting, reason=f"kvmctl had written {entry.new}, and someone else {present}")
    return setting


def _set_nodes(present: str, wanted: str, journal: Journal | None, root: Path) -> Setting:
    """The kernel takes it only while nothing is merged (Documentation/admin-guide/mm/ksm.rst): leaves `run` at 2 where
    anything was to be changed. Raises RefusedError unless all that is merged fits in memory."""
    if present == wanted:
        return Setting(NODES, present, wanted, present)
    _check_unmerge(root)
    stopped = write(root, "run", _value(root, "run") or "", str(_UNMERGE), journal)
    if stopped.result == "not applied":
        return Setting(NODES, present, wanted, present, f"what is merged could not be taken apart: {stopped.reason}")
    return write(root, NODES, present, wanted, journal)


def _check(root: Path) -> None:
    if not (root / "run").exists():
        raise RefusedError(f"this kernel has no KSM: {root} does not exist", "boot a kernel built with CONFIG_KSM")
    if not os.access(root / "run", os.W_OK):
        raise UnreachableError(f"you may not write to {root / 'run'}", "run this as root")


def _wanted(settings: KsmSettings, root: Path) -> dict[str, str]:
    """The files to write, in this order: the advisor decides who sets pages_to_scan, and `run` comes last."""
    wanted: dict[str, str] = {}
    advised = (root / "advisor_mode").exists() and settings.pages_to_scan is None
    wanted["advisor_mode"] = "scan-time" if advised else "none"
    if not advised:
        wanted["pages_to_scan"] = str(settings.pages_to_scan or PAGES_TO_SCAN)
    wanted["sleep_millisecs"] = str(settings.sleep_millisecs or SLEEP_MILLISECS)
    if (root / "ksm_zero_pages").exists():
        # Before Linux counted them, merged zero pages could not be told from others or taken apart again.
        wanted["use_zero_pages"] = "1"
    wanted["smart_scan"] = "1"
    wanted["run"] = str(_MERGE)
    return wanted


def _foreign(present: str, entry: Entry) -> str:
    return f"kvmctl had written {entry.new} (it was {entry.old} before), and someone else {present}: --force overrides"


def write(root: Path, name: str, present: str, wanted: str, journal: Journal | None = None) -> Setting:
    """Write one file, recorded before where a journal is given, and read it back."""
    if present == wanted:
        return Setting(name, present, wanted, present)
    if journal:
        journal.record(KIND, name, present, wanted)
    try:
        write_kernel(root / name, wanted)
    except KvmctlError as error:
        return Setting(name, present, wanted, _value(root, name) or present, error.message)
    found = _value(root, name) or ""
    return Setting(name, present, wanted, found, "" if found == wanted else f"the kernel holds {found} instead")


def disable(journal: Journal, unmerge: bool = False, force: bool = False, root: Path = ROOT) -> list[Setting]:
    """Stop merging, and put back what `enable` changed.

    Merged pages stay merged until they are written to; `unmerge` gives every guest its own again. `run`
    goes back to what it was before `enable`, and to 0 where somebody else had set it to 1. Raises
    RefusedError where unmerging needs more memory than there is.
    """
    _check(root)
    entries = journal.entries(KIND)
    last = str(entries["run"].old) if "run" in entries else str(_STOP)
    present = _value(root, "run") or ""
    if unmerge or last == str(_UNMERGE):
        _check_unmerge(root)
        undone = write(root, "run", present, str(_UNMERGE))
        if undone.result == "not applied":
            return [undone]
    written = write(root, "run", _value(root, "run") or "", last)
    done = [Setting("run", present, last, written.found, written.reason)]
    journal.forget(KIND, "run")
    done += [put_back(name, entries[name], journal, force, root) for name in _order(entries) if name != "run"]
    return done


def value(name: str, root: Path = ROOT) -> str:
    """What a file holds now; of a choice, the chosen word."""
    return _value(root, name) or ""


def changed(journal: Journal) -> dict[str, Entry]:
    """What `enable` changed, by file, in the order to put it back in."""
    entries = journal.entries(KIND)
    return {name: entries[name] for name in _order(entries)}


def _order(entries: dict[str, Entry]) -> list[str]:
    """`run` first, then the advisor: as long as it is on, it sets pages_to_scan itself."""
    return sorted(entries, key=lambda name: (name != "run", name != "advisor_mode", name))


def put_back(name: str, entry: Entry, journal: Journal, force: bool = False, root: Path = ROOT) -> Setting:
    """Put back what one file held before `enable`, unless somebody else has changed it since.

    Raises RefusedError where that means to unmerge, and there is too little memory.
    """
    present, old = _value(root, name) or "", str(entry.old)
    if name == "pages_to_scan" and _value(root, "advisor_mode") == "scan-time":
        journal.forget(KIND, name)
        return Setting(name, present, present, present, "the kernel's advisor sets it")
    if entry.new is not None and present not in (entry.new, old) and not force:
        return Setting(name, present, old, present, _foreign(present, entry), respected=True)
    if name == "run" and old == str(_UNMERGE) and present != old:
        _check_unmerge(root)
    setting = _put_nodes_back(present, old, root) if name == NODES else write(root, name, present, old)
    if setting.result != "not applied":
        journal.forget(KIND, name)
    return setting


def _put_nodes_back(present: str, old: str, root: Path) -> Setting:
    run = _value(root, "run") or ""
    try:
        setting = _set_nodes(present, old, None, root)
    except RefusedError as error:
        return Setting(NODES, present, old, present, error.message)
    write(root, "run", _value(root, "run") or "", run)
    return setting


def _check_unmerge(root: Path) -> None:
    """Raises RefusedError unless every merged page can have memory of its own."""
    found = sample(root)
    pages = 0 if found is None else found.pages_sharing + (found.ksm_zero_pages or 0)
    needed, available = pages * PAGE_SIZE, memory.left_for_guests(memory.read())
    if needed > available:
        raise RefusedError(
            f"unmerging needs {human_size(needed)} ({pages} pages of {PAGE_SIZE} bytes), "
            f"and {human_size(available)} are available: {human_size(needed - available)} too little",
            "stop or shrink a guest first, or disable without --unmerge: merged pages then stay merged",
        )
