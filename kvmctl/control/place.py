"""Where the parts of an archive come to lie on this host, decided and checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvmctl.control import identity as identities
from kvmctl.control import nvram
from kvmctl.control import tpm as tpms
from kvmctl.control.resolve import DEFAULT_POOL
from kvmctl.host.staging import check_room
from kvmctl.hypervisor import networks, storage
from kvmctl.hypervisor.capabilities import domain_capabilities
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model import archive
from kvmctl.model.archive import Manifest, Part
from kvmctl.model.errors import ConflictError, KvmctlError, NotFoundError, RefusedError, UnreachableError, UsageError
from kvmctl.model.names import check_name
from kvmctl.xml import adopt as adopting
from kvmctl.xml import copied, identity, tree
from kvmctl.xml.adopt import Adopted, Placed
from kvmctl.xml.capabilities import loaders
from kvmctl.xml.carried import carried
from kvmctl.xml.identity import Identity

_SUFFIX = {"disk": "qcow2", "backing": "qcow2", "media": "iso", "seed": "iso"}
_FILES = (*archive.IMAGES, "backing", "kernel", "initrd")
"""The kinds of parts that become files in pools."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of an import. `networks` and `pools` are old → new; `name` makes a new identity."""

    new_identity: bool = False
    name: str | None = None
    networks: Mapping[str, str] | None = None
    pools: Mapping[str, str] | None = None
    leave_out: bool = False
    """Leave out what reaches into the host, rather than refuse it."""
    memory: bool = True
    """Resume from the saved memory, where there is any."""
    start: bool = False
    force: bool = False
    """Start it though promises will not be kept."""
    dry_run: bool = False
    """Read and check everything, and make nothing of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part comes to lie."""

    part: Part
    path: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import is going to do. `places` are of images, kernel and initrd; `nvram` where the variables come."""

    manifest: Manifest
    own: Identity
    old_name: str
    xml: str
    placed: Placed
    places: tuple[Place, ...]
    pools: tuple[Any, ...]
    nvram: Path | None
    resume: bool
    notes: tuple[str, ...]
    tpm: str | None = None
    """The version of its TPM, where the file has the state of one."""

    def path(self, part: Part | None) -> Path | None:
        """Where a part comes to lie."""
        return next((one.path for one in self.places if part is not None and one.part == part), None)


def plan(hypervisor: Hypervisor, manifest: Manifest, text: str, wishes: Wishes) -> Plan:
    """Decide, and check all that can be checked without reading on. `text` is the definition in the file.

    Raises ConflictError for a name, UUID, MAC address or file that is taken, NotFoundError for a pool or network that
    is not there, RefusedError for what reaches into the host, finds no room or cannot run here.
    """
    old = identity.read(text)
    if (old.name, old.uuid) != (manifest.guest, manifest.uuid):
        raise UsageError("the definition is of another guest than the manifest says", "the file was tampered with")
    new = wishes.new_identity or wishes.name is not None
    resume = bool(manifest.of("memory")) and wishes.memory
    if new and resume:
        raise RefusedError(
            "a guest that goes on from its memory keeps its identity", "add --no-memory, or leave out --new-identity"
        )
    name = checked_name(wishes.name or manifest.guest)
    own = identities.fresh(hypervisor, text, name) if new else old
    places, pools = _places(hypervisor, manifest, name, new, wishes)
    variables = nvram.FOLDER / f"{name}_VARS.fd" if manifest.of("nvram") else None
    placed = _placed(hypervisor, text, places, variables, wishes)
    adopted = adopting.adopt(text, placed)
    check(hypervisor, own, adopted, places, wishes, variables)
    xml = identity.renew(adopted.xml, own)
    if new:
        # As a clone it is in no project, whose file would have it deleted, and two need not start with the host.
        xml, manifest = copied.alone(xml, old.name, name), replace(manifest, autostart=False)
    notes = [*adopted.notes, *(f"left out: {what}" for what in adopted.foreign)]
    sealed = carried(adopted.xml).tpm if manifest.of("tpm") else None
    if sealed:
        tpms.check_free(own.uuid)
        notes += [f"its TPM is a copy of that of guest {manifest.guest}: both have the same keys"] if new else []
    return Plan(manifest, own, manifest.guest, xml, placed, places, pools, variables, resume, tuple(notes), sealed)


def check(
    hypervisor: Hypervisor,
    own: Identity,
    adopted: Adopted,
    places: tuple[Place, ...],
    wishes: Wishes,
    variables: Path | None = None,
) -> None:
    """Raise for what is taken, reaches into the host, is not there, or finds no room, as `plan`."""
    _check_free(hypervisor, own)
    _check_foreign(adopted, wishes)
    _check_networks(hypervisor, adopted)
    _check_taken(places, variables)


def pool_folder(hypervisor: Hypervisor, wishes: Wishes) -> tuple[Path, Any]:
    """The folder of the default pool, or of what stands for it here, and the pool."""
    wanted = (wishes.pools or {}).get(DEFAULT_POOL, DEFAULT_POOL)
    found = _pool(hypervisor, wanted, DEFAULT_POOL)
    return Path(storage.folder(found)), found


def checked_name(name: str) -> str:
    """The name, where a guest may bear it. Raises UsageError."""
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error), "give another one: --name NAME") from error


def _check_free(hypervisor: Hypervisor, own: Identity) -> None:
    found = identities.clashes(own, identities.taken_by_others(hypervisor))
    if found:
        raise ConflictError(
            "; ".join(found),
            "--new-identity --name NAME makes it another guest; kvmctl list shows those that are there",
        )


def _places(
    hypervisor: Hypervisor, manifest: Manifest, name: str, new: bool, wishes: Wishes
) -> tuple[tuple[Place, ...], tuple[Any, ...]]:
    mapped = wishes.pools or {}
    pools: dict[str, Any] = {}
    places = []
    for part in manifest.parts:
        if part.kind in _FILES:
            origin = part.pool or DEFAULT_POOL
            wanted = mapped.get(origin, origin)
            if wanted not in pools:
                pools[wanted] = _pool(hypervisor, wanted, origin)
            places.append(Place(part, Path(storage.folder(pools[wanted])) / _file_name(part, name, new)))
    return tuple(places), tuple(pools.values())


def _pool(hypervisor: Hypervisor, name: str, origin: str) -> Any:
    try:
        found = storage.pool(hypervisor, name)
    except NotFoundError as error:
        raise NotFoundError(error.message, f"name another one: --pool {origin}=NAME") from error
    if not storage.is_folder(found) or not Path(storage.folder(found)).is_dir():
        raise RefusedError(f"pool {name} is no folder of this host", f"name another one: --pool {origin}=NAME")
    return found


def _file_name(part: Part, name: str, new: bool) -> str:
    if part.volume and not new:
        return part.volume
    level = f".{part.level}" if part.level else ""
    return f"{name}-{part.target}{level}.{_SUFFIX[part.kind]}" if part.target else f"{name}-{part.kind}"


def _placed(
    hypervisor: Hypervisor, text: str, places: tuple[Place, ...], variables: Path | None, wishes: Wishes
) -> Placed:
    paths = {place.part.kind: str(place.path) for place in places}
    drives = {
        place.part.target: (str(place.path), "qcow2" if place.part.kind == "disk" else "raw")
        for place in places
        if place.part.target and place.part.kind in archive.IMAGES
    }
    return Placed(
        drives=drives,
        kernel=paths.get("kernel"),
        initrd=paths.get("initrd"),
        nvram=str(variables) if variables else None,
        seed=paths.get("seed"),
        loaders=_loaders(hypervisor, text),
        networks=wishes.networks or {},
    )


def _loaders(hypervisor: Hypervisor, text: str) -> frozenset[str]:
    """The firmware images for the guest's machine. Raises RefusedError where no such guest can run here."""
    root = tree.read(text)
    kind, machine = root.get("type", ""), root.find("os/type")
    what = (None, None) if machine is None else (machine.get("arch"), machine.get("machine"))
    try:
        found = domain_capabilities(hypervisor, kind, *what)
    except UnreachableError:
        raise
    except KvmctlError as error:
        raise RefusedError(
            f"a {kind} guest of machine {what[1]} cannot run on this host: {error.message}",
            "kvmctl host doctor tells whether KVM can be used",
        ) from error
    return loaders(found) if found else frozenset()


