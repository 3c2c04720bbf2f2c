"""The lines that `host show` and `host metrics` print for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kvmctl.cli.output import Column, one_line, table
from kvmctl.model.hostpolicy import CpuPolicy, MemoryPolicy
from kvmctl.model.units import format_cores, human_size

Document = Mapping[str, Any]

_KSM = {0: "off", 1: "merging", 2: "off, all unmerged", None: "unknown"}
_KVM = {
    "usable": "/dev/kvm opens",
    "absent": "no /dev/kvm",
    "forbidden": "no right to open /dev/kvm",
    "broken": "/dev/kvm does not open",
}


def _rate(value: float) -> str:
    return f"{human_size(round(value))}/s"


_GUESTS = (
    Column("name", "GUEST"),
    Column("state", "STATE"),
    Column("cores", "CORES", format_cores, right=True),
    Column("steal", "STEAL", format_cores, right=True),
    Column("balloon", "BALLOON", human_size, right=True),
    Column("resident", "RESIDENT", human_size, right=True),
    Column("read_per_second", "READ", _rate, right=True),
    Column("written_per_second", "WRITTEN", _rate, right=True),
    Column("received_per_second", "RECEIVED", _rate, right=True),
    Column("sent_per_second", "SENT", _rate, right=True),
)


def _line(name: str, *parts: str | None) -> str:
    return one_line(f"{name + ':':<16}{'; '.join(part for part in parts if part) or '-'}")


def facts_lines(found: Document) -> Iterator[str]:
    """One screen of `host show`, grouped."""
    versions = found["versions"]
    kernel = versions["kernel"] and f"Linux {versions['kernel']}"
    yield _line("host", found["name"], kernel)
    daemon = versions["libvirt"] and f"libvirt {versions['libvirt']} (library {versions['library']})"
    yield _line("hypervisor", versions["hypervisor"], found["uri"], daemon, f"kvmctl {versions['kvmctl']}")
    yield from _virtualization(found["virtualization"]) if found["virtualization"] else ()
    yield from _cpu(found["cpu"]) if found["cpu"] else ()
    yield from _memory(found["memory"]) if found["memory"] else ()
    yield from _cgroup(found["cgroup"]) if found["cgroup"] else ()
    yield from _policy(found["policy"]) if found["policy"] else ()
    yield from _guests(found["guests"]) if found["guests"] else ()
    yield from _places(found)


def _virtualization(found: Document) -> Iterator[str]:
    yield _line("virtualization", f"{found['kind']}: {found['why']}")
    paging = found["second_level_paging"]
    yield _line(
        "  processor",
        found["extension"] or "no vmx or svm",
        f"KVM module {found['module']}" if found["module"] else "no KVM module",
        _KVM[found["kvm"]],
        f"second-level paging {paging or 'none'}",
        f"nested {_yes(found['nested'])}",
    )
    yield _line("  runs on", found["guest_of"] or "bare metal")
    groups = found["iommu_groups"]
    passthrough = f"{groups} IOMMU groups" if groups else "no IOMMU"
    if found["interrupts_unsafe"]:
        passthrough += ", interrupts not remapped"
    if found["mdev_parents"]:
        passthrough += f", mdevs of {', '.join(found['mdev_parents'])}"
    if "passthrough" not in found["io"]:
        passthrough += ", so no passthrough"
    yield _line("  I/O", ", ".join(found["io"]), passthrough)


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _count(number: int | None, noun: str) -> str | None:
    return None if number is None else f"{number} {noun}{'' if number == 1 else 's'}"


def _cpu(found: Document) -> Iterator[str]:
    sizes = (("sockets", "socket"), ("cores", "core"), ("threads", "thread"), ("numa_nodes", "NUMA node"))
    counts = [text for key, noun in sizes if (text := _count(found[key], noun))]
    yield _line("CPU", found["model"] or found["architecture"], ", ".join(counts))
    mhz = found["base_mhz"]
    yield _line("  base clock", f"{mhz:.0f} MHz by {found['base_mhz_source']}" if mhz else "unknown")
    if found["vulnerable"] is not None:
        vulnerable = ", ".join(found["vulnerable"])
        yield _line("  mitigations", f"vulnerable: {vulnerable}" if vulnerable else "no known vulnerability is open")


def _memory(found: Document) -> Iterator[str]:
    total, free = found["total"], found.get("available", found.get("free"))
    kept = f"{human_size(found['kept_for_host'])} kept for the host"
    yield _line("memory", human_size(total), f"{human_size(free)} available", kept)
    if "swap_areas" not in found:
        return
    if found["limit"] is not None:
        yield _line("  limit", f"{human_size(found['limit'])} by control group")
    areas = [
        f"{a['name']} ({a['kind']}) {human_size(a['used'])} of {human_size(a['size'])}" for a in found["swap_areas"]
    ]
    yield _line("  swap", ", ".join(areas) or "none", f"zswap {_yes(found['zswap'])}")
    if found["hugepages_total"]:
        size = human_size(found["hugepage_size"])
        yield _line("  huge pages", f"{found['hugepages_free']} of {found['hugepages_total']} free, {size} each")
    yield _line("  KSM", _KSM[found["ksm_run"]], f"saves {human_size(found['ksm_saved'])}")
    if pressure := found["pressure"]:
        yield _line("  pressure", f"{pressure['some_avg60']:.1f} % of the last minute")


def _cgroup(found: Document) -> Iterator[str]:
    if not found["version"]:
        yield _line("cgroup", "none with the CPU controller")
        return
    used, kernel = ("..".join(map(str, found[key])) for key in ("weight_range", "kernel_weight_range"))
    yield _line("cgroup", f"v{found['version']}", f"weights {used} (the kernel takes {kernel})")


def _policy(found: Document) -> Iterator[str]:
    cpu, usual = found["cpu"], CpuPolicy()
    kept, left = cpu["kept_for_host"], cpu["capacity"]
    part = (
        f"{format_cores(kept)} of {format_cores(kept + left)} cores kept for the host, {format_cores(left)} for guests"
    )
    if cpu["reserve"] is not None and cpu["reserve"] > kept:
        part += f" ({format_cores(cpu['reserve'])} is more than half)"
    keys = ("parent", "threads", "correct", "foreign")
    unusual = ", ".join(f"{key} {cpu[key]}" for key in keys if cpu[key] != getattr(usual, key))
    yield _line("policy", found["file"] or "defaults", part, unusual)
    memory, common = found["memory"], MemoryPolicy()
    room = f"{human_size(memory['for_guests'])} for guests, which may grow to {memory['overcommit']:.0%} of that"
    left = ", ".join(key for key in ("sharing", "balloon", "swap") if memory[key] != getattr(common, key))
    yield _line("  memory", room, left and f"{left} left alone")


def _guests(found: Document) -> Iterator[str]:
    yield _line("guests", f"{found['defined']} defined, {found['running']} running")
    if found["running"]:
        memory = f"{human_size(found['balloon'])} of {human_size(found['balloon_max'])}"
        yield _line("  they have", _count(found["vcpus"], "vCPU"), memory, f"{human_size(found['resident'])} resident")
        cores, size = format_cores(found["cpu_reservation"]), human_size(found["memory_reservation"])
        yield _line("  reserved", f"{cores} cores", size)


def _places(found: Document) -> Iterator[str]:
    if found["pools"] is not None:
        yield _line("pools", ", ".join(map(_pool, found["pools"])) or "none")
    if found["networks"] is not None:
        texts = (f"{network['name']} ({_active(network)})" for network in found["networks"])
        yield _line("networks", ", ".join(texts) or "none")


def _active(found: Document) -> str:
    return "active" if found["active"] else "not active"


def _pool(pool: Document) -> str:
    free = f", {human_size(pool['available'])} of {human_size(pool['capacity'])} free" if pool["active"] else ""
    return f"{pool['name']} ({_active(pool)}{free})"


def metrics_lines(found: Document) -> Iterator[str]:
    """`host metrics`: the host's lines, then a table of guests."""
    if found["host"]:
        yield from _host_metrics(found["host"])
    if found["guests"]:
        yield ""
        yield table(found["guests"], _GUESTS).rstrip("\n")


