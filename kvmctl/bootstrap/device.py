"""/dev/kvm as udev would have made it, where no udev runs.

libvirt's guests run as a user of their own, who is in the group `kvm`. While that user may not open the device
but root may, libvirt 9.0 moreover takes what it knows of QEMU for outdated at every call, and asks QEMU anew:
24 s instead of 0.05 s for `virsh version` on a host with two cores.
"""

import grp
import os
import stat
from contextlib import suppress
from pathlib import Path

from kvmctl.bootstrap import state
from kvmctl.bootstrap.progress import say
from kvmctl.host.accelerator import KVM_DEVICE

_GROUP = "kvm"
_MODE = 0o660
_UDEV = Path("/run/udev/control")


def ensure() -> None:
    """Give the device to its group, unless udev decides that or somebody has."""
    if _UDEV.exists() or not KVM_DEVICE.exists():
        return
    found = KVM_DEVICE.stat()
    groups = {group.gr_name: group.gr_gid for group in grp.getgrall()}
    if found.st_gid != 0 or found.st_mode & stat.S_IRWXO or _GROUP not in groups:
        return
    state.record(kvm_device=f"{found.st_gid}:{stat.S_IMODE(found.st_mode):o}")
    _set(groups[_GROUP], _MODE)
    say(f"gave {KVM_DEVICE} to the group {_GROUP}, as udev does where it runs")


def remove() -> None:
    """Put back what `ensure` changed. After a reboot there is nothing to."""
    if made := state.load().kvm_device:
        group, mode = made.split(":")
        with suppress(FileNotFoundError):
            _set(int(group), int(mode, 8))
        state.record(kvm_device="")


def _set(group: int, mode: int) -> None:
    os.chown(KVM_DEVICE, -1, group)
    KVM_DEVICE.chmod(mode)
