"""The images of external snapshots: overlays merged into what they overlay, or begun anew.

libvirt 9.0 makes such snapshots and can neither delete them nor go back to them, so that is done here: in steps
each of which leaves the guest whole, and with a note in the journal of those that a killed run would leave undone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmctl.control import chains
from kvmctl.control.guarded import LOCK_WAIT
from kvmctl.control.wait import until
from kvmctl.host import qemu_img
from kvmctl.host.files import stamp
from kvmctl.host.journal import Journal
from kvmctl.host.lock import lock
from kvmctl.host.qemu_img import Image
from kvmctl.hypervisor import backups, domains, snapshots, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError
from kvmctl.model.guest_disk import GuestFacts, Snapshot
from kvmctl.model.wording import argument
from kvmctl.xml.images import images
from kvmctl.xml.snapshot import with_sources

MERGE = "merge"
"""The journal's word for an overlay that is merged and then deleted; its key is the path."""
REVERT = "revert"
"""And for overlays that are to be replaced by empty ones; its key is the guest's UUID."""
_READY = 600.0
"""Seconds for QEMU to be ready to pivot once everything is copied."""

Progress = Callable[[str, float], None]


def merge(
    hypervisor: Hypervisor,
    domain: Any,
    facts: GuestFacts,
    snapshot: Snapshot,
    warn: Callable[[str], None],
    progress: Progress,
) -> None:
    """Merge each overlay of an external snapshot into what it overlays. Can be done again where it was cut off.

    Raises RefusedError where another image or guest needs what would be written to; nothing is changed then.
    """
    disks = {disk.target: disk for disk in facts.disks}
    known = chains.read(hypervisor)
    todo: list[tuple[str, list[Image], int]] = []
    for target, overlay in snapshot.overlays:
        disk = disks.get(target)
        chain = qemu_img.chain(disk.path, disk.format) if disk and disk.path else []
        index = next((n for n, one in enumerate(chain) if one.path == overlay), None)
        if index is None:
            _drop_merged(overlay, known, facts.name, warn)
            continue
        _check(chain, index, known, facts.name, snapshot.name)
        todo.append((target, chain, index))
    journal = Journal()
    for target, chain, index in todo:
        overlay = chain[index].path
        journal.begin(MERGE, overlay, {"guest": facts.name, "uri": hypervisor.uri})
        if facts.active:
            _commit_live(domain, target, chain, index, progress)
        else:
            _commit_off(hypervisor, domain, facts, target, chain, index)
        _unlink(hypervisor, overlay)
        journal.done(MERGE, overlay)


def _check(chain: list[Image], index: int, known: chains.Chains, guest: str, snapshot: str) -> None:
    if index + 1 == len(chain):
        raise KvmctlError(f"{chain[index].path} overlays nothing, so snapshot {snapshot} is not what it was")
    overlay, base = chain[index], chain[index + 1]
    if overlay.snapshots:
        raise RefusedError(
            f"{overlay.path} holds snapshots within it ({', '.join(overlay.snapshots)}), which a merge would lose",
            "delete those first",
        )
    above = [chain[index - 1].path] if index else []
    known.refuse_shared(overlay.path, above, guest, f"{overlay.path} would be deleted")
    known.refuse_shared(base.path, [overlay.path], guest, f"{base.path} would be written to")


def _drop_merged(overlay: str, known: chains.Chains, guest: str, warn: Callable[[str], None]) -> None:
    """An overlay that the guest does not use: merged by a run that was cut off before it deleted it, or not ours."""
    journal = Journal()
    if not Path(overlay).exists():
        journal.done(MERGE, overlay)
    elif any(intent.key == overlay for intent in journal.unfinished(MERGE)):
        known.refuse_shared(overlay, [], guest, f"{overlay} would be deleted")
        Path(overlay).unlink(missing_ok=True)
        journal.done(MERGE, overlay)
    else:
        warn(f"{overlay} is left where it is: guest {guest} does not use it, and what is in it was not merged")


