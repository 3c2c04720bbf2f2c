"""The doctor's checks of this machine: KVM, IOMMU, control groups, KSM, swap, pressure, clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvmctl.control.doctor.check import Check, attempt
from kvmctl.host import accelerator, cgroup, clock, cpu, daemons, ksm, memory, virtualization
from kvmctl.model.units import human_size

MUCH_PRESSURE = 10.0
"""Percent of the last minute in which somebody waited: far above what a healthy host shows."""


def checks(qemu_user: tuple[int, int] | None, hypervisor_version: tuple[int, ...] | None) -> Iterator[Check]:
    """All checks of this machine. `qemu_user` is the (uid, gid) that guests run as, where that is known."""
    found = virtualization.read(cpu.read().flags)
    yield from attempt("kvm", lambda: _kvm(found, qemu_user))
    yield from attempt("nested", lambda: [_nested(found)])
    yield from attempt("iommu", lambda: [_iommu(found)])
    yield from attempt("cgroup", lambda: [_cgroup(hypervisor_version)])
    yield from attempt("ksm", _ksm)
    yield from attempt("swap", lambda: [_swap()])
    yield from attempt("pressure", lambda: [_pressure()])
    yield from attempt("clock", lambda: [_clock()])


def _kvm(found: virtualization.Virtualization, qemu_user: tuple[int, int] | None) -> Iterator[Check]:
    device = Path("/dev/kvm")
    if found.kvm == "absent":
        cause = "virtualization is off in the firmware, or this host's own hypervisor offers none"
        hint = "switch on VT-x or AMD-V (nested, in a guest), then: modprobe kvm_intel || modprobe kvm_amd"
        yield Check("kvm", "warn", "there is no /dev/kvm: guests are emulated, many times slower", cause, hint)
        return
    if found.kvm == "forbidden":
        hint = f"usermod -aG kvm {daemons.user()}, then log in again"
        yield Check("kvm", "warn", f"{daemons.user()} may not open /dev/kvm", found.kvm_error, hint)
    elif found.kvm == "broken":
        yield Check("kvm", "fail", "/dev/kvm cannot be opened", found.kvm_error, "dmesg | grep -i kvm")
    else:
        yield _boots(found)
    if qemu_user and daemons.may_open(device, *qemu_user) is False:
        yield Check(
            "kvm access",
            "warn",
            "QEMU's user may not open /dev/kvm",
            f"guests run as user {qemu_user[0]}, group {qemu_user[1]}",
            "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm (udev's rule of qemu-system-common does it at boot)",
        )
    elif qemu_user:
        yield Check("kvm access", "ok", "QEMU's user may open /dev/kvm")


def _boots(found: virtualization.Virtualization) -> Check:
    verdict = accelerator.remembered()
    kind, why = virtualization.kind(found, verdict.name == "kvm" if verdict else None)
    if verdict is None:
        hint = "the first guest that is applied with accelerator: auto tries it by booting, and remembers"
        return Check("kvm", "unknown", "/dev/kvm opens, which does not prove that Linux boots under it", why, hint)
    if verdict.name == "kvm":
        return Check("kvm", "ok", f"{kind}: {verdict.reason}")
    hint = "use accelerator: tcg here, or another host or kernel; dmesg | grep -i kvm"
    return Check("kvm", "warn", "KVM is present, but Linux does not boot under it", verdict.reason, hint)


def _nested(found: virtualization.Virtualization) -> Check:
    here = f"this host is a guest of {found.guest_of}" if found.guest_of else "this host is no guest itself"
    if found.nested is None:
        return Check("nested", "unknown", f"{here}; no KVM module says whether its guests may run guests")
    may = "may" if found.nested else "may not"
    hint = (
        "" if found.nested else f"modprobe -r {found.module} && modprobe {found.module} nested=1, with no guest running"
    )
    return Check("nested", "ok", f"{here}; its guests {may} run guests of their own", "", hint)


def _iommu(found: virtualization.Virtualization) -> Check:
    if found.iommu_groups:
        return Check("iommu", "ok", f"{found.iommu_groups} IOMMU groups by {', '.join(found.iommus) or 'the kernel'}")
    return Check(
        "iommu",
        "warn",
        "no IOMMU: devices cannot be passed through to guests",
        "it is off in the firmware or on the kernel's command line, or this machine has none",
        "switch on VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on where the CPU is Intel's",
    )


def _cgroup(libvirt: tuple[int, ...] | None) -> Check:
    version = cgroup.version()
    if not version:
        return Check(
            "cgroup",
            "fail",
            "no control group hierarchy with the CPU controller is mounted: shares and limits have no effect",
            "neither systemd nor an init script mounted it",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
    least, most = cgroup.KERNEL_WEIGHT_RANGE[version]
    used = "..".join(map(str, cgroup.WEIGHT_RANGE))
    found = f"cgroup v{version}; weights {least}..{most} in the kernel, kvmctl uses {used}"
    old = libvirt is not None and version == 2 and libvirt < (9, 1)
    cause = "libvirt before 9.1 accepts shares up to 262144 here, and then the guest does not start" if old else ""
    return Check("cgroup", "ok", found, cause)


def _ksm() -> Iterator[Check]:
    sample = ksm.sample()
    if sample is None:
        yield Check("ksm", "warn", "this kernel has no KSM", "it is built without CONFIG_KSM", "")
        return
    if sample.run == 1:
        yield Check("ksm", "ok", f"KSM merges: {sample.pages_sharing} pages are saved")
    else:
        yield Check("ksm", "ok", "KSM is off: equal pages of guests are kept twice", "", "kvmctl ksm enable")
    for manager in ksm.managers():
        cause = "it changes the same settings as kvmctl, and never sees guests that libvirt starts"
        hint = f"systemctl disable --now {manager}" if daemons.has_systemd() else f"stop {manager}"
        yield Check("ksm manager", "warn", f"{manager} is active", cause, hint)


def _swap() -> Check:
    areas = memory.swap_areas()
    if not areas:
        return Check(
            "swap",
            "warn",
            "no swap: memory that is promised twice has nowhere to go",
            "no swap area is on",
            "fallocate -l 4G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile",
        )
    text = ", ".join(f"{area.name} ({area.kind}, {human_size(area.used)} of {human_size(area.size)})" for area in areas)
    used, size = sum(area.used for area in areas), sum(area.size for area in areas)
    if used > 0.9 * size:
        return Check(
            "swap", "warn", f"swap is nearly full: {text}", "guests were given more than fits", "kvmctl memory"
        )
    return Check("swap", "ok", text + ("; zswap is on" if memory.zswap() else ""))


def _pressure() -> Check:
    found = {name: memory.pressure(name) for name in ("cpu", "memory", "io")}
    known = {name: pressure for name, pressure in found.items() if pressure}
    if not known:
        hint = "boot with psi=1"
        return Check("pressure", "unknown", "this kernel accounts no pressure", "PSI is off or not built in", hint)
    text = ", ".join(f"{name} {pressure.some_avg60:.1f} %" for name, pressure in known.items())
    high = [name for name, pressure in known.items() if pressure.some_avg60 > MUCH_PRESSURE]
    if not high:
        return Check("pressure", "ok", f"waited for in the last minute: {text}")
    hints = {"cpu": "kvmctl cpu", "memory": "kvmctl memory", "io": "kvmctl host metrics"}
    return Check(
        "pressure",
        "warn",
        f"waited for in the last minute: {text}",
        f"more is wanted than there is: {', '.join(high)}",
        "; ".join(hints[name] for name in high),
    )


def _clock() -> Check:
    synchronized, daemon, source = clock.is_synchronized(), clock.daemon(), clock.source()
    ticks = f"clock source {source}" if source else "clock source unknown"
    if synchronized is None:
        return Check("clock", "unknown", f"the kernel does not say whether the clock is kept right; {ticks}")
    if synchronized:
        return Check("clock", "ok", f"synchronized{f' by {daemon}' if daemon else ''}; {ticks}")
    cause = f"{daemon} runs but has not synchronized it" if daemon else "no time service runs"
    hint = (
        "chronyc tracking"
        if daemon == "chronyd"
        else "timedatectl timesync-status"
        if daemon
        else "apt-get install chrony"
    )
    return Check("clock", "warn", f"not synchronized; {ticks}", cause, hint)
