"""Snapshots of a guest: taken, listed, gone back to and dropped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmctl.control import snapshot_images
from kvmctl.control.admit import admit_revert
from kvmctl.control.freeze import noted
from kvmctl.control.guarded import LOCK_WAIT, guarded
from kvmctl.control.select import Guest
from kvmctl.host.lock import lock
from kvmctl.hypervisor import backups, domains, snapshots
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import ConflictError, KvmctlError, LockedError, RefusedError
from kvmctl.model.guest_disk import GuestFacts, Snapshot
from kvmctl.model.wording import argument, quoted
from kvmctl.policy import snapshots as policy
from kvmctl.xml import snapshot as xml

Warn = Callable[[str], None]

FROZEN = "its file systems were frozen by the agent in it"
UNFROZEN = "its file systems were not frozen, since no agent in it answers: as after a power cut"
WHOLE = "its memory and its disks at one moment"
OFF = "it is off"


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that was taken, and what its disks are like."""

    snapshot: Snapshot
    consistency: str


def lock_of(domain: Any) -> str:
    """The name of the lock that a guest's images are changed under: what takes long must not hold up every guest."""
    return f"guest-{domain.UUIDString()}"


def facts_of(domain: Any) -> GuestFacts:
    """What of a guest decides how its state can be kept."""
    state = domains.state(domain)
    live = domains.live_definition(domain) if state not in ("stopped", "crashed") else None
    return xml.facts(domains.definition(domain), live, domain.name(), domain.UUIDString(), state)


def existing(domain: Any) -> list[Snapshot]:
    """The snapshots of a guest, in no order."""
    return [xml.snapshot(text, current) for text, current in snapshots.all_of(domain)]


