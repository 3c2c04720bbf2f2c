"""The doctor's checks of pools and networks, and of what a killed run has left behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from kvmctl.control import move_settle, starts, swap
from kvmctl.control.doctor.check import Check
from kvmctl.host import access, journal, lock
from kvmctl.hypervisor import host
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.wording import argument

_FOLDERS = ("dir", "fs", "netfs")


def pools(hypervisor: Hypervisor, qemu_user: tuple[int, int] | None) -> Iterator[Check]:
    """Whether there is a pool, whether each is active, and whether QEMU gets at its images."""
    found = host.pools(hypervisor)
    if found is None:
        yield Check("pools", "unknown", "this hypervisor has no storage pools")
        return
    if not found:
        hint = "virsh pool-define-as default dir --target /var/lib/libvirt/images && virsh pool-start default"
        yield Check("pools", "warn", "there is no storage pool", "a disk that is a volume needs one", hint)
    for pool in found:
        yield _pool(hypervisor, pool, qemu_user)


def _pool(hypervisor: Hypervisor, pool: host.Pool, qemu_user: tuple[int, int] | None) -> Check:
    name = f"pool {pool.name}"
    if not pool.active:
        return Check(name, "warn", "not active", "it was not started", f"virsh pool-start {pool.name}")
    if not hypervisor.local or pool.kind not in _FOLDERS or not pool.path:
        return Check(name, "ok", f"active ({pool.kind})")
    if not Path(pool.path).is_dir():
        return Check(name, "fail", f"{pool.path} is no folder", "it was removed", f"mkdir -p {pool.path}")
    if qemu_user is None:
        return Check(name, "unknown", f"active ({pool.path})", "which user QEMU runs as is not known")
    # The pool's own folder has to be open too, so ask for something in it.
    closed = access.closed_folder(f"{pool.path}/image", *qemu_user)
    user = access.user_name(qemu_user[0])
    if closed:
        cause = f"QEMU runs as {user}, who may not enter {closed}"
        return Check(name, "fail", f"guests cannot use images in {pool.path}", cause, f"chmod o+x {closed}")
    return Check(name, "ok", f"active, {pool.path} is open to {user}")


def networks(hypervisor: Hypervisor) -> Iterator[Check]:
    """Whether libvirt's networks are active."""
    for network in host.networks(hypervisor) or ():
        name = f"network {network.name}"
        if network.active:
            yield Check(name, "ok", "active")
        else:
            hint = f"virsh net-start {network.name}"
            yield Check(name, "warn", "not active: guests on it cannot start", "it was not started", hint)


def leftovers(uri: str) -> Iterator[Check]:
    """What a run that was killed had begun. A run that goes on now has begun things too."""
    book = journal.Journal()
    intents = book.unfinished()
    for note in book.earlier():
        hint = "kvmctl ksm show and virsh say what is set now; then delete the file that was moved aside"
        yield Check("journal", "warn", "the journal was unusable", note, hint)
    if holder := lock.holder(uri):
        yield Check("unfinished", "ok", f"{holder} is at work now, with {len(intents)} things begun")
        return
    if not intents:
        yield Check("unfinished", "ok", "no run was interrupted")
    yield from map(_leftover, intents)


def _leftover(intent: journal.Intent) -> Check:
    when = datetime.fromtimestamp(intent.time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if intent.kind == starts.INTENT:
        text = f"made and not started yet: {', '.join(intent.data)}"
        cause = f"the start failed, or a run was killed before it, at {when}"
        return Check("unfinished", "warn", text, cause, "kvmctl start NAME, or apply its file again")
    cause = f"a run that began it at {when} was killed"
    if intent.kind == swap.KIND:
        hint = "the same kvmctl swap enable again, or kvmctl swap disable, which also removes other swap of kvmctl's"
        return Check("unfinished", "warn", f"swap {intent.key}", cause, hint)
    if intent.kind == move_settle.INTENT and (begun := move_settle.read(intent.data)):
        text = f"guest {begun.guest} was being moved to {begun.target}"
        return Check("unfinished", "warn", text, cause, "kvmctl migrate NAME HOST --check settles it")
    guest = argument(str(intent.data.get("guest", "GUEST"))) if isinstance(intent.data, dict) else "GUEST"
    hint = {
        "backup": f"the next kvmctl backup {guest} DIR removes it",
        "clone": "the next kvmctl clone removes it",
        "export": f"kvmctl start {guest} lets it go on where it is off; kvmctl list removes what is left",
        "freeze": f"kvmctl list thaws it, and so does virsh domfsthaw {guest}",
        "import": "the next kvmctl import removes what it left, or tells of the guest that it did not start",
        "merge": f"kvmctl snapshot delete {guest} NAME goes on with it",
        "revert": f"kvmctl snapshot list {guest} finishes it",
    }.get(intent.kind, "kvmctl apply -f FILE finishes or names it")
    return Check("unfinished", "warn", f"{intent.kind} {intent.key}", cause, hint)
