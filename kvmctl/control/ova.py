"""Guests of and for other hypervisors: a tar with an OVF that describes one, its disks as VMDK, and their sums."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from kvmctl.control import identity as identities
from kvmctl.control import place
from kvmctl.control.accelerate import chooser
from kvmctl.control.inspect import described
from kvmctl.control.meter import Meter, shares
from kvmctl.control.moment import Moment
from kvmctl.control.place import Place, Plan, Wishes
from kvmctl.control.plan import Planner
from kvmctl.host import qemu_img, tarstream, vmdk
from kvmctl.host.staging import check_room, staging
from kvmctl.host.tarstream import Reader
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.archive import MAX_TEXT, Manifest, Part
from kvmctl.model.defaults import fill
from kvmctl.model.errors import RefusedError, UsageError
from kvmctl.model.spec import BootSpec, CpuSpec, DiskSpec, GuestSpec, MemorySpec, NicSpec, VncSpec
from kvmctl.model.units import MIB
from kvmctl.xml import identity, ovf
from kvmctl.xml.adopt import Placed, adopt
from kvmctl.xml.ovf import Machine
from kvmctl.xml.render import render

_SUM = re.compile(r"(SHA1|SHA256|SHA512)\s?\(([^)]+)\)\s*=\s*([0-9A-Fa-f]+)", re.ASCII)
_MAGIC = b"ustar"
_AT = 257


@dataclass(frozen=True, slots=True)
class Package:
    """A guest's OVA, ready to be written; `notes` tells what is not in it."""

    files: tuple[tuple[str, bytes | Path], ...]
    notes: tuple[str, ...]
    meter: Meter

    def __call__(self, sink: int) -> None:
        """Write it to the file descriptor."""
        sizes = [len(one) if isinstance(one, bytes) else one.stat().st_size for _name, one in self.files]
        self.meter.begin("write", sum(sizes))
        with os.fdopen(sink, "wb", closefd=False) as stream:
            writer = tarstream.Writer(stream)
            for (name, content), size in zip(self.files, sizes, strict=True):
                with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
                    writer.add(name, size, source, self.meter.moved)
            writer.finish()


def package(hypervisor: Hypervisor, name: str, now: Moment, folder: Path, meter: Meter) -> Package:
    """Make the OVA of a guest whose images have been put together. Raises RefusedError where none would start."""
    spec, _ = described(hypervisor, name)
    if spec.boot.kernel:
        raise RefusedError(
            f"guest {name} boots a kernel of the host, which an OVA has no place for", "boot it from a disk"
        )
    disks = [found for found in now.images if found.drive.kind == "disk"]
    meter.begin("convert", sum(found.path.stat().st_size for found in disks))
    files = []
    for number, found in enumerate(disks, 1):
        target = folder / f"{name}-disk{number}.vmdk"
        size = found.path.stat().st_size
        qemu_img.convert(found.path, "qcow2", target, "vmdk", shares(meter, size), "subformat=streamOptimized")
        files.append((target, found.capacity))
    now.check()
    machine = _machine(spec, len(disks))
    written = tuple(ovf.Written(path.name, path.stat().st_size, capacity) for path, capacity in files)
    text = ovf.render(machine, written, name).encode()
    listed: list[tuple[str, bytes | Path]] = [(f"{name}.ovf", text)]
    listed += [(path.name, path) for path, _capacity in files]
    sums = "".join(f"SHA256({label})= {_digest(content, 'sha256')}\n" for label, content in listed)
    listed.insert(1, (f"{name}.mf", sums.encode()))
    return Package(tuple(listed), tuple(_left(spec, now)), meter)


def _machine(spec: GuestSpec, disks: int) -> Machine:
    cards = tuple(ovf.Card(nic.network or nic.bridge or "nat", nic.model or "e1000") for nic in spec.nics or ())
    blank = tuple(ovf.Disk("", 1) for _ in range(disks))
    size = spec.memory.max or spec.memory.size or MIB
    return Machine(spec.name, spec.cpu.count or 1, size, spec.boot.firmware or "bios", blank, cards)


