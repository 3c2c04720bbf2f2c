"""The host's counters and gauges, read with psutil and from the kernel's pressure files."""

from __future__ import annotations

import time
from pathlib import Path

from kvmctl.host import ksm, memory
from kvmctl.model.metrics import Flow, HostReading

_RESOURCES = ("cpu", "memory", "io")
_BLOCK = Path("/sys/block")


def read() -> HostReading:
    """Everything at this moment. Takes no time of its own: rates are the caller's, between two readings."""
    import psutil

    times = psutil.cpu_times()._asdict()
    # The kernel counts guest time in user time too.
    seconds = {mode: value for mode, value in times.items() if mode not in ("guest", "guest_nice")}
    swap = psutil.swap_memory()
    now = memory.read()
    pressure = {name: memory.pressure(name) for name in _RESOURCES}
    return HostReading(
        taken=time.monotonic_ns(),
        cpus=psutil.cpu_count() or 1,
        cpu_seconds=seconds,
        load=psutil.getloadavg(),
        memory_total=now.total,
        memory_available=now.available,
        swap_total=swap.total,
        swap_used=swap.used,
        swap=Flow(swap.sin, swap.sout),
        disks=_disks(),
        networks=_networks(),
        pressure={name: value for name, value in pressure.items() if value is not None},
        ksm=ksm.sample(),
    )


def _disks() -> dict[str, Flow]:
    """Disks that are devices: partitions and mapped devices would count the same bytes again."""
    import psutil

    counters = psutil.disk_io_counters(perdisk=True) or {}
    return {
        name: Flow(found.read_bytes, found.write_bytes)
        for name, found in sorted(counters.items())
        if (_BLOCK / name / "device").exists()
    }


def _networks() -> dict[str, Flow]:
    import psutil

    counters = psutil.net_io_counters(pernic=True)
    return {name: Flow(found.bytes_recv, found.bytes_sent) for name, found in sorted(counters.items()) if name != "lo"}
