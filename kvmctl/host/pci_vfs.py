"""Virtual functions of SR-IOV: their number changed so that a failure or a crash half-way is undone, and a udev rule
that sets it again after a reboot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvmctl.host import pci_nvme
from kvmctl.host.files import read_int, read_permitted, write_atomic
from kvmctl.host.journal import Intent, Journal, boot_id
from kvmctl.host.pci import virtual_functions
from kvmctl.host.pci_bind import Result
from kvmctl.host.pci_kernel import DEVICES, Kernel, exists
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError

KIND = "sriov"
"""The kind of these entries and intents in the journal."""
SECONDS = 120.0
"""Deadline for one write: some drivers set each function up, and wait for each of its drivers."""

_RULES = "etc/udev/rules.d"
_MARK = "# written by kvmctl pci vfs --persist; kvmctl pci vfs {address} 0 --persist removes it\n"
# Writable only once the driver has it: `bind` is when that happens, `add` what is asked again at boot of what was
# bound before udev was there.
_RULE = 'ACTION=="add|bind", SUBSYSTEM=="pci", KERNEL=="{address}", DRIVER=="?*", ATTR{{sriov_numvfs}}="{count}"\n'
_COUNT = re.compile(r'ATTR\{sriov_numvfs\}="(\d+)"')

Persisted = Literal["written", "removed", "unchanged"]


@dataclass(frozen=True, slots=True)
class DoneVfs:
    """What became of the number of virtual functions of one device, and their addresses in the order of its links."""

    address: str
    old: int
    wanted: int
    found: int
    result: Result
    vfs: tuple[str, ...]
    persistent: int | None
    """How many udev makes after a reboot; None without a rule of kvmctl's."""


def number(address: str, root: Path) -> int:
    """How many virtual functions it has. Raises NotFoundError where it is gone, or has no SR-IOV."""
    found = read_int(root / DEVICES / address / "sriov_numvfs")
    if found is None:
        raise NotFoundError(f"{address} has no SR-IOV, or is gone", "kvmctl pci list shows the devices")
    return found


def change(address: str, count: int, journal: Journal, kernel: Kernel) -> int:
    """Give the device `count` virtual functions; the number that it has then.

    On any failure the former number is put back. Raises KvmctlError.
    """
    old = number(address, kernel.root)
    entry = journal.entries(KIND).get(address)
    journal.begin(KIND, address, {"old": old, "new": count, "known": entry is not None, "boot": boot_id()})
    try:
        journal.record(KIND, address, old, count)
        _set(address, count, kernel)
        if entry is not None and entry.old == count:
            journal.forget(KIND, address)
        journal.done(KIND, address)
    except BaseException as error:
        said = _undo(address, old, entry is not None, journal, kernel)
        if said and isinstance(error, KvmctlError):
            text = f"{error.message}; and {old} could not be put back: {said}"
            raise type(error)(text, "kvmctl host restore tries again") from error
        raise
    return count


def _set(address: str, count: int, kernel: Kernel) -> None:
    """From one number to another the kernel goes only by 0."""
    path = f"{DEVICES}/{address}/sriov_numvfs"
    now = number(address, kernel.root)
    if now == count:
        return
    if now:
        kernel.write(path, "0", SECONDS)
    if count and pci_nvme.is_controller(address, kernel.root):
        _make_of_nvme(address, count, kernel)
    elif count:
        kernel.write(path, str(count), SECONDS)
    found, links = number(address, kernel.root), len(virtual_functions(address, kernel.root))
    if found != count or links != count:
        raise KvmctlError(
            f"{address} has {found} virtual functions, and links to {links}, after {count} was set",
            f"see why: dmesg | grep {address}",
        )


