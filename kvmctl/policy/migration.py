"""Whether a guest can move to another host: everything that stands in the way, on both sides, at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from kvmctl.model.hostpolicy import cpu_reserve
from kvmctl.model.migration import SAFE_CACHES, Finding, MigrationOptions, MovedDisk, MovedGuest, Side, TargetHost
from kvmctl.model.promise import Promise
from kvmctl.model.sample import ACTIVE
from kvmctl.model.units import human_size
from kvmctl.model.wording import argument
from kvmctl.policy.admission import Verdict, admit_cpu, admit_memory, admit_overcommit, admit_state
from kvmctl.policy.memory import reserve_of
from kvmctl.policy.reclaim import guests_memory

CLOCK_TOLERANCE = 2.0
"""Seconds by which two clocks may differ: a guest's own clock jumps by as much at the switch-over."""
MOVES_INACTIVE = (10,)
"""QEMU before it aborts (bdrv_inactivate_recurse) when it is to let go of disks that it never took hold of."""


def findings(guest: MovedGuest, target: TargetHost, options: MigrationOptions) -> tuple[Finding, ...]:
    """Everything that keeps the guest from moving, then what its owner should know; in the order of the hosts'
    parts."""
    options = options.of(guest.state)
    found = [
        *_guest(guest, target.source_versions[1], options),
        *_identity(guest, target, options),
        *(_encryption(guest, target, options) if options.tls else ()),
        *_processor(guest, target),
        *_devices(guest, options),
        *_places(guest, target),
        *(finding for disk in guest.disks for finding in _disk(guest, disk, options)),
        *_room(guest, target, options),
        *_promises(guest, target, options),
        *_versions(guest, target),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity != "obstacle"))


def portability(guest: MovedGuest, target: TargetHost) -> tuple[Finding, ...]:
    """What would have to change before the guest could be started on that host, with its definition as it is."""
    found = [
        *_processor(guest, target),
        *(_warning(guest, "hostdev", "target", f"it has to have such a {device}") for device in guest.host_devices),
        *_places(guest, target),
        *(finding for disk in guest.disks for finding in _disk_there(guest, disk)),
        *_promises(replace(guest, state="running"), target, MigrationOptions()),
    ]
    if target.namesake and target.namesake != guest.uuid:
        text = f"it has another guest named {guest.name} (UUID {target.namesake})"
        found.append(_obstacle(guest, "name", "target", text, "rename one of them: virsh domrename"))
    return tuple(sorted(found, key=lambda finding: finding.severity != "obstacle"))


def _disk_there(guest: MovedGuest, disk: MovedDisk) -> Iterator[Finding]:
    what = f"disk {disk.target}"
    if disk.shared or disk.exists:
        return
    if disk.exists is None:
        text = f"no pool of it holds the folder of {disk.path}"
        yield _obstacle(guest, what, "target", text, "define a pool of that folder there: virsh pool-define-as")
    else:
        hint = f"kvmctl migrate --copy-storage takes it along, or export {argument(guest.name)} and import it there"
        yield _obstacle(guest, what, "target", f"it has no {disk.path}", hint)


def blocks(found: Sequence[Finding]) -> bool:
    """Whether any of it stands in the way."""
    return any(finding.severity == "obstacle" for finding in found)


def arrived(target: TargetHost, guests: Sequence[MovedGuest], options: MigrationOptions) -> TargetHost:
    """The target once these guests have moved to it, as far as admission and room for disks are concerned."""
    running = {guest.name: guest.promise for guest in guests if guest.state in ACTIVE}
    taken = sum(guest.memory for guest in guests if guest.state in ACTIVE)
    available = None if target.available is None else max(0, target.available - taken)
    images = {path: image for guest in guests for path, image in _arriving(guest, options.of(guest.state)).items()}
    return replace(target, running={**target.running, **running}, available=available, arriving=images)


def _obstacle(guest: MovedGuest, what: str, side: Side, text: str, hint: str = "") -> Finding:
    return Finding(guest.name, "obstacle", what, side, text, hint)


def _warning(guest: MovedGuest, what: str, side: Side, text: str, hint: str = "") -> Finding:
    return Finding(guest.name, "warning", what, side, text, hint)


