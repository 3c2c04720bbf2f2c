"""How long a guest's threads waited for CPU and memory: the pressure stall information of its control group.

The kernel keeps it in the unified hierarchy only, which a host with cgroup v1 may have beside the others. libvirt makes
its groups in all that it finds, by the same path below each mount.
"""

from __future__ import annotations

from pathlib import Path

from kvmctl.host.cgroup import Mount, cpu_mount
from kvmctl.host.files import read_permitted
from kvmctl.host.memory import parse_pressure
from kvmctl.model.metrics import Pressure

RESOURCES = ("cpu", "memory", "io")


def of_guest(directory: Path, visible: tuple[Mount, ...]) -> dict[str, Pressure]:
    """The pressure on a guest by resource, from its own directory in the CPU hierarchy; without what the kernel does
    not keep. `visible` are the cgroup mounts."""
    cpu = cpu_mount(visible)
    if cpu is None or not directory.is_relative_to(cpu.point):
        return {}
    inside = directory.relative_to(cpu.point)
    group = next((mount.point / inside for mount in visible if mount.version == 2), None)
    if group is None:
        return {}
    found = {name: parse_pressure(read_permitted(group / f"{name}.pressure") or "") for name in RESOURCES}
    return {name: value for name, value in found.items() if value is not None}