def _check_foreign(adopted: Adopted, wishes: Wishes) -> None:
    if adopted.foreign and not wishes.leave_out:
        raise RefusedError(
            "the guest would reach into this host:\n  " + "\n  ".join(adopted.foreign),
            "--leave-out takes all of that out of its definition",
        )


def _check_networks(hypervisor: Hypervisor, adopted: Adopted) -> None:
    known = set(networks.names(hypervisor))
    missing = [f"network {name}" for name in sorted(adopted.networks - known)]
    missing += [
        f"bridge {name}" for name in sorted(adopted.bridges) if not Path("/sys/class/net", name, "bridge").is_dir()
    ]
    if missing:
        raise NotFoundError(
            f"there is no {', no '.join(missing)} on this host", "say what it is called here: --network OLD=NEW"
        )


def check_still_free(hypervisor: Hypervisor, found: Plan) -> None:
    """Raise ConflictError where somebody has taken meanwhile what the plan found free."""
    _check_free(hypervisor, found.own)
    _refuse_existing([*(one.path for one in found.places), *filter(None, (found.nvram,))])


def _check_taken(places: tuple[Place, ...], variables: Path | None) -> None:
    paths = [place.path for place in places]
    if len(set(paths)) < len(paths):
        raise UsageError(
            "two parts have the same file name", "--new-identity gives each drive's file a name of its own"
        )
    _refuse_existing([*paths, *filter(None, (variables,))])
    sizes: dict[Path, int] = {}
    for place in places:
        sizes[place.path.parent] = sizes.get(place.path.parent, 0) + place.part.size
    for folder, size in sizes.items():
        check_room(folder, size)


def _refuse_existing(paths: list[Path]) -> None:
    taken = [str(path) for path in paths if os.path.lexists(path)]
    if taken:
        raise ConflictError(
            f"{', '.join(taken)} exists already", "--new-identity --name NAME gives the files other names"
        )
