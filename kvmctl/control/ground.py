"""The ground that guests stand on: what their common cgroup weighs on the host, what the threads that are no vCPUs
weigh within each guest, and what the kernel leaves to each."""

from __future__ import annotations

from dataclasses import dataclass

from kvmctl.control import parent, protect, threads
from kvmctl.control.observe import Observed
from kvmctl.control.parent import Standing
from kvmctl.control.protect import ProtectChange
from kvmctl.control.threads import ThreadChange
from kvmctl.host import cgroup
from kvmctl.host.journal import Journal
from kvmctl.model.change import Change, Outcome
from kvmctl.model.hostpolicy import HostPolicy, capacity
from kvmctl.model.plan import Memory
from kvmctl.policy.parent import cores_used
from kvmctl.policy.tick import window


@dataclass(frozen=True, slots=True)
class GroundPlan:
    """What is to be changed, with what it takes to do it."""

    standing: Standing | None
    parent: Change | None
    threads: tuple[ThreadChange, ...]
    protect: tuple[ProtectChange, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes, the parent's first."""
        below = (*(one.change for one in self.threads), *(one.change for one in self.protect))
        return (*filter(None, (self.parent,)), *below)


def plan(observed: Observed, before: Memory | None, policy: HostPolicy) -> GroundPlan:
    """What the ground needs, for the guests of this machine, after what was used since `before`; nothing where none
    runs or the policy leaves it."""
    host, visible, journal = observed.snapshot.host, cgroup.mounts(), Journal()
    mount = cgroup.cpu_mount(visible)
    if not observed.directories or host is None or mount is None:
        return GroundPlan(None, None, ())
    respect = policy.cpu.foreign == "respect"
    standing = None
    if policy.cpu.parent == "manage":
        used = cores_used(observed.snapshot, before, window(observed.snapshot, before))
        standing = parent.standing(observed.directories.values(), capacity(policy, host.cpus), host.cpus, visible, used)
    due: tuple[ThreadChange, ...] = ()
    if policy.cpu.threads == "manage":
        due = tuple(threads.plan(observed.directories.items(), mount.version, journal, respect))
    guests = {guest.name: guest for guest in observed.snapshot.guests}
    owned = [(guests[name], path) for name, path in observed.directories.items() if name in guests]
    low = tuple(protect.plan(owned, mount, journal, respect))
    return GroundPlan(standing, parent.plan(standing, journal, respect) if standing else None, due, low)


def make(found: GroundPlan) -> tuple[Outcome, ...]:
    """Make the changes, recorded before, and read them back. Raises KvmctlError where the journal cannot be written."""
    journal = Journal()
    threads.forget_ended(journal)
    protect.forget_ended(journal)
    done = parent.make(found.standing, found.parent, journal) if found.standing and found.parent else None
    return (*filter(None, (done,)), *threads.make(found.threads, journal), *protect.make(found.protect, journal))