def _host_metrics(host: Document) -> Iterator[str]:
    busy = host["cpu_busy_percent"]
    modes = ", ".join(f"{name} {value:.1f}" for name, value in host["cpu_percent"].items() if value >= 0.05)
    yield _line("CPU", "-" if busy is None else f"{busy:.1f} % of {host['cpus']} CPUs busy", modes)
    yield _line("load", " ".join(f"{value:.2f}" for value in host["load"]))
    yield _line("memory", f"{human_size(host['memory_available'])} of {human_size(host['memory_total'])} available")
    swap = f"{human_size(host['swap_used'])} of {human_size(host['swap_total'])} used" if host["swap_total"] else "none"
    swapping = f"in {_rate(host['swap_in_per_second'])}, out {_rate(host['swap_out_per_second'])}"
    yield _line("swap", swap, swapping)
    waits = (f"{name} {value['some_avg10']:.1f} %" for name, value in host["pressure"].items())
    yield _line("pressure", ", ".join(waits), "of the last 10 s, some task waited")
    yield from _flows("disk", host["disks"], ("read", "written"))
    yield from _flows("network", host["networks"], ("received", "sent"))


def _flows(what: str, flows: Mapping[str, Document], ways: Iterable[str]) -> Iterator[str]:
    idle = [name for name, flow in flows.items() if not any(flow.values())]
    for name, flow in flows.items():
        if name not in idle:
            yield _line(f"{what} {name}", ", ".join(f"{way} {_rate(flow[f'{way}_per_second'])}" for way in ways))
    if idle:
        yield _line(f"{what} idle", ", ".join(idle))
