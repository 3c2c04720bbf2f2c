"""What one run of apply, diff or set would do: read, resolved, compared and checked, nothing changed yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmctl.control import preflight, starts
from kvmctl.control.chains import follow_snapshots
from kvmctl.control.passed import giver
from kvmctl.control.resolve import DEFAULT_POOL, INTENT, VolumePlan, resolve_disks
from kvmctl.control.running import running_spec
from kvmctl.host.journal import Journal
from kvmctl.hypervisor import domains, storage
from kvmctl.hypervisor.capabilities import capabilities, domain_capabilities
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.change import Change
from kvmctl.model.defaults import fill
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, PartialError, UsageError
from kvmctl.model.platform import Platform
from kvmctl.model.rules import check
from kvmctl.model.spec import GuestSpec
from kvmctl.model.units import format_size
from kvmctl.model.wording import argument
from kvmctl.policy import modes
from kvmctl.policy.diff import diff, overlay, raise_maxima
from kvmctl.xml.capabilities import parse_platform
from kvmctl.xml.metadata import FIELDS
from kvmctl.xml.parse import parse

AT_ONCE = FIELDS | {"autostart", "description"}
"""What kvmctl and libvirt read from a guest's definition whatever the guest runs with; labels too."""


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """One guest: what it shall be, what it is, and the Changes between. `definition` is None for a new guest,
    `live` for one that is off."""

    desired: GuestSpec
    platform: Platform
    changes: tuple[Change, ...]
    volumes: tuple[VolumePlan, ...] = ()
    domain: Any = None
    definition: str | None = None
    current: GuestSpec | None = None
    live: GuestSpec | None = None
    brings_to: str | None = None
    """`running` or `paused` where the guest is to be started or resumed."""
    force: bool = False
    """Whether a medium is taken from a CD-ROM drive that the guest has locked."""

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.desired.name


