"""The clock that an amount of CPU in MHz or GHz is divided by: that of the hypervisor's host."""

from __future__ import annotations

from kvmctl.host.cpu import Clock, base_clock
from kvmctl.hypervisor.capabilities import capabilities
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.hypervisor.host import tsc_hz


def clock_of(hypervisor: Hypervisor) -> Clock | None:
    """The base clock of the hypervisor's host; None where no source tells it.

    Of another machine libvirt tells only the time stamp counter's: its node information is the present speed.
    """
    if hypervisor.local and (clock := base_clock()):
        return clock
    # Asked last: where libvirt has to try its QEMU programs first, this call takes long.
    hertz = tsc_hz(capabilities(hypervisor))
    return Clock(hertz / 1e6, "time stamp counter") if hertz else None