def _commit_live(domain: Any, target: str, chain: list[Image], index: int, progress: Progress) -> None:
    top = chain[index].path if index else None
    if snapshots.job(domain, target) is None:  # a run that was killed has left one running, maybe
        snapshots.begin_commit(domain, target, chain[index + 1].path, top)
    try:
        while (job := snapshots.job(domain, target)) is not None and (top or job[0] < job[1]):
            progress(target, job[0] / job[1] if job[1] else 0.0)
            until(lambda: snapshots.job(domain, target), lambda now: now != job, 1.0, 0.1)
        if top is None and not until(lambda: snapshots.pivot(domain, target), bool, _READY):
            raise KvmctlError(f"QEMU does not come to an end with the merge of disk {target}", "try again later")
    except BaseException:
        if snapshots.job(domain, target) is not None:
            snapshots.abort(domain, target)
        raise
    found = [one.path for one in qemu_img.chain(*_current(domain, target))]
    if chain[index].path in found:
        raise KvmctlError(
            f"disk {target} of guest {domain.name()} still uses {chain[index].path}",
            "libvirt's log has the reason; nothing was lost, and deleting the snapshot again goes on",
        )


def _current(domain: Any, target: str) -> tuple[str, str]:
    from kvmctl.xml.snapshot import facts

    read = facts(domains.live_definition(domain), None, domain.name(), domain.UUIDString(), "running")
    return next((disk.path or "", disk.format) for disk in read.disks if disk.target == target)


def _commit_off(
    hypervisor: Hypervisor, domain: Any, facts: GuestFacts, target: str, chain: list[Image], index: int
) -> None:
    overlay, base = chain[index], chain[index + 1]
    # Bitmaps of checkpoints do not go through a merge that QEMU's guest process does not make.
    forget_checkpoints(hypervisor, domain, facts)
    qemu_img.commit(overlay.path, overlay.format)
    merged = stamp(overlay.path)
    qemu_img.sync(base.path)
    if index:
        qemu_img.rebase_unchecked(chain[index - 1].path, base.path, base.format)
        qemu_img.sync(chain[index - 1].path)
        return
    with lock(hypervisor.uri, LOCK_WAIT):
        # Nothing kept it from being started since QEMU's tool has let go of the images.
        if domains.state(domain) not in ("stopped", "crashed") or stamp(overlay.path) != merged:
            raise _started(facts.name, overlay.path)
        definition = domains.definition(domain, secure=True)
        domains.define(hypervisor, domain.name(), with_sources(definition, {target: (base.path, base.format)}))
        # Others do not take our lock: what is started from now on has the new definition, but one may be on already.
        if overlay.path in images(domains.live_definition(domain)):
            domains.define(hypervisor, domain.name(), definition)
            raise _started(facts.name, overlay.path)


def _started(guest: str, overlay: str) -> ConflictError:
    return ConflictError(
        f"guest {guest} was started while {overlay} was being merged, and writes to it: nothing was lost",
        "delete the snapshot again: it is merged while the guest runs",
    )


def _unlink(hypervisor: Hypervisor, path: str) -> None:
    if storage.by_path(hypervisor, path):
        storage.delete(hypervisor, path)
    else:
        with suppress(FileNotFoundError):
            Path(path).unlink()


def prepare(hypervisor: Hypervisor, facts: GuestFacts, to: Snapshot) -> list[tuple[str, str]]:
    """Make empty overlays beside those of a snapshot: (new path, path that it is to have).

    Raises RefusedError where others need what would be replaced; nothing is there then.
    """
    if not hypervisor.local:
        raise RefusedError(f"{hypervisor.uri} is another machine", "run kvmctl there")
    known = chains.read(hypervisor)
    paths = {disk.target: disk.path for disk in facts.disks}
    renames: list[tuple[str, str]] = []
    try:
        for target, overlay in to.overlays:
            if paths.get(target) != overlay:
                raise RefusedError(
                    f"disk {target} of guest {facts.name} is {paths.get(target)} by now, not {overlay}",
                    "virsh snapshot-dumpxml shows what the snapshot is of",
                )
            known.refuse_shared(overlay, [], facts.name, f"{overlay} would begin anew")
            base = qemu_img.chain(overlay, "qcow2")[1]
            new = f"{overlay}.new"
            Path(new).unlink(missing_ok=True)
            renames.append((new, overlay))
            qemu_img.create_overlay(new, base.path, base.format)
            Path(new).chmod(0o600)
            qemu_img.sync(new)
    except BaseException:
        for new, _overlay in renames:
            Path(new).unlink(missing_ok=True)
        raise
    return renames