def _guest(guest: MovedGuest, here: str, options: MigrationOptions) -> Iterator[Finding]:
    """`here` is the source's hypervisor and its version."""
    name = argument(guest.name)
    if not options.offline and guest.state not in ("running", "paused"):
        yield _obstacle(
            guest, "state", "source", f"it is {guest.state}", f"add --offline, or kvmctl start {name} before"
        )
    if not options.offline and guest.state == "paused" and not guest.has_run and number(here) < MOVES_INACTIVE:
        text = f"it is paused, and has not run since it came here: {here} would crash when it is moved once more"
        yield _obstacle(guest, "state", "source", text, f"kvmctl resume {name} before, and pause it there")
    if not guest.persistent:
        hint = f"define it: kvmctl xml {name} > guest.xml && virsh define guest.xml"
        yield _obstacle(guest, "state", "source", "it is transient: it has no definition to move", hint)
    if guest.job:
        yield _obstacle(guest, "lock", "source", f"libvirt is busy with it: {guest.job}", "wait until that is done")
    if guest.saved:
        hint = f"start it, or virsh managedsave-remove {name} where its memory is of no value"
        yield _obstacle(guest, "state", "source", "its memory is saved in a file of this host", hint)
    if guest.snapshots:
        text = f"it has {guest.snapshots} snapshot{'s' if guest.snapshots > 1 else ''}, which libvirt does not move"
        yield _obstacle(guest, "snapshots", "source", text, "delete them first, or export the guest with its chain")


def _identity(guest: MovedGuest, target: TargetHost, options: MigrationOptions) -> Iterator[Finding]:
    if target.same_host:
        text = "source and target are the same host, or hosts with the same UUID"
        hint = "name another host; where they are two, give each a host_uuid of its own in libvirtd.conf"
        yield _obstacle(guest, "host", "both", text, hint)
        return
    if target.reachable_by and not options.direct:
        hint = "use a URI with a host name, such as qemu+ssh://HOST/system; or --direct"
        yield _obstacle(guest, "connection", "both", target.reachable_by, hint)
    if target.namesake and target.namesake != guest.uuid:
        text = f"it has another guest named {guest.name} (UUID {target.namesake})"
        yield _obstacle(guest, "name", "target", text, "rename one of them: virsh domrename")
    if target.same_uuid:
        text = f"it has a guest of the same UUID, named {target.same_uuid}"
        hint = f"look at both; kvmctl -c {argument(target.uri)} delete {argument(target.same_uuid)} removes it there"
        yield _obstacle(guest, "uuid", "target", text, hint)
    ahead = target.clock_ahead
    if ahead is not None and abs(ahead) > CLOCK_TOLERANCE:
        text = f"its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
        yield _warning(guest, "clock", "target", text, "have both hosts follow the same time server")


def _encryption(guest: MovedGuest, target: TargetHost, options: MigrationOptions) -> Iterator[Finding]:
    if any(is_copied_here(disk, options) for disk in guest.disks) and "+tcp" in target.uri.partition(":")[0]:
        text = f"{target.uri} is not encrypted, and discs, and disks of guests that are off, are copied over it"
        yield _obstacle(guest, "tls", "both", text, "use qemu+ssh or qemu+tls")
    if options.offline:
        return
    ends: tuple[tuple[Side, str | None, str], ...] = (
        ("source", target.source_tls, "client"),
        ("target", target.tls, "server"),
    )
    for side, why, role in ends:
        if why:
            hint = (
                f"make certificates of one authority for both hosts (libvirt.org/tlscerts.html), here {role}-cert.pem"
            )
            yield _obstacle(guest, "tls", side, f"its QEMU cannot encrypt: {why}", hint)
        elif why is None:
            text = "whether its QEMU has certificates to encrypt with cannot be told: without, the move does not begin"
            yield _warning(guest, "tls", side, text)


def _processor(guest: MovedGuest, target: TargetHost) -> Iterator[Finding]:
    if target.machines is None:
        kind = "KVM" if guest.virt_type == "kvm" else guest.virt_type
        text = f"it runs no {guest.arch} guests by {kind}"
        yield _obstacle(guest, "machine", "target", text, "kvmctl host doctor there says what is missing")
        return
    if guest.machine and guest.machine not in target.machines:
        newest = [name for name in target.machines if name.rpartition("-")[0] == guest.machine.rpartition("-")[0]]
        hint = "install the source's version of QEMU there"
        if newest:
            hint += f", or restart the guest with machine type {newest[0]}"
        yield _obstacle(guest, "machine", "target", f"its QEMU has no machine type {guest.machine}", hint)
    if guest.uefi and target.firmwares is not None and "uefi" not in target.firmwares:
        yield _obstacle(guest, "firmware", "target", "it has no UEFI firmware", "install it there: package ovmf")
    if target.cpu:
        hint = "kvmctl host baseline computes a CPU model that all of several hosts can run"
        yield _obstacle(guest, "cpu", "target", target.cpu, hint)
    elif target.cpu is None:
        text = f"whether its processor can be the guest's CPU ({guest.cpu_mode or 'default'}) cannot be told"
        yield _warning(guest, "cpu", "target", text)


