"""Kernel same-page merging switched on, and put back. It is the kernel's, and needs no libvirt."""

from __future__ import annotations

from collections.abc import Sequence

from kvmctl.host import ksm, lock
from kvmctl.host.journal import Journal
from kvmctl.hypervisor.uri import is_local, meant
from kvmctl.model.errors import RefusedError
from kvmctl.policy.ksm import saved

_LOCK_SECONDS = 10.0


def refuse_other_machine(uri: str | None) -> None:
    """Raise RefusedError where `uri`, or LIBVIRT_DEFAULT_URI, names a hypervisor that is not on this machine."""
    named = meant(uri)
    if not is_local(named):
        raise RefusedError(
            f"{named} is not on this machine, and a kernel's KSM can only be changed on its own", "run kvmctl there"
        )


def enable(settings: ksm.KsmSettings, force: bool) -> tuple[list[ksm.Setting], list[str]]:
    """Switch merging on. What became of each setting, and sentences for the user."""
    with lock.lock(lock.HOST, _LOCK_SECONDS):
        journal = Journal()
        settled = ksm.enable(settings, journal, force)
    return settled, _manager_notes()


def disable(unmerge: bool, force: bool) -> tuple[list[ksm.Setting], list[str]]:
    """Put back what was before kvmctl. What became of each setting, and sentences for the user."""
    with lock.lock(lock.HOST, _LOCK_SECONDS):
        journal = Journal()
        settled = ksm.disable(journal, unmerge, force)
    notes = _manager_notes()
    left = ksm.sample()
    if left and saved(left) and left.run == 0:
        notes.append(f"{left.pages_sharing} pages stay merged until they are written to; --unmerge takes them apart")
    return settled, notes


def _manager_notes() -> list[str]:
    return [f"{name} is active, and may change these settings again: stop it" for name in ksm.managers()]


def failed(settled: Sequence[ksm.Setting]) -> list[ksm.Setting]:
    """What the kernel did not take. A foreign change that was left alone is no failure."""
    return [setting for setting in settled if setting.result == "not applied" and not setting.respected]