def create(
    hypervisor: Hypervisor, guest: Guest, name: str | None, memory: bool | None, description: str, warn: Warn
) -> Taken:
    """Take a snapshot of the guest as it is now, with its memory, without, or (None) as it has some.

    Raises UsageError, ConflictError, RefusedError; nothing is changed then.
    """
    name = policy.check_snapshot_name(name or time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
    with lock(lock_of(guest[1]), LOCK_WAIT):
        return take(hypervisor, guest, name, memory, description, warn)


def take(
    hypervisor: Hypervisor,
    guest: Guest,
    name: str,
    memory: bool | None,
    description: str,
    warn: Warn,
    overlay: bool = False,
) -> Taken:
    """As `create`, by who holds the guest's lock already; with `overlay` the images are left as they are from now."""
    sample, domain = guest
    snapshot_images.recover(hypervisor, domain)
    facts, known = facts_of(domain), existing(domain)
    if name in {one.name for one in known}:
        raise ConflictError(f"guest {sample.name} has a snapshot {quoted(name)} already", "choose another name")
    if not domains.is_persistent(domain):
        raise RefusedError(f"guest {sample.name} is transient: its snapshots would end with it", "define it first")
    recipe = policy.choose(facts, memory, known, overlay)
    if recipe.memory:
        # It takes as long as memory is large, and changes no definition.
        snapshots.create(domain, xml.render_snapshot(name, description, True, None, facts.skipped), False, False)
        consistency = WHOLE
    else:
        with lock(hypervisor.uri, LOCK_WAIT):
            consistency = _take_disks(hypervisor, domain, facts, name, description, recipe.kind == "external", warn)
    return Taken(policy.find(name, sample.name, existing(domain)), consistency)


def _take_disks(
    hypervisor: Hypervisor, domain: Any, facts: GuestFacts, name: str, description: str, external: bool, warn: Warn
) -> str:
    overlays: dict[str, str] | None = None
    if external:
        overlays = {
            disk.target: policy.overlay_path(facts.name, disk.target, name, disk.path or "") for disk in facts.disks
        }
        for path in overlays.values():
            if os.path.lexists(path):
                raise ConflictError(f"{path} exists already", "choose another name for the snapshot")
    if not facts.active and (held := backups.checkpoints(domain)):
        raise RefusedError(
            f"guest {facts.name} is off and has checkpoints of backups ({', '.join(held)}), and libvirt takes no "
            "snapshot of such a one",
            f"kvmctl start --paused {argument(facts.name)} first",
        )
    text = xml.render_snapshot(name, description, False, overlays, facts.skipped)
    if facts.agent and facts.state == "running":
        try:
            # libvirt freezes and thaws it, and so outlives us; but nobody thaws it where libvirt is killed.
            with noted(hypervisor, domain):
                snapshots.create(domain, text, external, quiesce=True)
        except KvmctlError as error:
            warn(f"{error.message}; so it is taken without that")
        else:
            return FROZEN
    snapshots.create(domain, text, external, quiesce=False)
    return UNFROZEN if facts.active else OFF


@dataclass(frozen=True, slots=True)
class Return:
    """A guest that is to go back to a snapshot: checked, not yet done."""

    guest: Guest
    facts: GuestFacts
    to: Snapshot
    definition: str | None
    """The one that the guest gets back; None where it keeps its own."""


def plan_revert(guest: Guest, name: str, force: bool) -> Return:
    """Check that the guest can go back to a snapshot. Raises NotFoundError, ConflictError, RefusedError."""
    sample, domain = guest
    facts, known = facts_of(domain), existing(domain)
    to = policy.find(name, sample.name, known)
    off = GuestFacts(facts.name, facts.uuid, "stopped", facts.disks)
    policy.check_revert(off if force else facts, to, known)
    snapshot_images.refuse_half_merged(to, sample.name)
    if not facts.active and domains.has_saved_state(domain):
        raise ConflictError(
            f"guest {sample.name} was saved by libvirt with its memory, which would go on with other disks",
            f"kvmctl start it first, or virsh managedsave-remove {argument(sample.name)}",
        )
    definition = snapshots.definition_of(domain, name) if to.kind == "internal" else None
    return Return(guest, facts, to, definition)


def revert(hypervisor: Hypervisor, plan: Return, force: bool, warn: Warn) -> str:
    """Go back; the guest's state after that. Its state until now is lost. Raises KvmctlError."""
    (sample, domain), to = plan.guest, plan.to
    with lock(lock_of(domain), LOCK_WAIT), guarded(hypervisor, warn):
        snapshot_images.recover(hypervisor, domain)
        plan = plan_revert(plan.guest, to.name, force)  # somebody may have started it while its owner was asked
        if plan.definition is not None and to.state != "stopped":
            admit_revert(hypervisor, sample.name, plan.definition, not plan.facts.active, force, warn)
        if to.kind == "external":
            renames = snapshot_images.prepare(hypervisor, plan.facts, to)
            if domains.state(domain) not in ("stopped", "crashed"):
                domains.power_off(domain)
            snapshot_images.replace(hypervisor, plan.facts, renames)
        # What was written since a checkpoint is not what was undone, and QEMU does not go back while it keeps account.
        if gone := snapshot_images.forget_checkpoints(hypervisor, domain, plan.facts):
            warn(f"the next backup of guest {sample.name} has to be a full one: {len(gone)} checkpoints are void")
        if to.kind == "internal":
            snapshots.revert(domain, to.name)
        return domains.state(domain)


def to_delete(guest: Guest, name: str) -> Snapshot:
    """The snapshot that is to go, before anybody is asked. Raises NotFoundError."""
    return policy.find(name, guest[0].name, existing(guest[1]))


def delete(
    hypervisor: Hypervisor, guest: Guest, name: str, warn: Warn, progress: Callable[[str, float], None]
) -> Snapshot:
    """Drop one snapshot. What the guest is now stays as it is. Raises NotFoundError, RefusedError, KvmctlError."""
    with lock(lock_of(guest[1]), LOCK_WAIT):
        return drop(hypervisor, guest, name, warn, progress)


def drop(
    hypervisor: Hypervisor, guest: Guest, name: str, warn: Warn, progress: Callable[[str, float], None]
) -> Snapshot:
    """As `delete`, by who holds the guest's lock already."""
    sample, domain = guest
    snapshot_images.recover(hypervisor, domain)
    known = existing(domain)
    one = policy.find(name, sample.name, known)
    if one.kind == "internal":
        snapshots.delete(domain, name)
        return one
    if not hypervisor.local:
        raise RefusedError(
            f"{hypervisor.uri} is another machine, and overlays are merged only on their own",
            f"run kvmctl there: kvmctl snapshot delete {argument(sample.name)} {name}",
        )
    snapshot_images.merge(hypervisor, domain, facts_of(domain), one, warn, progress)
    snapshots.delete(domain, name, metadata_only=True)
    return one


def unfinished(hypervisor: Hypervisor, domain: Any) -> list[str]:
    """A sentence for each thing that a killed run has left of this guest's images; what can be finished is."""
    try:
        with lock(lock_of(domain)):
            snapshot_images.recover(hypervisor, domain)
    except LockedError as error:
        return [error.message]
    except ConflictError as error:
        return [f"{error.message}: {error.hint}"]
    return [
        f"{path} was being merged by a run that was killed: delete the snapshot again to go on"
        for path in snapshot_images.merging(domain.name(), hypervisor.uri)
    ]