def _make_of_nvme(address: str, count: int, kernel: Kernel) -> None:
    """NVMe functions answer no driver until they have queues; nor does the host want these further ways to a disk
    that it has, so they stay without one."""
    folder = f"{DEVICES}/{address}"
    was = pci_nvme.autoprobe(address, kernel.root)
    if was:
        kernel.write(f"{folder}/sriov_drivers_autoprobe", "0")
    try:
        kernel.write(f"{folder}/sriov_numvfs", str(count), SECONDS)
    finally:
        if was:
            kernel.write(f"{folder}/sriov_drivers_autoprobe", "1")
    pci_nvme.bring_online(address, count, kernel)


def _undo(address: str, old: int, known: bool, journal: Journal, kernel: Kernel) -> str:
    """Put the number back; why not, where that fails. What is undone is no longer in the journal."""
    try:
        if exists(address, kernel.root):
            _set(address, old, kernel)
        if known:
            journal.record(KIND, address, old, old)
        elif address in journal.entries(KIND):
            journal.forget(KIND, address)
        journal.done(KIND, address)
    except KvmctlError as error:
        return error.message
    return ""


def put_back(address: str, count: int, kernel: Kernel) -> int:
    """The number from before kvmctl, for `host restore`; the number that it has then. Raises KvmctlError."""
    _set(address, count, kernel)
    return number(address, kernel.root)


def recover(journal: Journal, kernel: Kernel) -> list[str]:
    """Finish or undo what a run that was killed had begun; a sentence on each."""
    return [_recover(intent, journal, kernel) for intent in journal.unfinished(KIND)]


def _recover(intent: Intent, journal: Journal, kernel: Kernel) -> str:
    address, data = intent.key, intent.data
    said = f"a run that was interrupted had begun to give {address} {data['new']} virtual functions"
    if data["boot"] != boot_id() or not exists(address, kernel.root):
        journal.done(KIND, address)
        return f"{said}: that is gone since"
    if _is_done(address, data, kernel):
        journal.done(KIND, address)
        return f"{said}: it has them"
    failure = _undo(address, data["old"], data["known"], journal, kernel)
    return f"{said}, and {data['old']} cannot be put back: {failure}" if failure else f"{said}: that is undone"


def _is_done(address: str, data: dict[str, Any], kernel: Kernel) -> bool:
    return bool(number(address, kernel.root) == data["new"] != data["old"])


def _rule_file(address: str, root: Path) -> Path:
    return root / _RULES / f"70-kvmctl-sriov-{address}.rules"


def persistent(address: str, root: Path) -> int | None:
    """How many virtual functions kvmctl's udev rule makes at boot; None where there is none."""
    text = read_permitted(_rule_file(address, root)) or ""
    found = _COUNT.search(text)
    return int(found[1]) if found and text.startswith(_MARK.partition("{")[0]) else None


def check_rule(address: str, count: int, root: Path) -> None:
    """Raise RefusedError on a host without udev's folder, and for functions that need more than a number; ConflictError
    where a file of that name is not kvmctl's."""
    path = _rule_file(address, root)
    if count and pci_nvme.is_controller(address, root):
        raise RefusedError(
            f"the virtual functions of {address} need queues as well, which udev does not give them",
            f"leave out --persist, and have kvmctl pci vfs {address} {count} run at boot",
        )
    if not path.parent.is_dir():
        raise RefusedError(f"there is no {path.parent}, so nothing can be done at boot", "leave out --persist")
    text = read_permitted(path)
    if text is not None and not text.startswith(_MARK.partition("{")[0]):
        raise ConflictError(f"{path} is not kvmctl's, so it is left alone", "delete it if nothing needs it")


def persist(address: str, count: int, root: Path) -> Persisted:
    """Have udev give the device `count` virtual functions at boot, or with 0 leave it alone. Raises as `check_rule`,
    and KvmctlError where the file cannot be written."""
    check_rule(address, count, root)
    path, text = _rule_file(address, root), _MARK.format(address=address) + _RULE.format(address=address, count=count)
    if read_permitted(path) == (text if count else None):
        return "unchanged"
    if count:
        write_atomic(path, text, 0o644)
        return "written"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KvmctlError(f"cannot delete {path}: {error.strerror}", f"look at it: ls -la {path.parent}") from error
    return "removed"