def _left(spec: GuestSpec, now: Moment) -> Iterator[str]:
    for found in now.images:
        if found.drive.kind != "disk":
            what = "a cloud-init seed" if found.drive.kind == "seed" else "a CD-ROM"
            yield f"not in an OVA: drive {found.drive.target}, {what}"
    if now.tpm is not None:
        yield "not in an OVA: the state of its TPM, and so whatever that keeps keys for"
    yield "not in an OVA: shares, reservations, limits, labels, and devices beside disks and network cards"
    if any(disk.bus == "virtio" for disk in spec.disks or ()):
        yield "its virtio disks are on SATA there; the system in it needs a driver for that"


def _digest(content: bytes | Path, kind: str) -> str:
    if isinstance(content, bytes):
        return hashlib.new(kind, content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def is_ova(path: Path | None) -> bool:
    """Whether a file is a tar as it stands, as an OVA is. One that cannot be read is none: opening it tells why."""
    try:
        if path is None or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(_AT + len(_MAGIC))[_AT:] == _MAGIC
    except OSError:
        return False


@contextmanager
def read(
    hypervisor: Hypervisor,
    path: Path,
    wishes: Wishes,
    meter: Meter,
    warn: Callable[[str], None],
    planned: Callable[[Plan], None],
) -> Iterator[tuple[Plan, dict[Path, Path]]]:
    """The plan for the guest of an OVA, which `planned` is shown before anything long is done, and its disks, checked
    and converted, by where they are to be.

    Raises as `place.plan`.
    """
    with path.open("rb") as file, ExitStack() as stack:
        reader = Reader(file)
        name, text = _envelope(reader)
        machine = ovf.parse(_decoded(text))
        plan = _plan(hypervisor, machine, wishes, warn)
        planned(plan)
        folder = stack.enter_context(staging(plan.places[0].path.parent, "import")) if plan.places else None
        found = _members(reader, machine, folder, file, meter)
        _check_sums(found | {name: text})
        yield plan, _convert(plan, machine, found, meter)


def _envelope(reader: Reader) -> tuple[str, bytes]:
    first = reader.any("the OVF")
    if first is None or not first[0].endswith(".ovf") or first[1] > MAX_TEXT:
        raise UsageError(
            "this is a tar that is not compressed, and it does not begin with an OVF as an OVA does",
            "take the OVA from where it comes from again; a guest's own file is compressed by zstd",
        )
    return first[0], b"".join(reader.pieces(*first))


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the OVF is no UTF-8 text", "take the OVA from where it comes from again") from error


def _plan(hypervisor: Hypervisor, machine: Machine, wishes: Wishes, warn: Callable[[str], None]) -> Plan:
    name = place.checked_name(wishes.name or machine.name)
    spec = _spec(machine, name, wishes)
    planner = Planner(hypervisor, chooser(hypervisor, warn))
    folder, pool = place.pool_folder(hypervisor, wishes)
    full = fill(spec, planner.platform(chooser(hypervisor, warn)(spec)))
    targets = [disk.target or "" for disk in full.disks or ()]
    paths = {target: folder / f"{name}-{target}.qcow2" for target in targets}
    full = replace(full, disks=tuple(replace(disk, path=str(paths[disk.target or ""])) for disk in full.disks or ()))
    drives = {target: (str(found), "qcow2") for target, found in paths.items()}
    placed = Placed(drives, loaders=None)
    adopted = adopt(render(full, planner.platform(full.accelerator or "tcg")), placed)
    parts = tuple(Part("disk", 0, target, disk.capacity) for target, disk in zip(targets, machine.disks, strict=True))
    own = identities.fresh(hypervisor, adopted.xml, name)
    places = tuple(Place(part, paths[part.target or ""]) for part in parts)
    place.check(hypervisor, own, adopted, places, wishes)
    notes = (*machine.notes, *_moved(machine, targets))
    manifest = Manifest(name, own.uuid, "stopped", "as they are in the OVA", "", "", parts)
    return Plan(manifest, own, name, identity.renew(adopted.xml, own), placed, places, (pool,), None, False, notes)


def _spec(machine: Machine, name: str, wishes: Wishes) -> GuestSpec:
    mapped = wishes.networks or {}
    nics = tuple(NicSpec(network=mapped.get(card.network, card.network), model=card.model) for card in machine.cards)
    return GuestSpec(
        name=name,
        cpu=CpuSpec(count=machine.cpus),
        memory=MemorySpec(size=machine.memory),
        boot=BootSpec(firmware="uefi" if machine.firmware == "uefi" else "bios"),
        disks=tuple(DiskSpec(path=f"/{index}", format="qcow2", bus="sata") for index, _ in enumerate(machine.disks)),
        nics=nics,
        vnc=VncSpec(),
        state="stopped",
    )


def _moved(machine: Machine, targets: list[str]) -> Iterator[str]:
    for target, disk in zip(targets, machine.disks, strict=True):
        if disk.bus != "sata":
            yield f"disk {target} was on {disk.bus.upper()} and is on SATA here, which any system has a driver for"


def _members(
    reader: Reader, machine: Machine, folder: Path | None, file: BinaryIO, meter: Meter
) -> dict[str, bytes | Path]:
    """Every member: small ones as they are, disks in the folder. What nobody asked for is read over."""
    wanted = {disk.file for disk in machine.disks}
    size = os.fstat(file.fileno()).st_size
    meter.begin("read", size)
    found: dict[str, bytes | Path] = {}
    while (member := reader.any()) is not None:
        name, length = member
        if name in found:
            raise UsageError(f"member {name[:100]!r} is in the OVA twice", "the file was tampered with")
        if length > size:
            raise UsageError(f"the file ends within {name[:100]!r}", "copy the file again")
        pieces = reader.pieces(name, length, meter.moved)
        if name in wanted and folder is not None:
            check_room(folder, 2 * length)
            target = folder / f"{len(found)}.vmdk"
            with target.open("xb") as out:
                tarstream.put(pieces, out)
            found[name] = target
        elif name.endswith(".mf") and length <= MAX_TEXT:
            found[name] = b"".join(pieces)
        else:
            for _piece in pieces:
                pass
            found[name] = b""
    missing = sorted(wanted - set(found))
    if missing:
        raise UsageError(f"{', '.join(missing)} is not in the OVA", "take the OVA from where it comes from again")
    return found


def _check_sums(found: dict[str, bytes | Path]) -> None:
    for name, content in found.items():
        if name.endswith(".mf") and isinstance(content, bytes):
            for kind, member, digest in _SUM.findall(content.decode(errors="replace")):
                known = found.get(member)
                if known and _digest(known, kind.lower()) != digest.lower():
                    raise UsageError(f"the content of {member} is not what its sum says", "copy the file again")


def _convert(plan: Plan, machine: Machine, found: dict[str, bytes | Path], meter: Meter) -> dict[Path, Path]:
    files = {}
    for one, disk in zip(plan.places, machine.disks, strict=True):
        source = found[disk.file]
        assert isinstance(source, Path)
        vmdk.check(source, disk.capacity)
        target = source.with_suffix(f".{one.part.target}.qcow2")
        size = qemu_img.required(source, "vmdk")
        check_room(target.parent, size)
        meter.begin("convert", size)
        qemu_img.convert(source, "vmdk", target, "qcow2", shares(meter, size))
        files[one.path] = target
    return files


def document(path: Path) -> dict[str, Any]:
    """The guest of an OVA, from its OVF alone, with stable keys; sizes are bytes. Raises UsageError."""
    with path.open("rb") as file:
        found = ovf.parse(_decoded(_envelope(Reader(file))[1]))
    data = asdict(found)
    return {"format": "ova", "guest": data.pop("name"), **data}
