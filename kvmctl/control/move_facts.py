"""What both hosts say of a guest that is to move: everything is asked, nothing is changed but for one empty file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from kvmctl.control import chains
from kvmctl.control.hosts import policy_of
from kvmctl.control.select import Guest
from kvmctl.control.weights import claims
from kvmctl.host import content, tls
from kvmctl.host.process import find_guests
from kvmctl.hypervisor import capabilities, domains, host, moving, scheduler, sharing
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.sharing import FolderPool
from kvmctl.model.errors import KvmctlError
from kvmctl.model.hostsfile import NamedHost
from kvmctl.model.migration import MovedDisk, MovedGuest, TargetHost
from kvmctl.model.platform import Platform
from kvmctl.model.sample import ACTIVE
from kvmctl.xml import moving as described
from kvmctl.xml import tree
from kvmctl.xml.capabilities import parse_platform
from kvmctl.xml.metadata import promise_in

MOST_IMAGES = 64
"""Images that lie over each other; more go in a circle."""
RUN = 20_000_000
"""Nanoseconds of a vCPU's time: one that only came up has less."""


class Facts:
    """What two hosts are, asked once for all the guests that move between them."""

    def __init__(self, source: Hypervisor, target: Hypervisor, named: NamedHost) -> None:
        self.source = source
        self.target = target
        self.named = named
        self._capabilities = {one.uri: capabilities.capabilities(one) for one in (source, target)}
        self._pools = (sharing.folder_pools(source), sharing.folder_pools(target))
        self._shared: dict[str, bool | None] = {}
        self._users: dict[str, dict[str, str]] | None = None
        self._over: dict[str, dict[str, list[str]]] = {}
        self._platforms: dict[tuple[str, str], Platform | None] = {}
        self.clock_ahead: float | None = None
        self._host = self._described()

    def _described(self) -> TargetHost:
        """The target as every guest meets it."""
        target = self.target
        node = host.node(target)
        policy, known = policy_of(self.named, target)
        here, there = host.versions(self.source), host.versions(target)
        uuids = {described.host_uuid(text) for text in self._capabilities.values()}
        running = {claim.name: claim.promise for claim, _ in claims(domains.samples_with_domains(target))}
        return TargetHost(
            uri=target.uri,
            same_host=len(uuids) == 1 and None not in uuids,
            versions=(there.daemon, there.hypervisor),
            source_versions=(here.daemon, here.hypervisor),
            machines=None,
            firmwares=None,
            cpu=None,
            networks={network.name: network.active for network in host.networks(target) or ()},
            interfaces=moving.interfaces(target),
            namesake=None,
            same_uuid=None,
            running=running,
            cores=scheduler.host_cores(target),
            memory=node.memory if node else 0,
            available=moving.available_memory(target),
            policy=policy,
            known_policy=known,
            reachable_by=_unreachable(target),
            source_tls=_tls(self.source, "client"),
            tls=_tls(target, "server"),
        )

    def guest(self, guest: Guest) -> tuple[MovedGuest, TargetHost]:
        """One guest, and the target as this guest meets it."""
        sample, domain = guest
        active = sample.state in ACTIVE
        stored = tree.read(domains.definition(domain))
        root = tree.read(domains.live_definition(domain)) if active else stored
        snapshots, saved = moving.holds(domain)
        found = MovedGuest(
            name=sample.name,
            uuid=sample.uuid,
            state=sample.state,
            persistent=domains.is_persistent(domain),
            virt_type=root.get("type", ""),
            arch=_attribute(root, "os/type", "arch"),
            machine=_attribute(root, "os/type", "machine"),
            cpu_mode=_attribute(root, "cpu", "mode") or None,
            memory=sample.balloon.current or 0,
            promise=promise_in(stored, sample.vcpus) if active else promise_in(stored),
            disks=tuple(self._disk(domain, disk, active) for disk in described.disks(root)),
            networks=described.networks(root),
            interfaces=described.interfaces(root),
            host_devices=described.host_devices(root),
            immovable=described.immovable(root),
            uefi=described.is_uefi(root),
            nvram=described.has_nvram(root),
            tpm=described.has_tpm(root),
            snapshots=snapshots,
            saved=saved,
            job=moving.busy_with(domain) if active else None,
            has_run=not sample.vcpu_time or max(sample.vcpu_time) >= RUN,
        )
        return found, self._for(found, root)

    def _for(self, guest: MovedGuest, root: Element) -> TargetHost:
        namesake, same_uuid = moving.counterpart(self.target, guest.name, guest.uuid)
        platform = self._platform(guest.virt_type, guest.arch)
        missing, unseen = self._files(described.files(root))
        return replace(
            self._host,
            machines=None if platform is None else tuple(canonical for _alias, canonical in platform.machines),
            firmwares=None if platform is None else platform.firmwares,
            cpu=self._cpu(guest, root),
            namesake=namesake,
            same_uuid=same_uuid,
            missing_files=missing,
            unseen_files=unseen,
            clock_ahead=self.clock_ahead,
        )

    def _platform(self, virt_type: str, arch: str) -> Platform | None:
        key = virt_type, arch
        if key not in self._platforms:
            try:
                text = capabilities.domain_capabilities(self.target, virt_type, arch, None)
                self._platforms[key] = parse_platform(self._capabilities[self.target.uri], text)
            except KvmctlError:
                self._platforms[key] = None
        return self._platforms[key]

    def _cpu(self, guest: MovedGuest, root: Element) -> str | None:
        wanted = described.cpu(root)
        if wanted is None:
            return ""
        if guest.cpu_mode == "host-passthrough":
            # Such a guest has been given this host's own processor.
            wanted = described.host_cpu(self._capabilities[self.source.uri]) or wanted
        return moving.cpu_difference(self.target, wanted, guest.arch, guest.machine, guest.virt_type)

    def _files(self, paths: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those that the target lacks, and those of which it cannot be told."""
        missing, unseen = [], []
        for path in paths:
            pool = self._pools[1].get(str(PurePosixPath(path).parent))
            if pool is None:
                unseen.append(path)
            elif sharing.image_at(pool, PurePosixPath(path).name) is None:
                missing.append(path)
        return tuple(missing), tuple(unseen)

    def _disk(self, domain: Any, disk: MovedDisk, active: bool) -> MovedDisk:
        if disk.kind == "network" or not disk.path:
            return replace(disk, shared=True)
        found = self._image(disk, disk.path, sharing.block_sizes(domain, disk.target) if active else None)
        if found.copied and not found.shared:
            found = replace(found, needed_by=self._needed_by(found, domain.UUIDString()))
        return found if active or not found.held else replace(found, below=self._below(disk))

    def _image(self, disk: MovedDisk, path: str, sizes: tuple[int, int] | None) -> MovedDisk:
        folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
        here, there = self._pools[0].get(folder), self._pools[1].get(folder)
        if sizes is None and here is not None:
            sizes = sharing.image_at(here, name)
        found = None if there is None else sharing.image_at(there, name)
        return replace(
            disk,
            path=path,
            capacity=sizes and sizes[0],
            allocation=sizes and sizes[1],
            shared=self._is_shared(folder, here, there),
            exists=None if there is None else found is not None,
            pool=there.name if there else None,
            room=there.available if there else None,
            held=here is not None,
            differs=bool(sizes and found and sizes[0] != found[0]),
        )

    def _needed_by(self, disk: MovedDisk, uuid: str) -> tuple[str, ...]:
        if self._users is None:
            self._users = chains.users(self.target)
        path = disk.path or ""
        guests = [f"guest {name}" for own, name in sorted(self._users.get(path, {}).items()) if own != uuid]
        pool = self._pools[1].get(str(PurePosixPath(path).parent)) if disk.exists else None
        if pool is None:
            return tuple(guests)
        # libvirt tells of a guest that is off only what it uses itself.
        if pool.path not in self._over:
            self._over[pool.path] = sharing.overlays(pool)
        return (*guests, *(f"image {name}" for name in sorted(self._over[pool.path].get(path, ()))))

    def _below(self, disk: MovedDisk) -> tuple[MovedDisk, ...]:
        """What the image overlays, as far as pools of the source know it."""
        found: list[MovedDisk] = []
        path = disk.path or ""
        while len(found) < MOST_IMAGES and (pool := self._pools[0].get(str(PurePosixPath(path).parent))):
            name = PurePosixPath(path).name
            path = sharing.backing(pool, name) or "" if sharing.image_at(pool, name) else ""
            if not path:
                break
            found.append(self._image(disk, path, None))
        return tuple(found)

    def _is_shared(self, folder: str, here: FolderPool | None, there: FolderPool | None) -> bool | None:
        if there is None:
            return None
        if folder not in self._shared:
            self._shared[folder], ahead = sharing.probe(there, here)
            if ahead is not None:
                self.clock_ahead = ahead
        return self._shared[folder]


def _unreachable(target: Hypervisor) -> str:
    if not target.local and "test" not in target.uri.partition(":")[0]:
        return ""
    return f"the source's daemon reaches no other host by {target.uri}"


def _tls(hypervisor: Hypervisor, role: str) -> str | None:
    """Why a host cannot encrypt a move; libvirt does not tell, so that of another machine it is not known."""
    folder = tls.migration_folder() if hypervisor.local else None
    return None if folder is None else tls.why_not(folder, role)


def _attribute(root: Element, path: str, name: str) -> str:
    found = root.find(path)
    return "" if found is None else found.get(name, "")


def sent(hypervisor: Hypervisor, guest: MovedGuest, domain: Any) -> int:
    """Bytes of the guest's memory that a move has to send at least once."""
    if hypervisor.local:
        pid = find_guests([guest.uuid]).get(guest.uuid)
        found = None if pid is None else content.content(pid, _mapped(guest))
        if found is not None:
            return found
    return min(guest.memory, moving.rss(domain) or guest.memory)


def _mapped(guest: MovedGuest) -> int:
    return guest.promise.memory_max or guest.memory


def disk_bytes(disks: Sequence[MovedDisk]) -> int:
    """Bytes of disks that are copied."""
    return sum(disk.capacity or 0 if disk.allocation is None else disk.allocation for disk in disks)