class Planner:
    """Plans guests of one hypervisor; asks it only once for what is the same for all."""

    def __init__(self, hypervisor: Hypervisor, accelerator: Callable[[GuestSpec], str]) -> None:
        """`accelerator` answers what `auto` means for a guest: `kvm` or `tcg`."""
        self.hypervisor = hypervisor
        self._accelerator = accelerator
        self._capabilities: str | None = None
        self._platforms: dict[str, Platform] = {}
        self._journal = Journal()
        self._giver = giver(hypervisor)
        self._owed = starts.owed(hypervisor, self._journal)

    @property
    def capabilities(self) -> str:
        """The hypervisor's capabilities XML."""
        if self._capabilities is None:
            self._capabilities = capabilities(self.hypervisor)
        return self._capabilities

    def platform(self, accelerator: str) -> Platform:
        """What a guest with this accelerator can have here."""
        virt_type = self.virt_type(accelerator)
        if virt_type not in self._platforms:
            text = domain_capabilities(self.hypervisor, virt_type, None, "q35")
            self._platforms[virt_type] = parse_platform(self.capabilities, text)
        return self._platforms[virt_type]

    def virt_type(self, accelerator: str) -> str:
        """libvirt's word for an accelerator; other drivers have one kind of guest only."""
        driver = self.hypervisor.uri.partition(":")[0].partition("+")[0]
        return {"kvm": "kvm", "tcg": "qemu"}[accelerator] if driver == "qemu" else driver

    def plan(self, spec: GuestSpec, must_exist: bool = False) -> GuestPlan:
        """Plan one guest. Raises the first KvmctlError that stands in its way."""
        try:
            domain = domains.find(self.hypervisor, spec.name)
        except NotFoundError:
            if must_exist:
                raise
            return self._new(spec)
        return self._existing(spec, domain, owes_start=not must_exist)

    def _new(self, spec: GuestSpec) -> GuestPlan:
        accelerator = spec.accelerator if spec.accelerator in ("kvm", "tcg") else self._accelerator(spec)
        platform = self.platform(accelerator)
        resolved, volumes = resolve_disks(self.hypervisor, replace(spec, accelerator=accelerator))  # type: ignore[arg-type]
        resolved = self._giver.resolved(resolved, (), spec.state != "stopped")
        full = fill(resolved, platform)
        full, seed = self._seed(full, None)
        volumes += seed
        brings_to = {"paused": "paused", "stopped": None}.get(spec.state or "running", "running")
        self._check(full, volumes, brings_to is not None, preflight.pins(self.hypervisor, full))
        changes = [Change(spec.name, f"volumes.{v.name}", None, _volume_words(v), "create") for v in volumes]
        changes.append(Change(spec.name, "guest", None, _guest_words(full), "create"))
        if brings_to:
            changes.append(Change(spec.name, "state", None, brings_to, "start"))
        return GuestPlan(full, platform, tuple(changes), volumes, brings_to=brings_to)

    def _existing(self, spec: GuestSpec, domain: Any, owes_start: bool) -> GuestPlan:
        definition = domains.definition(domain, secure=True)
        current = replace(parse(definition).spec, autostart=domains.autostart(domain))
        state = domains.state(domain)
        running = state in ("running", "paused", "suspended")
        runs_with = running_spec(domain, current) if running else None
        raised = raise_maxima(spec, current)
        resolved, volumes = resolve_disks(self.hypervisor, raised)
        resolved = modes.resolved(resolved, current)
        begins = spec.state in ("running", "paused")
        resolved = self._giver.resolved(resolved, current.passthrough or (), begins, running)
        resolved = follow_snapshots(self.hypervisor, resolved, current)
        resolved, seed = self._seed(resolved, current)
        changes = [Change(spec.name, f"volumes.{v.name}", None, _volume_words(v), "create") for v in (*volumes, *seed)]
        changes += diff(resolved, current, runs_with)
        if changes and state == "stopped" and domains.has_saved_state(domain):
            changes = [_after_resuming(change) for change in changes]
        if owes_start and spec.state is None and state in starts.OFF:
            spec = replace(spec, state=self._owed.get(spec.name))  # type: ignore[arg-type]
        brings_to = self._state_change(spec, state, changes)
        if changes and not domains.is_persistent(domain):
            raise ConflictError(
                f"guest {spec.name} is transient: it has no definition to change",
                f"define it: kvmctl xml {argument(spec.name)} > guest.xml && virsh define guest.xml",
            )
        if changes:
            changed = None if brings_to and not running else {change.field for change in changes}
            pins = preflight.pins(self.hypervisor, overlay(current, resolved), changed)
            self._check(resolved, volumes + seed, brings_to is not None, pins)
            _check_together(raised, current)
        platform = self.platform(
            resolved.accelerator if resolved.accelerator in ("kvm", "tcg") else current.accelerator or "kvm"
        )
        return GuestPlan(
            resolved, platform, tuple(changes), volumes + seed, domain, definition, current, runs_with, brings_to
        )

    def _state_change(self, spec: GuestSpec, state: str, changes: list[Change]) -> str | None:
        if spec.state is None or spec.state == state or (spec.state == "stopped" and state == "crashed"):
            return None
        if spec.state == "running" and state in ("stopped", "crashed", "paused"):
            changes.append(Change(spec.name, "state", state, "running", "start"))
            return "running"
        if spec.state == "paused" and state in ("stopped", "crashed"):
            changes.append(Change(spec.name, "state", state, "paused", "start"))
            return "paused"
        verb = "stop" if spec.state == "stopped" else "pause"
        reason = f"apply never stops or pauses a guest; kvmctl {verb} {argument(spec.name)} does"
        changes.append(Change(spec.name, "state", state, spec.state, "set", "refused", reason))
        return None

    def _seed(self, spec: GuestSpec, current: GuestSpec | None) -> tuple[GuestSpec, tuple[VolumePlan, ...]]:
        """The guest with its seed's path and digest, and the seed volume where its content is new."""
        if spec.cloud_init is None:
            return spec, ()
        from kvmctl.control import seed

        made = seed.compose(spec.name, spec.cloud_init)
        before = current.cloud_init if current else None
        if before and before.digest == made.digest and before.seed:
            return replace(spec, cloud_init=replace(spec.cloud_init, seed=before.seed, digest=made.digest)), ()
        content = seed.image(made)
        # A new content is a new file: the running guest may still have the old one open.
        name = f"{spec.name}-seed-{made.digest[:12]}.iso"
        pool = storage.pool(self.hypervisor, DEFAULT_POOL)
        path = f"{storage.folder(pool)}/{name}"
        plan = VolumePlan(DEFAULT_POOL, name, path, len(content), "raw", content=content)
        whole = path not in {intent.key for intent in self._journal.unfinished(INTENT)}
        known = whole and storage.lookup(pool, name)
        return replace(spec, cloud_init=replace(spec.cloud_init, seed=path, digest=made.digest)), () if known else (
            plan,
        )

    def _check(
        self, spec: GuestSpec, volumes: tuple[VolumePlan, ...], starts: bool, pins: Iterable[KvmctlError]
    ) -> None:
        found = [*preflight.problems(self.hypervisor, spec, volumes, self.capabilities, starts), *pins]
        if found:
            raise_together(found)


def _after_resuming(change: Change) -> Change:
    """A change of a guest that libvirt has saved: it goes on as it was saved, whatever its definition says."""
    if change.field in AT_ONCE or change.field.startswith("labels."):
        return change
    reason = (
        "the guest was saved and goes on as it was then; takes effect when it is started after that, or after "
        f"virsh managedsave-remove {argument(change.guest)}"
    )
    return replace(change, how="restart", reason=reason) if change.how == "live" else change


def _check_together(desired: GuestSpec, current: GuestSpec) -> None:
    """Refuse what is right by itself but not together with what the guest has already."""
    before = check(current)
    if problems := [fault for fault in check(overlay(current, desired)) if fault not in before]:
        raise UsageError(
            "\n".join(f"guest {desired.name}: {key}: {text}" for key, text in problems), "nothing was changed"
        )


def raise_together(found: Sequence[KvmctlError]) -> None:
    """Raise the only error, or one that says all of them, of their common class where they have one."""
    if len(found) == 1:
        raise found[0]
    kinds = {type(error) for error in found}
    kind = kinds.pop() if len(kinds) == 1 else PartialError
    lines = [error.message + (f"\n    {error.hint}" if error.hint else "") for error in found]
    raise kind("\n  ".join(["nothing was changed, because", *lines]))


def _volume_words(volume: VolumePlan) -> str:
    over = f" over {volume.base}" if volume.base else ""
    what = "cloud-init seed" if volume.content is not None else f"{format_size(volume.capacity)} {volume.format}"
    return f"{what}{over} in pool {volume.pool}"


def _guest_words(spec: GuestSpec) -> str:
    size = spec.memory.size
    parts = [f"{spec.cpu.count} vCPU", format_size(size) if size else None, spec.accelerator]
    return ", ".join(part for part in parts if part)