def replace(hypervisor: Hypervisor, facts: GuestFacts, renames: list[tuple[str, str]]) -> None:
    """Let the prepared overlays be those of a guest that is off: all of them, if need be by the next run."""
    Journal().begin(REVERT, facts.uuid, {"guest": facts.name, "uri": hypervisor.uri, "renames": renames})
    _replace(facts.uuid, renames)


def _replace(uuid: str, renames: list[tuple[str, str]]) -> None:
    for new, overlay in renames:
        if Path(new).exists():
            Path(new).replace(overlay)
            qemu_img.sync(str(Path(overlay).parent))
    Journal().done(REVERT, uuid)


def recover(hypervisor: Hypervisor, domain: Any) -> None:
    """Finish a revert of this guest that was cut off between two disks, where a killed run has left that.

    Raises ConflictError where it runs since.
    """
    for intent in Journal().unfinished(REVERT):
        if intent.key != domain.UUIDString() or intent.data.get("uri") != hypervisor.uri:
            continue
        if domains.state(domain) not in ("stopped", "crashed"):
            raise ConflictError(
                f"a run that reverted guest {domain.name()} was killed between two of its disks, and it runs since",
                f"kvmctl stop {argument(domain.name())}, then kvmctl snapshot list finishes it",
            )
        _replace(intent.key, [(new, overlay) for new, overlay in intent.data["renames"]])


def _qcow2(facts: GuestFacts) -> list[str]:
    """Every qcow2 image of a guest, those below its disks included."""
    chains_ = [qemu_img.chain(disk.path, disk.format) for disk in facts.disks if disk.path]
    return [image.path for chain in chains_ for image in chain if image.format == "qcow2"]


def forget_checkpoints(hypervisor: Hypervisor, domain: Any, facts: GuestFacts, only: str | None = None) -> list[str]:
    """Drop every checkpoint of a guest, or one, with the bitmaps in its images: the names of those that there were."""
    names = [name for name in backups.checkpoints(domain) if only in (None, name)]
    off = domains.state(domain) in ("stopped", "crashed")
    images = _qcow2(facts) if names and off and hypervisor.local else []
    for name in reversed(names):
        if not off:
            backups.delete_checkpoint(domain, name)
            continue
        for path in images:
            if Path(path).is_file() and name in qemu_img.image(path, "qcow2").bitmaps:
                qemu_img.remove_bitmap(path, name)
        backups.forget_checkpoint(domain, name)
    return names


def refuse_half_merged(snapshot: Snapshot, guest: str) -> None:
    """Raise RefusedError where a merge of an overlay of the snapshot was cut off: what it overlays is then of two
    moments, and reads as one of them only with the overlay as it is."""
    begun = {intent.key for intent in Journal().unfinished(MERGE)}
    if half := [path for _target, path in snapshot.overlays if path in begun]:
        raise RefusedError(
            f"a run that merged {', '.join(half)} was cut off, so what snapshot {snapshot.name} kept is there no more",
            f"kvmctl snapshot delete {argument(guest)} {snapshot.name} goes on with it; nothing of the guest is lost",
        )


def merging(guest: str, uri: str) -> list[str]:
    """The overlays of a guest whose merge was begun and not finished."""
    mine = {"guest": guest, "uri": uri}
    return [intent.key for intent in Journal().unfinished(MERGE) if intent.data == mine]
