"""Values of the model, for the laws that several tiers state."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from kvmctl.model.cpuset import format_cpuset
from kvmctl.model.rules import check
from kvmctl.model.spec import (
    BootSpec,
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestSpec,
    IoSpec,
    MemorySpec,
    NicSpec,
    PassedSpec,
    VncSpec,
)
from kvmctl.model.units import GIB, MIB

settings.register_profile("kvmctl", deadline=None)  # no law is about time, and the machine may be busy
settings.load_profile("kvmctl")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PRINTABLE = st.characters(
    exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff", include_characters=" <>&\"'/"
)

guest_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.+-]{0,62}", fullmatch=True)
file_names = st.from_regex(r"[a-z0-9][a-z0-9 ._-]{0,20}[a-z0-9]", fullmatch=True)
paths = st.lists(file_names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
prose = st.text(st.one_of(PRINTABLE, st.sampled_from("\n\t ")), max_size=200)
lines = st.text(PRINTABLE, min_size=1, max_size=60)
macs = st.integers(0, 0xFFFFFF).map(lambda n: f"52:54:00:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}")
cores = st.integers(10, 64_000).map(lambda thousandths: thousandths / 1000)
shares = st.one_of(st.integers(1, 1_000_000), st.sampled_from(["low", "normal", "high"]))
cpusets = st.frozensets(st.integers(0, 4095), min_size=1, max_size=12)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def mebibytes(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most).map(lambda number: number * MIB)


@st.composite
def cpu_specs(draw: st.DrawFn) -> CpuSpec:
    count = draw(maybe(st.integers(1, 64)))
    limit = draw(maybe(st.just(math.inf) | cores))
    most = min(count or 64, limit or 64)
    return CpuSpec(
        count=count,
        max=draw(maybe(st.integers(count or 1, 128))),
        shares=draw(maybe(shares)),
        limit=limit,
        reservation=draw(maybe(st.integers(0, int(most * 1000)).map(lambda thousandths: thousandths / 1000))),
        pin=draw(maybe(st.just("") | cpusets.map(format_cpuset))),
        emulator_pin=draw(maybe(st.just("") | cpusets.map(format_cpuset))),
        model=draw(maybe(st.sampled_from(["host-passthrough", "host-model", "maximum", "qemu64", "EPYC-Rome"]))),
    )


@st.composite
def memory_specs(draw: st.DrawFn) -> MemorySpec:
    size = draw(maybe(mebibytes(16, 65536)))
    hugepages = draw(maybe(st.sampled_from([0, 2 * MIB, GIB])))
    merged = st.just(False) if hugepages else st.booleans()
    return MemorySpec(
        size=size,
        max=draw(maybe(mebibytes((size or 0) // MIB or 16, 131072))),
        reservation=draw(maybe(mebibytes(0, (size or GIB) // MIB))),
        shares=draw(maybe(shares)),
        sharing=draw(maybe(merged)),
        swap=draw(maybe(merged)),
        hugepages=hugepages,
    )


@st.composite
def boot_specs(draw: st.DrawFn) -> BootSpec:
    kernel = draw(maybe(paths))
    order = st.lists(st.sampled_from(["disk", "cdrom", "network"]), min_size=1, unique=True).map(tuple)
    return BootSpec(
        kernel=kernel,
        initrd=draw(maybe(paths)) if kernel else None,
        cmdline=draw(maybe(prose)) if kernel else None,
        iso=None if kernel else draw(maybe(paths)),
        order=draw(maybe(order)),
        firmware=draw(maybe(st.sampled_from(["bios", "uefi"]))),
        machine=draw(maybe(st.sampled_from(["q35", "pc", "pc-q35-7.2", "pc-i440fx-7.2"]))),
    )


@st.composite
def disk_specs(draw: st.DrawFn) -> DiskSpec:
    shape = draw(st.sampled_from(["path", "volume", "empty"]))
    cdrom = shape == "empty" or draw(st.booleans())
    volume = shape == "volume"
    base = draw(maybe(file_names | paths)) if volume else None
    bus = draw(maybe(st.sampled_from(["scsi", "sata"] if cdrom else ["virtio", "scsi", "sata"])))
    mode = draw(maybe(st.sampled_from(_modes(bus))))
    letter = draw(maybe(st.sampled_from(LETTERS)))
    virtio = not cdrom and (bus == "virtio" or (bus is None and (letter is None or mode is not None)))
    return DiskSpec(
        path=draw(paths) if shape == "path" else None,
        volume=draw(file_names) if volume else None,
        pool=draw(maybe(file_names)) if volume else None,
        size=draw(maybe(mebibytes(1, 1 << 20))) if volume else None,
        format=None if shape == "empty" else draw(maybe(st.sampled_from(["qcow2"] if base else ["qcow2", "raw"]))),
        base=base,
        bus=bus,
        device="cdrom" if cdrom else draw(st.sampled_from([None, "disk"])),
        target=letter and ("vd" if bus == "virtio" else "sd") + letter,
        cache=draw(maybe(st.sampled_from(["none", "writeback", "writethrough", "directsync", "unsafe"]))),
        read_only=draw(maybe(st.just(False) if bus == "sata" and not cdrom else st.booleans())),
        iothread=draw(maybe(st.booleans() if virtio else st.just(False))),
        mode=mode,
        **draw(disk_ceilings()),
    )


def _modes(bus: str | None) -> list[str]:
    """Those that do not contradict the bus; without one the mode that a thread of its own needs."""
    return ["emulated"] if bus == "sata" else ["paravirtual"]


@st.composite
def disk_ceilings(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what, rates in (("iops", st.integers(1, 10**6)), ("bandwidth", st.integers(1, 10**11))):
        names = draw(st.sampled_from([(), (what,), (f"read_{what}",), (f"read_{what}", f"write_{what}")]))
        for name in names:
            found[name] = draw(rates)
            if draw(st.booleans()):
                found[f"{name}_burst"] = found[name] + draw(rates)
        if what not in names and draw(st.booleans()):
            found[what] = 0
    if any(name.endswith("_burst") for name in found):
        found["burst_seconds"] = draw(maybe(st.integers(1, 3600)))
    return found


@st.composite
def nic_ceilings(draw: st.DrawFn) -> dict[str, Any]:
    rates, found = st.integers(1, 10**7).map(lambda kilobytes: kilobytes * 1000), {}
    for way in draw(st.sampled_from([(), ("in",), ("out",), ("in", "out")])):
        found[f"bandwidth_{way}"] = draw(rates)
        found[f"bandwidth_{way}_burst"] = draw(maybe(st.integers(0, 10**6).map(lambda kib: kib * 1024)))
        if way == "in" and draw(st.booleans()):
            found["bandwidth_in_peak"] = found["bandwidth_in"] + draw(rates)
    return found


@st.composite
def nic_specs(draw: st.DrawFn) -> NicSpec:
    link: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"network": file_names}),
            st.fixed_dictionaries({"bridge": st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True)}),
            st.just({"user": True}),
        )
    )
    model = draw(maybe(st.sampled_from(["virtio", "e1000e", "rtl8139"])))
    virtio = model in (None, "virtio")
    return NicSpec(
        **link,
        model=model,
        mac=draw(maybe(macs)),
        mode=draw(maybe(st.sampled_from(["paravirtual"] if virtio else ["emulated"]))),
        queues=draw(maybe(st.integers(1, 16 if virtio and "user" not in link else 1))),
        **({} if "user" in link else draw(nic_ceilings())),
    )


pci_addresses = st.builds(
    "{:04x}:{:02x}:{:02x}.{:x}".format,
    st.integers(0, 0xFFFFFFFF) | st.just(0),
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
)


@st.composite
def passed_specs(draw: st.DrawFn) -> PassedSpec:
    """Devices whose names are known, as they are in a definition."""
    if draw(st.booleans()):
        return PassedSpec(mdev=str(draw(st.uuids())))
    address = draw(pci_addresses)
    mac = draw(maybe(macs))
    return PassedSpec(
        pci=address,
        vf_of=draw(maybe(pci_addresses.filter(lambda card: card != address))),
        mac=mac,
        vlan=draw(maybe(st.integers(0, 4094))) if mac else None,
        spoof_check=draw(maybe(st.booleans())),
        trust=draw(maybe(st.booleans())),
    )


@st.composite
def cloud_init_specs(draw: st.DrawFn) -> CloudInitSpec:
    network_config = draw(maybe(paths))
    if draw(st.booleans()):
        return CloudInitSpec(user_data=draw(paths), network_config=network_config)
    keys = st.just("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8 someone@here") | paths
    return CloudInitSpec(
        hostname=draw(maybe(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))),
        user=draw(maybe(st.from_regex(r"[a-z_][a-z0-9_-]{0,31}", fullmatch=True))),
        ssh_keys=tuple(draw(st.lists(keys, max_size=3))),
        network_config=network_config,
    )


vnc_specs = st.builds(
    VncSpec, st.booleans(), st.sampled_from(["127.0.0.1", "0.0.0.0", "::1"]), st.just(0) | st.integers(5900, 65535)
)
console_specs = st.builds(ConsoleSpec, st.booleans(), maybe(paths))
labels = st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9._/-]{0,20}", fullmatch=True), lines, max_size=4)


@st.composite
def guest_specs(draw: st.DrawFn, names: st.SearchStrategy[str] = guest_names) -> GuestSpec:
    """Specs that a guest file can say, without a project: that is the file's."""
    spec = GuestSpec(
        name=draw(names),
        cpu=draw(cpu_specs()),
        memory=draw(memory_specs()),
        boot=draw(boot_specs()),
        io=IoSpec(draw(maybe(st.just(0) | st.integers(10, 1000)))),
        accelerator=draw(maybe(st.sampled_from(["auto", "kvm", "tcg"]))),
        disks=draw(maybe(st.lists(disk_specs(), max_size=3).map(distinct_disks))),
        nics=draw(maybe(st.lists(nic_specs(), max_size=3).map(distinct_nics))),
        passthrough=draw(maybe(st.lists(passed_specs(), max_size=3).map(distinct_passed))),
        cloud_init=draw(maybe(cloud_init_specs())),
        console=draw(maybe(console_specs)),
        vnc=draw(maybe(vnc_specs)),
        agent=draw(maybe(st.booleans())),
        rng=draw(maybe(st.booleans())),
        autostart=draw(maybe(st.booleans())),
        description=draw(maybe(prose)),
        rebalance=draw(maybe(st.booleans())),
        labels=draw(maybe(labels.map(lambda said: tuple(sorted(said.items()))))),
        state=draw(maybe(st.sampled_from(["running", "paused", "stopped"]))),
    )
    assert check(spec) == []
    return spec