def _devices(guest: MovedGuest, options: MigrationOptions) -> Iterator[Finding]:
    for device in guest.host_devices:
        if options.offline:
            yield _warning(guest, "hostdev", "target", f"it has to have such a {device} when the guest starts")
        else:
            hint = f"kvmctl detach {argument(guest.name)} takes it from the guest, or stop the guest and use --offline"
            yield _obstacle(guest, "hostdev", "source", f"the guest has the host's {device}", hint)
    for words in guest.immovable:
        if not options.offline:
            yield _obstacle(guest, "device", "source", f"it has {words}", "stop the guest and use --offline")
    kept = [name for name, has in (("firmware variables", guest.nvram), ("TPM state", guest.tpm)) if has]
    if options.offline and kept:
        text = f"its {' and '.join(kept)} would stay behind: libvirt moves them with a running guest only"
        yield _obstacle(guest, "firmware", "source", text, "start the guest and move it live, or export and import it")


def _places(guest: MovedGuest, target: TargetHost) -> Iterator[Finding]:
    for name in guest.networks:
        active = target.networks.get(name)
        if active is None:
            hint = f"virsh net-dumpxml {name} here, virsh net-define there"
            yield _obstacle(guest, "network", "target", f"it has no network {name!r}", hint)
        elif not active:
            yield _obstacle(
                guest, "network", "target", f"its network {name!r} is not active", f"virsh net-start {name}"
            )
    for name in guest.interfaces:
        if target.interfaces is None:
            yield _warning(guest, "network", "target", f"whether it has an interface {name!r} cannot be told from here")
        elif name not in target.interfaces:
            hint = f"make it there: ip link add {name} type bridge"
            yield _obstacle(guest, "network", "target", f"it has no bridge or interface {name!r}", hint)
    for path in target.missing_files:
        yield _obstacle(guest, "file", "target", f"it has no {path}", "copy it there")
    for path in target.unseen_files:
        yield _warning(guest, "file", "target", f"whether it has {path} cannot be told from here")


def _disk(guest: MovedGuest, disk: MovedDisk, options: MigrationOptions) -> Iterator[Finding]:
    what = f"disk {disk.target}"
    if is_copied(disk, options):
        yield from _copied(guest, disk, options)
        return
    yield from _left_out(guest, disk)
    if disk.kind == "network":
        pass
    elif disk.read_only or disk.shareable:
        if disk.exists is False:
            yield _obstacle(guest, what, "target", f"it has no {disk.path}", "--copy-storage copies it; or eject it")
        elif disk.exists is None and not disk.shared:
            yield _warning(guest, what, "target", f"whether it has {disk.path} cannot be told from here")
        return
    elif disk.shared is False:
        text = f"{disk.path} is on storage that the two hosts do not share"
        yield _obstacle(guest, what, "both", text, "--copy-storage copies it")
    elif disk.shared is None and not options.assume_shared:
        text = f"whether both hosts see the same {disk.path} cannot be told: no pool of both holds it"
        hint = "define a pool there on both; --copy-storage copies it; --assume-shared where you know better"
        yield _obstacle(guest, what, "both", text, hint)
    if not options.offline and (disk.cache or "writeback") not in SAFE_CACHES:
        text = f"its cache mode is {disk.cache or 'writeback'}: what this host caches of it could be lost"
        hint = f"set cache: none for it in the guest file, and restart {argument(guest.name)}"
        yield _obstacle(guest, what, "source", text, hint)


def is_copied(disk: MovedDisk, options: MigrationOptions) -> bool:
    """Whether a move with these options copies the disk. One that both hosts have would be written over itself."""
    shared = options.assume_shared if disk.shared is None else disk.shared
    disc = disk.read_only and disk.kind != "network" and disk.exists is False
    return options.copy_storage and (disk.copied or disc) and not shared


def is_copied_here(disk: MovedDisk, options: MigrationOptions) -> bool:
    """Whether it is not libvirt that copies it: that leaves discs out, and does nothing for a guest that is off."""
    return is_copied(disk, options) and (options.offline or disk.read_only)


def _left_out(guest: MovedGuest, disk: MovedDisk) -> Iterator[Finding]:
    """What a disk overlays that is not copied."""
    for base in disk.below:
        if not base.shared and base.exists is False:
            hint = "copy it there; kvmctl export puts all of a disk into one image"
            yield _obstacle(guest, f"disk {disk.target}", "target", f"it has no {base.path}, which is overlaid", hint)


def _copied(guest: MovedGuest, disk: MovedDisk, options: MigrationOptions) -> Iterator[Finding]:
    what = f"disk {disk.target}"
    if is_copied_here(disk, options):
        yield from _readable(guest, what, disk)
        for base in disk.below:
            yield from _below(guest, what, base)
    if disk.needed_by:
        text = f"{disk.path} there is needed by {', '.join(disk.needed_by)}, and is not written over"
        yield _obstacle(guest, what, "target", text, "give one of the two an image of another name")
    elif disk.exists and disk.shared is None:
        text = f"it has {disk.path}, and whether that is the very image that the guest uses cannot be told"
        yield _obstacle(guest, what, "both", text, "define a pool of its folder on both hosts")
    elif disk.exists and not options.overwrite:
        text = f"it has an image {disk.path} already"
        yield _obstacle(guest, what, "target", text, "remove it there, or write over it by --overwrite")
    if disk.pool is None and not disk.exists:
        text = f"no pool of it holds the folder of {disk.path}, so there is nowhere to copy it to"
        yield _obstacle(guest, what, "target", text, "define a pool of that folder there: virsh pool-define-as")
    if disk.backing and not options.offline:
        yield _warning(guest, what, "both", f"{disk.path} is copied whole, with what it overlays")


