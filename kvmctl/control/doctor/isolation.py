"""The doctor's checks of what stands between guests, and between a guest and its host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmctl.control.doctor import connection
from kvmctl.control.doctor.check import Check, attempt
from kvmctl.host import access, cpu, isolation, ksm
from kvmctl.host.process import find_guests
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.capabilities import qemu_user
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import RefusedError
from kvmctl.model.wording import argument
from kvmctl.xml import tree

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MUCH_FILES = 0.8
"""The part of its open files beyond which a guest may soon get no further disk, nic or connection."""
_CONF = "/etc/libvirt/qemu.conf"
_NEXT_START = "then restart libvirtd; a guest has it from its next start"
_SVIRT = ("apparmor", "selinux")


def examine(uri: str, connect_to: Callable[[], Hypervisor], name: str | None) -> Iterator[Check]:
    """All checks of the host and of each running guest, or of one. Raises what connecting raises, RefusedError where
    the hypervisor is on another machine, NotFoundError for a guest that is none."""
    hypervisor = connect_to()
    if not hypervisor.local:
        raise RefusedError(
            f"{uri} is not on this machine, so its kernel cannot be examined", "run this on that machine"
        )
    opened = connection.connect(uri, lambda: hypervisor)
    if name is None:
        yield from attempt("cpu weaknesses", cpu_weaknesses)
        yield from attempt("ksm", lambda: [merging()])
        yield from attempt("svirt", lambda: [_svirt(opened.capabilities)])
        yield from attempt("qemu user", lambda: [_host_user(opened.capabilities)])
    handles = domains.domains(hypervisor, active_only=True) if name is None else [domains.find(hypervisor, name)]
    pids = find_guests([handle.UUIDString() for handle in handles])
    for handle in sorted(handles, key=lambda handle: str(handle.name())):
        yield from attempt(handle.name(), lambda handle=handle: _guest(handle, pids.get(handle.UUIDString())))  # type: ignore[misc]


def cpu_weaknesses(root: Path = Path("/")) -> Iterator[Check]:
    """Each weakness of the processor that lets one guest learn of another, and what the kernel does about it."""
    found = cpu.mitigations(root)
    if not found:
        yield Check("cpu weaknesses", "unknown", "this kernel does not tell of any")
        return
    for name, state in found.items():
        if state.startswith("Vulnerable"):
            yield Check(
                f"cpu {name}",
                "warn",
                state,
                "a guest may read what is not its own",
                "install the processor's microcode and boot without mitigations=off; lscpu shows all of them",
            )
        elif "SMT vulnerable" in state:
            hint = "boot with mitigations=auto,nosmt, or pin guests of different owners to cores of their own (cpu.pin)"
            yield Check(f"cpu {name}", "warn", state, "two threads of a core share what leaks", hint)
    closed = [name for name, state in found.items() if not state.startswith("Vulnerable")]
    yield Check("cpu weaknesses", "ok", f"{len(closed)} of {len(found)} known are mitigated or not of this processor")


def merging(root: Path = Path("/sys/kernel/mm/ksm")) -> Check:
    """Whether pages of guests are merged, which the time of a write tells a guest."""
    sample = ksm.sample(root)
    if sample is None or sample.run != 1:
        return Check("ksm", "ok", "no pages are merged")
    cause = "a write to a merged page takes longer, so a guest can find out what others have in memory"
    hint = "memory.sharing: false for guests of different owners, or kvmctl ksm disable"
    return Check("ksm", "warn", "equal pages of guests are merged", cause, hint)


def _svirt(capabilities_xml: str) -> Check:
    models = [model.text or "" for model in tree.read(capabilities_xml, "capabilities").iterfind("host/secmodel/model")]
    found = [model for model in models if model in _SVIRT]
    if found:
        return Check("svirt", "ok", f"libvirt gives each guest a label of its own ({', '.join(found)})")
    cause = "libvirt has neither AppArmor nor SELinux here, so all QEMUs may do what their user may"
    hint = f'boot with AppArmor or SELinux and say security_driver = "apparmor" in {_CONF}, {_NEXT_START}'
    return Check("svirt", "warn", f"no mandatory access control ({', '.join(models) or 'no model'})", cause, hint)


def _host_user(capabilities_xml: str) -> Check:
    user = qemu_user(capabilities_xml)
    if user is None:
        return Check("qemu user", "unknown", "libvirt does not say which user QEMU runs as")
    return _user("qemu user", user[0])


def _user(name: str, uid: int) -> Check:
    if uid:
        return Check(name, "ok", f"QEMU runs as {access.user_name(uid)}")
    cause = "what breaks out of a guest is root on the host"
    hint = f'user = "libvirt-qemu" and group = "libvirt-qemu" in {_CONF}, {_NEXT_START}'
    return Check(name, "warn", "QEMU runs as root", cause, hint)


def _guest(domain: Any, pid: int | None) -> Iterator[Check]:
    name = str(domain.name())
    if pid is None:
        hint = f"kvmctl start {argument(name)}"
        yield Check(name, "unknown", "it is off, or its QEMU is not on this machine", "nothing runs", hint)
        return
    found = isolation.read(pid)
    if found is None:
        yield Check(name, "unknown", "its QEMU ended just now")
        return
    yield from process_checks(name, found)
    yield from shared_memory(name, tree.read(domains.live_definition(domain)))


def process_checks(name: str, found: isolation.Isolation) -> Iterator[Check]:
    """What holds for one guest's QEMU, each with what to change."""
    if found.uid is not None:
        yield _user(f"{name}: user", found.uid)
    if found.capabilities:
        hint = f"clear_emulator_capabilities = 1 in {_CONF}, {_NEXT_START}"
        yield Check(f"{name}: capabilities", "warn", f"QEMU has root's powers {found.capabilities:#x}", "", hint)
    yield _switched(
        f"{name}: sandbox",
        found.sandboxed,
        ("seccomp filters QEMU's system calls", "QEMU may make every system call"),
        f"seccomp_sandbox = 1 in {_CONF}, {_NEXT_START}",
    )
    yield _switched(
        f"{name}: own /dev",
        found.own_mounts,
        ("QEMU sees a /dev of its own", "QEMU sees the host's whole /dev"),
        f'namespaces = [ "mount" ] in {_CONF}, {_NEXT_START}',
    )
    yield _devices(f"{name}: devices", found)
    label = found.label
    yield (
        Check(f"{name}: label", "ok", f"confined by {label}")
        if label
        else Check(
            f"{name}: label",
            "warn",
            "no AppArmor profile or SELinux context of its own",
            "it may touch the images of other guests, whose QEMUs run as the same user",
            f"kvmctl host doctor --isolation says what libvirt offers; {_CONF}: security_driver",
        )
    )
    yield _files(f"{name}: open files", found)


