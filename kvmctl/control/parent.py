"""Keeping the weight of the guests' common cgroup at what their capacity needs, and the record of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvmctl.control.foreign import change
from kvmctl.host import cgroup, parent
from kvmctl.host.cgroup import Mount
from kvmctl.host.journal import Journal
from kvmctl.host.parent import Competitors, Parent
from kvmctl.model.change import Change, Outcome
from kvmctl.model.errors import KvmctlError
from kvmctl.policy.parent import (
    DEFAULT_WEIGHT,
    assumed_weight,
    competing_weight,
    is_due,
    kept_cores,
    measured_weight,
    parent_weight,
)

KIND = "parent-weight"
"""The kind of these entries in the journal. A key is the parent's directory."""
FIELD = "cpu.weight"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the guests stand against the rest of the host. Amounts are cores, weights those of the cgroup version."""

    parent: Parent
    competitors: Competitors
    cpus: int
    capacity: float
    competing: int
    """The weight of all that may compete with the guests, or did where that was more."""
    measured: float | None
    """The weight of what did; None where CPUs were idle, or nobody measured."""
    wanted: int
    """What the parent should weigh."""

    @property
    def kept(self) -> float | None:
        """Cores that the guests get at present while all that competes with them is busy; None is unknown."""
        weight = self.parent.weight
        return None if weight is None else kept_cores(weight, self.competing, self.cpus)

    @property
    def attainable(self) -> float:
        """As `kept`, with the weight that is wanted: less than the capacity where the kernel's range ends before."""
        return kept_cores(self.wanted, self.competing, self.cpus)


def standing(
    directories: Iterable[Path],
    capacity: float,
    cpus: int,
    visible: tuple[Mount, ...] | None = None,
    used: tuple[float, float] | None = None,
    root: Path = Path("/"),
) -> Standing | None:
    """How the guests whose own cgroup directories these are stand, where `capacity` of `cpus` cores is theirs.

    `used` are the cores that the guests and all others have used of late, under the present weight. None where the
    guests have no parent in common, or no guest has run yet. `root` is as for `kvmctl.host.parent.parent`.
    """
    found = parent.parent(directories, cgroup.mounts() if visible is None else visible, root)
    if found is None:
        return None
    rivals = parent.competitors(found)
    expected = competing_weight(found.version, (weight for _name, weight in rivals.groups), rivals.alone)
    measured = measured_weight(found.weight, *used, cpus) if used and found.weight else None
    competing = assumed_weight(expected, measured)
    wanted = parent_weight(found.version, capacity, cpus - capacity, competing)
    return Standing(found, rivals, cpus, capacity, competing, measured, wanted)


def plan(found: Standing, journal: Journal, respect: bool = False) -> Change | None:
    """The change that the parent's weight needs; None where it is near enough.

    With `respect`, a weight that somebody else has changed since kvmctl set it is a refused change.
    """
    above, name = found.parent, found.parent.path.name
    known = journal.entries(KIND).get(str(above.path))
    ours = known is not None and known.new == above.weight
    # More than is needed was needed once, and is until a busy host shows otherwise.
    if not is_due(above.weight, found.wanted, keep_more=ours and found.measured is None):
        return None
    if above.weight is None and above.unit is None:
        reason = f"the CPU controller is not enabled for {above.path}"
        return Change(name, FIELD, None, found.wanted, how="refused", reason=reason)
    old = DEFAULT_WEIGHT[above.version] if above.weight is None else above.weight
    why = f"guests get {found.attainable:.3g} of {found.cpus} cores whatever else is busy"
    return change(name, FIELD, old, found.wanted, known, respect, why)


def make(found: Standing, due: Change, journal: Journal) -> Outcome:
    """Make the change, recorded before, and read it back."""
    if due.how == "refused":
        return Outcome(due, "not applied", due.reason, due.old)
    assert isinstance(due.new, int)
    key = str(found.parent.path)
    journal.record(KIND, key, due.old, due.new)
    try:
        now = parent.set_weight(found.parent, due.new)
    except KvmctlError as error:
        # Else the old weight would look like somebody else's change.
        journal.record(KIND, key, due.old, due.old)
        return Outcome(due, "not applied", error.message, due.old)
    if now != due.new:
        return Outcome(due, "not applied", f"the kernel has {now} after {due.new} was set", now)
    return Outcome(due, "changed", due.reason, now)