def _readable(guest: MovedGuest, what: str, image: MovedDisk) -> Iterator[Finding]:
    if not image.held:
        text = f"no pool of it holds the folder of {image.path}, so it cannot be read"
        yield _obstacle(guest, what, "source", text, "define a pool of that folder: virsh pool-define-as")


def _below(guest: MovedGuest, what: str, base: MovedDisk) -> Iterator[Finding]:
    if base.shared:
        return
    yield from _readable(guest, what, base)
    if base.exists and base.differs:
        text = f"it has another {base.path}, which the disk would overlay there"
        yield _obstacle(guest, what, "target", text, "give one of the two another name")
    elif not base.exists and base.pool is None:
        text = f"no pool of it holds the folder of {base.path}, which is overlaid"
        yield _obstacle(guest, what, "target", text, "define a pool of that folder there: virsh pool-define-as")


def _arriving(guest: MovedGuest, options: MigrationOptions) -> dict[str, MovedDisk]:
    """The images that a move makes at the target, by path."""
    found: dict[str, MovedDisk] = {}
    for disk in guest.disks:
        if is_copied(disk, options):
            below = [base for base in disk.below if not base.shared] if is_copied_here(disk, options) else []
            found |= {str(image.path): image for image in (disk, *below) if image.exists is False}
    return found


def _room(guest: MovedGuest, target: TargetHost, options: MigrationOptions) -> Iterator[Finding]:
    """What is copied has to fit, together with that of the guests before."""
    own = _arriving(guest, options)
    images = [*own.values(), *(image for path, image in target.arriving.items() if path not in own)]
    for pool in dict.fromkeys(image.pool for image in own.values()):
        room = min(
            (image.room for image in own.values() if image.pool == pool and image.room is not None), default=None
        )
        needed = sum(image.allocation or image.capacity or 0 for image in images if image.pool == pool)
        if pool is not None and room is not None and needed > room:
            text = f"its pool {pool} has {human_size(room)} free, and what is copied takes {human_size(needed)}"
            yield _obstacle(guest, "room", "target", text, "make room there")


def _promises(guest: MovedGuest, target: TargetHost, options: MigrationOptions) -> Iterator[Finding]:
    if guest.state not in ACTIVE:
        return
    for what, verdict in verdicts(target, {guest.name: guest.promise}, guest.memory):
        if not verdict.admitted:
            hint = "lower a reservation, stop a guest there, or break the promise knowingly by --force"
            text = f"it cannot keep what would be promised: {what}: {verdict.arithmetic}"
            make = _warning if options.force else _obstacle
            yield make(guest, "admission", "target", text, hint)
    if not target.known_policy:
        text = "how much it keeps for itself is not known here: the default for its size counts"
        yield _warning(guest, "policy", "target", text, "name its policy file in /etc/kvmctl/hosts.yaml")


def verdicts(target: TargetHost, candidates: Mapping[str, Promise], taken: int) -> Iterator[tuple[str, Verdict]]:
    """Admission as the target itself would decide it; `taken` are the bytes that arrive with the guests."""
    policy = target.policy.memory
    room = guests_memory(target.memory, policy.reserve, policy.limit)
    reserve = cpu_reserve(target.policy, target.cores)
    yield "CPU reservations", admit_cpu(target.running, candidates, target.cores, reserve)
    yield "memory reservations", admit_memory(target.running, candidates, target.memory, room)
    yield "memory overcommit", admit_overcommit(target.running, candidates, room, policy.overcommit)
    if target.available is not None:
        yield "available memory", admit_state(target.available, reserve_of(policy, target.memory), taken)


def _versions(guest: MovedGuest, target: TargetHost) -> Iterator[Finding]:
    for name, here, there in zip(("libvirt", "hypervisor"), target.source_versions, target.versions, strict=True):
        if number(there) < number(here):
            text = f"its {name} is older ({there}) than the source's ({here}): moves to an older one may fail"
            yield _warning(guest, "version", "target", text, "upgrade it first")


def number(version: str) -> tuple[int, ...]:
    """`QEMU 7.2.22` as (7, 2, 22)."""
    parts = version.rpartition(" ")[2].split(".")
    return tuple(int(part) for part in parts if part.isdigit())
