"""A guest's CPU and memory as its definition has them, with what our metadata adds."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from kvmctl.model.cpuset import format_cpuset, parse_cpuset
from kvmctl.model.errors import UsageError
from kvmctl.model.platform import CPU_MODES
from kvmctl.model.spec import UNLIMITED, CpuSpec, Level, MemorySpec, cpu_shares
from kvmctl.model.units import MIB
from kvmctl.xml import tree

if TYPE_CHECKING:
    from kvmctl.xml.metadata import Metadata

LEAST_SHARES, MOST_SHARES = 2, 10_000
"""What `<shares>` can be: the kernel's range on cgroup v1 and v2 alike."""
PERIOD = 100_000
"""Microseconds that a quota is counted over, where a definition does not say."""
LEAST_QUOTA = 1000
"""Microseconds. The kernel takes no less."""


def clamp_shares(shares: int) -> int:
    """The number of shares as `<shares>` can hold it."""
    return min(max(shares, LEAST_SHARES), MOST_SHARES)


def quota(limit: float | None) -> int | None:
    """Microseconds of CPU in each period; None is no limit. Raises UsageError below what the kernel takes."""
    if limit is None or limit == UNLIMITED:
        return None
    most = round(limit * PERIOD)
    if most < LEAST_QUOTA:
        raise UsageError(f"a limit of {limit:g} cores is below what the kernel takes", "the least is 0.01 cores")
    return most


def cpu(root: Element, said: Metadata) -> CpuSpec:
    """The `cpu` part of a guest's spec."""
    vcpu, emulator = root.find("vcpu"), root.find("cputune/emulatorpin")
    most = max((tree.number(vcpu.text) if vcpu is not None else None) or 1, 1)
    count = max((tree.number(vcpu.get("current")) if vcpu is not None else None) or most, 1)
    return CpuSpec(
        count=min(count, most),
        max=most,
        shares=_shares(root, said, min(count, most)),
        limit=_limit(root),
        reservation=said.cpu_reservation,
        pin=_pin(vcpu),
        emulator_pin=_pin(emulator),
        model=_model(root),
    )


def fixed_vcpus(root: Element, count: int) -> int:
    """How many of its `count` vCPUs the guest that runs with this definition cannot give back.

    That is those which it was started with, unless they were made to be unplugged; and all where QEMU emulates:
    it has the guest give up the vCPU, never finishes to take it away itself, and then neither has it.
    """
    kind = root.get("type")
    pluggable = [vcpu for vcpu in root.iterfind("vcpus/vcpu[@enabled='yes']") if vcpu.get("hotpluggable") == "yes"]
    return count if kind == "qemu" else count - len(pluggable) if kind == "kvm" else 1


def _shares(root: Element, said: Metadata, count: int) -> int | Level:
    """What our metadata says, unless `<shares>` does not follow from it: then somebody used virsh since."""
    written = tree.number(tree.text(root, "cputune/shares"))
    if written is None or written < 0:
        return said.cpu_shares or "normal"
    if said.cpu_shares is not None and clamp_shares(cpu_shares(said.cpu_shares, count)) == written:
        return said.cpu_shares
    return written


def _limit(root: Element) -> float:
    """To a thousandth of a core, as a guest file says it."""
    cores = _cores(root, "global_quota", "global_period")
    return cores if cores == UNLIMITED else max(round(cores, 3), 0.001)


def _cores(root: Element, quota_tag: str, period_tag: str) -> float:
    """A quota in cores; one that is absent, negative or zero is none."""
    most = tree.number(tree.text(root, f"cputune/{quota_tag}")) or 0
    over = tree.number(tree.text(root, f"cputune/{period_tag}")) or PERIOD
    return most / over if most > 0 < over else UNLIMITED


def ceiling(root: Element, limit: float | None, vcpus: int) -> float:
    """The cores that a guest of so many vCPUs can use at most: its limit, or what each vCPU's quota adds up to."""
    return min(UNLIMITED if limit is None else limit, _cores(root, "quota", "period") * vcpus)


def _pin(element: Element | None) -> str:
    cpuset = None if element is None else element.get("cpuset")
    try:
        return format_cpuset(parse_cpuset(cpuset)) if cpuset else ""
    except ValueError:
        return cpuset or ""


def defined_weight(root: Element) -> int | None:
    """The CPU weight that libvirt gives the guest at its start; None where its definition says none."""
    return tree.number(tree.text(root, "cputune/shares"))


def allowed(root: Element) -> frozenset[int]:
    """The host's CPUs that a guest's vCPUs may use together; none are all. A vCPU of its own pinning has that."""
    vcpu, own = root.find("vcpu"), root.findall("cputune/vcpupin")
    count = (tree.number(vcpu.text) if vcpu is not None else None) or 1
    texts = [_pin(element) for element in own] + ([] if len(own) >= count else [_pin(vcpu)])
    try:
        return frozenset[int]() if "" in texts else frozenset().union(*map(parse_cpuset, texts))
    except ValueError:
        return frozenset()


def _model(root: Element) -> str | None:
    """A mode or a model's name; None leaves it to the hypervisor."""
    mode = root.find("cpu")
    if mode is not None and mode.get("mode") in CPU_MODES:
        return mode.get("mode")
    return tree.text(root, "cpu/model")


def memory(root: Element, said: Metadata) -> MemorySpec:
    """The `memory` part of a guest's spec. Huge pages neither merge nor swap."""
    most = _mebibytes(root, "memory")
    now = _mebibytes(root, "currentMemory")
    size = most if now is None or most is None else min(now, most)
    pages = hugepages(root)
    return MemorySpec(
        size=size,
        max=most,
        reservation=said.memory_reservation,
        shares=said.memory_shares or "normal",
        sharing=root.find("memoryBacking/nosharepages") is None and pages == 0,
        swap=said.swap and pages == 0,
        hugepages=pages,
    )


def _mebibytes(root: Element, path: str) -> int | None:
    """Bytes in whole MiB, which is how QEMU gives memory."""
    size = tree.size(root, path)
    return None if size is None else -(-size // MIB) * MIB


def hugepages(root: Element) -> int | None:
    """Bytes a huge page; 0 is ordinary pages, None the host's default size, which the definition does not tell."""
    if root.find("memoryBacking/hugepages") is None:
        return 0
    page = root.find("memoryBacking/hugepages/page")
    return None if page is None else tree.scaled(page.get("size"), page.get("unit"))
