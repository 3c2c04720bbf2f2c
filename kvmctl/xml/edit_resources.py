"""The CPU and memory of an existing definition."""

from __future__ import annotations

import math

from lxml import etree
from lxml.etree import _Element

from kvmctl.model.errors import RefusedError
from kvmctl.model.spec import GuestSpec, cpu_shares
from kvmctl.model.units import KIB
from kvmctl.xml import dom
from kvmctl.xml.resources import PERIOD, clamp_shares, quota


def edit(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    """Make `<vcpu>`, `<cputune>`, `<memory>` and `<memoryBacking>` say what `desired` says.

    Raises RefusedError where a CPU topology or NUMA cells say otherwise.
    """
    _vcpus(root, desired, now)
    _shares(root, desired, now)
    _limit(root, desired, now)
    _emulator_pin(root, desired, now)
    _sizes(root, desired, now)
    _pages(root, desired, now)


def together(wanted: int | None, wanted_max: int | None, now: int, now_max: int) -> tuple[int, int]:
    """An amount and its maximum. Where one of them is not said it gives way to the other."""
    most = wanted_max or max(now_max, wanted or 0)
    return wanted or min(now, most), most


def _vcpus(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    before = (now.cpu.count or 1, now.cpu.max or 1)
    count, most = together(desired.cpu.count, desired.cpu.max, *before)
    if (count, most) != before:
        if most != before[1]:
            _fit_topology(root, most, now.name)
        vcpu = dom.child(root, "vcpu")
        vcpu.text = str(most)
        dom.mark(vcpu, "current", str(count) if count < most else None)
        _list_vcpus(root, count, most)
    if desired.cpu.pin is not None and desired.cpu.pin != now.cpu.pin:
        vcpu = dom.child(root, "vcpu")
        dom.mark(vcpu, "cpuset", desired.cpu.pin or None)
        if vcpu.get("placement") == "auto":
            vcpu.set("placement", "static")


def _list_vcpus(root: _Element, count: int, most: int) -> None:
    """Without a list libvirt makes one of vCPUs that stay; where some could be unplugged, all but the first can."""
    pluggable = root.find("vcpus/vcpu[@hotpluggable='yes']") is not None
    dom.drop(root, "vcpus")
    for number in range(most if pluggable else 0):
        words = {"enabled": number < count, "hotpluggable": number > 0}
        said = {"id": str(number)} | {word: "yes" if true else "no" for word, true in words.items()}
        dom.insert(dom.child(root, "vcpus"), etree.Element("vcpu", said))


def _fit_topology(root: _Element, most: int, name: str) -> None:
    topology = root.find("cpu/topology")
    if topology is None:
        return
    of_socket = math.prod(int(topology.get(part) or 1) for part in ("dies", "cores", "threads"))
    if most % of_socket:
        raise RefusedError(
            f"guest {name} has a CPU topology with {of_socket} vCPUs in each socket: a maximum of {most} does not fit",
            f"choose a multiple of {of_socket}, or change <topology> with virsh edit {name}",
        )
    topology.set("sockets", str(most // of_socket))


def _shares(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    count = together(desired.cpu.count, desired.cpu.max, now.cpu.count or 1, now.cpu.max or 1)[0]
    wanted = now.cpu.shares if desired.cpu.shares is None else desired.cpu.shares
    # A level is per vCPU, so its number follows a new count.
    follows = isinstance(wanted, str) and count != now.cpu.count and root.find("cputune/shares") is not None
    if wanted != now.cpu.shares or follows:
        dom.say(dom.child(root, "cputune"), "shares", str(clamp_shares(cpu_shares(wanted, count))))


def _limit(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    if desired.cpu.limit is None or _is_same(desired.cpu.limit, now.cpu.limit):
        return
    tune = dom.child(root, "cputune")
    most = quota(desired.cpu.limit)
    dom.say(tune, "global_period", str(PERIOD) if most else None)
    dom.say(tune, "global_quota", str(most) if most else None)
    dom.prune(root, "cputune")


def _emulator_pin(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    wanted = desired.cpu.emulator_pin
    if wanted is None or wanted == now.cpu.emulator_pin:
        return
    tune = dom.child(root, "cputune")
    if wanted:
        dom.child(tune, "emulatorpin").set("cpuset", wanted)
    else:
        dom.drop(tune, "emulatorpin")
    dom.prune(root, "cputune")


def _is_same(limit: float, other: float | None) -> bool:
    """As far as a quota in whole microseconds can tell."""
    return limit == other or abs(limit - (other or 0.0)) * PERIOD < 1


def _sizes(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    before = (now.memory.size or 0, now.memory.max or 0)
    size, most = together(desired.memory.size, desired.memory.max, *before)
    if (size, most) == before:
        return
    if most != before[1]:
        if root.find("cpu/numa") is not None:
            raise RefusedError(
                f"the memory of guest {now.name} is divided into NUMA cells, which give its maximum",
                f"change <numa> with virsh edit {now.name}",
            )
        _write_size(root, "memory", most)
    if size != most or root.find("currentMemory") is not None:
        _write_size(root, "currentMemory", size)


def _write_size(root: _Element, tag: str, size: int) -> None:
    node = dom.child(root, tag)
    node.set("unit", "KiB")
    node.text = str(size // KIB)


def _pages(root: _Element, desired: GuestSpec, now: GuestSpec) -> None:
    memory = desired.memory
    pages = hugepages_after(desired, now)
    if memory.hugepages is not None and pages != now.memory.hugepages:
        _set_hugepages(root, memory.hugepages)
    merges = root.find("memoryBacking/nosharepages") is None
    if memory.sharing is not None and pages == 0 and memory.sharing != merges:
        backing = dom.child(root, "memoryBacking")
        if memory.sharing:
            dom.drop(backing, "nosharepages")
        else:
            dom.child(backing, "nosharepages")
    dom.prune(root, "memoryBacking")


def hugepages_after(desired: GuestSpec, now: GuestSpec) -> int | None:
    """Bytes a huge page, once the definition says what is desired."""
    return now.memory.hugepages if desired.memory.hugepages is None else desired.memory.hugepages


def _set_hugepages(root: _Element, size: int) -> None:
    backing = dom.child(root, "memoryBacking")
    dom.drop(backing, "hugepages")
    if size:
        pages = dom.child(backing, "hugepages")
        dom.insert(pages, etree.Element("page", {"size": str(size // KIB), "unit": "KiB"}))
