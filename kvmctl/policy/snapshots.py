"""Which kind of snapshot a guest can have, and what may be gone back to, or dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvmctl.model.errors import ConflictError, NotFoundError, RefusedError, UsageError
from kvmctl.model.guest_disk import GuestFacts, Kind, Snapshot
from kvmctl.model.names import check_name
from kvmctl.model.wording import argument, quoted


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a snapshot is to be taken."""

    kind: Kind
    memory: bool


def check_snapshot_name(name: str) -> str:
    """The name, if a snapshot may bear it: it becomes part of a file's. Raises UsageError."""
    try:
        return check_name(name)
    except ValueError as error:
        said = str(error).replace("a guest needs", "a snapshot needs")
        raise UsageError(said, "name it as in before-update") from error


def choose(guest: GuestFacts, memory: bool | None, existing: Sequence[Snapshot], overlay: bool = False) -> Recipe:
    """The kind of snapshot that keeps what is wanted; without a wish, the memory of a guest that has one. With
    `overlay` it is to leave the images as they are from then on.

    Raises ConflictError where the guest's state is in the way, RefusedError naming every other obstacle.
    """
    wanted = guest.active if memory is None else memory
    if wanted and not guest.active:
        raise ConflictError(f"guest {guest.name} is {guest.state}: it has no memory to keep", "leave out --memory")
    obstacles = list(_general(guest, wanted))
    external = any(one.kind == "external" for one in existing)
    internal = any(one.kind == "internal" for one in existing)
    hint = ""
    if wanted:
        if found := [*_against_internal(guest), *(["it has external snapshots already"] if external else [])]:
            obstacles += found
            hint = "--disk-only keeps the disks alone" + ("" if not external else ", or delete those first")
        recipe = Recipe("internal", memory=True)
    elif overlay or guest.active or external or list(_against_internal(guest)):
        recipe = Recipe("external", memory=False)
        if internal:
            obstacles.append("it has internal snapshots, which an overlay would cut off from it")
            hint = "--memory adds one of the same kind while it runs, or delete those first: kvmctl snapshot list"
        obstacles += _against_external(guest)
    else:
        recipe = Recipe("internal", memory=False)
    if obstacles:
        what = "with its memory" if wanted else "of its disks"
        raise RefusedError(
            f"no snapshot of guest {guest.name} {what} can be taken:\n  " + "\n  ".join(obstacles),
            hint or "kvmctl backup and kvmctl clone keep a guest's state in other ways",
        )
    return recipe


def _general(guest: GuestFacts, memory: bool) -> Iterator[str]:
    if not guest.disks and not memory:
        yield "it has no disk of its own that could be kept"
    if memory and guest.passthrough:
        yield "it has a device of the host, whose state cannot be kept"


def _against_internal(guest: GuestFacts) -> Iterator[str]:
    if guest.flash:
        yield "its firmware is UEFI, of which libvirt takes no snapshot within the images"
    for disk in guest.disks:
        if disk.format != "qcow2":
            yield f"disk {disk.target} is {disk.format}, which cannot hold a snapshot: only qcow2 can"


def _against_external(guest: GuestFacts) -> Iterator[str]:
    for disk in guest.disks:
        if disk.path is None or disk.block_device:
            where = disk.path or "not a file of this host"
            yield f"disk {disk.target} is {where}, beside which no overlay can be laid"


def find(name: str, guest: str, existing: Sequence[Snapshot]) -> Snapshot:
    """The snapshot of that name. Raises NotFoundError."""
    for one in existing:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in existing[:8]) or "none"
    raise NotFoundError(
        f"guest {guest} has no snapshot {quoted(name)} (known: {known})", f"kvmctl snapshot list {argument(guest)}"
    )


def children(name: str, existing: Sequence[Snapshot]) -> list[Snapshot]:
    """The snapshots that were taken right after this one."""
    return [one for one in existing if one.parent == name]


def check_revert(guest: GuestFacts, to: Snapshot, existing: Sequence[Snapshot]) -> None:
    """Raise RefusedError or ConflictError where going back to `to` would break a chain of images."""
    below = _descendants(to.name, existing)
    if to.kind == "internal" and (cut := [one.name for one in existing if one.kind == "external"]):
        raise RefusedError(
            f"guest {guest.name} writes to overlays since {', '.join(cut)}, so what snapshot {to.name} holds "
            "is not in its images",
            "kvmctl snapshot delete them first, which merges them into one image",
        )
    if to.kind == "internal":
        return
    if to.memory:
        raise RefusedError(
            f"snapshot {to.name} keeps memory in a file beside the disks, and libvirt cannot go back to such a one",
            "it was not taken by kvmctl: virsh snapshot-dumpxml shows its files",
        )
    if below:
        raise RefusedError(
            f"snapshot {to.name} has later ones, whose images would be lost: {', '.join(one.name for one in below)}",
            "kvmctl snapshot delete those first, the last one first",
        )
    if guest.active:
        raise ConflictError(
            f"guest {guest.name} is {guest.state}, and its images are changed for others only while it is off",
            f"kvmctl stop {argument(guest.name)} first, or --force to power it off",
        )


def _descendants(name: str, existing: Sequence[Snapshot]) -> list[Snapshot]:
    found: list[Snapshot] = []
    for one in children(name, existing):
        found += [one, *_descendants(one.name, existing)]
    return found


def ordered(existing: Sequence[Snapshot]) -> list[tuple[Snapshot, int]]:
    """Every snapshot with its depth in the tree: each under its parent, the older of two first."""
    names = {one.name for one in existing}

    def under(parent: str | None, depth: int) -> Iterator[tuple[Snapshot, int]]:
        level = [one for one in existing if (one.parent if one.parent in names else None) == parent]
        for one in sorted(level, key=lambda snapshot: (snapshot.created, snapshot.name)):
            yield one, depth
            yield from under(one.name, depth + 1)

    return list(under(None, 0))


def overlay_path(guest: str, target: str, snapshot: str, image: str) -> str:
    """Where the overlay of a disk is laid: beside the image that it overlays."""
    folder = image.rpartition("/")[0]
    return f"{folder}/{guest}-{target}.{snapshot}.qcow2"