def _switched(name: str, on: bool | None, words: tuple[str, str], hint: str) -> Check:
    if on is None:
        return Check(name, "unknown", "could not be read", "this user may not look at it", "run this as root")
    return Check(name, "ok", words[0]) if on else Check(name, "warn", words[1], "it is switched off", hint)


def _devices(name: str, found: isolation.Isolation) -> Check:
    if found.all_devices is None:
        said = (
            "cgroup v2 keeps the rules as a program, which is not read" if found.cgroup_version == 2 else "not readable"
        )
        return Check(name, "unknown", said, "", "bpftool cgroup show PATH lists the program")
    if found.all_devices:
        hint = f'cgroup_controllers with "devices" in {_CONF}, {_NEXT_START}'
        return Check(name, "warn", "QEMU may use every device of the host", "no device control group", hint)
    return Check(name, "ok", f"QEMU may use {len(found.devices or ())} kinds of devices")


def _files(name: str, found: isolation.Isolation) -> Check:
    if found.open_files is None:
        return Check(name, "unknown", "could not be read", "this user may not look at it", "run this as root")
    if found.open_files_limit is None:
        return Check(name, "ok", f"{found.open_files} open, without a limit")
    text = f"{found.open_files} of {found.open_files_limit} open"
    if found.open_files < MUCH_FILES * found.open_files_limit:
        return Check(name, "ok", text)
    cause = "then no disk, nic or console can be opened any more"
    return Check(name, "warn", text, cause, f"max_files = {2 * found.open_files_limit} in {_CONF}, {_NEXT_START}")


def shared_memory(name: str, root: Element) -> Iterator[Check]:
    """What of a guest's memory other processes can map, and whether it is merged with others'."""
    shared = root.find("memoryBacking/access[@mode='shared']") is not None
    windows = [one.get("name", "") for one in root.iterfind("devices/shmem")]
    if shared:
        cause = "vhost-user and virtiofs need that; whoever runs as QEMU's user can read the guest's memory"
        hint = f"take <access mode='shared'/> out with virsh edit {argument(name)}, unless such a device needs it"
        yield Check(f"{name}: shared memory", "warn", "its memory is a file that others can map", cause, hint)
    if windows:
        cause = "guests with the same shmem device read and write the same memory"
        hint = f"take <shmem> out with virsh edit {argument(name)}, unless they are to"
        yield Check(f"{name}: shmem", "warn", f"shares {', '.join(windows)} with other guests", cause, hint)
    if not shared and not windows:
        yield Check(f"{name}: shared memory", "ok", "its memory is its own")
    opted_out = root.find("memoryBacking/nosharepages") is not None or root.find("memoryBacking/hugepages") is not None
    text = "its pages are never merged" if opted_out else "its pages may be merged with equal ones where KSM runs"
    yield Check(f"{name}: merging", "ok", text)