def distinct_disks(disks: list[DiskSpec]) -> tuple[DiskSpec, ...]:
    """The disks without those whose image or target an earlier one has."""
    kept: dict[object, DiskSpec] = {}
    targets: set[str | None] = set()
    for disk in disks:
        image = (disk.path, disk.pool, disk.volume) if disk.path or disk.volume else len(kept)
        if image not in kept and (disk.target is None or disk.target not in targets):
            kept[image] = disk
            targets.add(disk.target)
    return tuple(kept.values())


def distinct_passed(devices: list[PassedSpec]) -> tuple[PassedSpec, ...]:
    """The devices, each once, no card beside its functions; nics of a guest have other MAC addresses."""
    seen: set[str | None] = set()
    kept: list[PassedSpec] = []
    for device in devices:
        names = {device.pci, device.vf_of, device.mdev} - {None}
        if not names & seen:
            seen |= names
            kept.append(
                device if device.mac is None else dataclasses.replace(device, mac=f"52:54:01:00:00:0{len(kept)}")
            )
    return tuple(kept)


def distinct_nics(nics: list[NicSpec]) -> tuple[NicSpec, ...]:
    """The nics, each MAC address once."""
    seen: set[str | None] = {None}
    kept = []
    for nic in nics:
        kept.append(nic if nic.mac not in seen else dataclasses.replace(nic, mac=None))
        seen.add(nic.mac)
    return tuple(kept)
