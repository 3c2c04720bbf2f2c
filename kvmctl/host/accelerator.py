"""KVM or emulation, decided by booting Linux: there are hosts where /dev/kvm opens, firmware runs under
it, and Linux hangs. Standard library only: the bootstrap asks before anything else is installed."""

from __future__ import annotations

import json
import os
import platform
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvmctl.host.files import make_private_directory, read_permitted, state_directory, write_atomic
from kvmctl.model.errors import KvmctlError

Name = Literal["kvm", "tcg"]

KVM_DEVICE = Path("/dev/kvm")
PROBE_SECONDS = 15.0
"""Several times what a small Linux takes under KVM."""
_CONTROL_SECONDS = 45.0
_EMULATOR = "qemu-system-x86_64"

USER_SPACE = rb"Run \S*init as init process"
"""What the kernel says when it leaves its initramfs' first program to run."""
NO_ROOT = rb"VFS: (Unable to mount root fs|Cannot open root device)"
"""Where a kernel without an initrd ends: all of Linux works but there is no user space to reach."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What guests run under here, and why. `proved` is whether Linux was booted to find out."""

    name: Name
    reason: str
    proved: bool


@dataclass(frozen=True, slots=True)
class Boot:
    """One try. `seconds` until the proof was seen, None if it was not; `last` is the last line printed."""

    seconds: float | None
    last: str


def resolve(kernel: Path | None) -> Verdict:
    """What `accelerator: auto` means on this host: the remembered verdict, else what booting a kernel
    shows (a guest's own, or this host's newest), else KVM where /dev/kvm opens, which proves little.

    Takes up to two minutes the first time where KVM does not work. Raises KvmctlError without QEMU.
    """
    if known := remembered():
        return known
    if obstacle := _obstacle():
        return Verdict("tcg", obstacle, proved=False)
    for candidate in _kernels(kernel):
        verdict = probe(candidate)
        if verdict.proved:
            remember(verdict)
            return verdict
    return Verdict(
        "kvm", "/dev/kvm opens, but no kernel could be booted to prove that Linux runs under it", proved=False
    )


def probe(
    kernel: Path, initrd: Path | None = None, deadline: float = PROBE_SECONDS, proof: bytes | None = None
) -> Verdict:
    """Boot `kernel` under KVM for at most `deadline` seconds, and emulated if that fails: only a kernel
    that boots there proves that KVM is at fault. `proof` is a pattern to be found on the console.
    """
    if obstacle := _obstacle():
        return Verdict("tcg", obstacle, proved=False)
    pattern = proof or (USER_SPACE if initrd else NO_ROOT)
    tried = boot("kvm", kernel, initrd, pattern, deadline)
    if tried.seconds is not None:
        return Verdict("kvm", f"Linux booted under KVM in {tried.seconds:.1f} s", proved=True)
    control = boot("tcg", kernel, initrd, pattern, max(deadline, _CONTROL_SECONDS))
    if control.seconds is None:
        return Verdict("kvm", f"/dev/kvm opens, but {kernel} boots neither under KVM nor emulated", proved=False)
    return Verdict("tcg", _comparison(tried, control, deadline), proved=True)


def _comparison(tried: Boot, control: Boot, deadline: float) -> str:
    said = f"; the last it said: {tried.last}" if tried.last else ""
    emulated = f"the same kernel was up in {control.seconds:.1f} s when emulated"
    return f"/dev/kvm opens, but Linux did not boot under it in {deadline:.0f} s, and {emulated}{said}"


def _obstacle() -> str:
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "this machine has no /dev/kvm (virtualization is off in its firmware, or its own host offers none)"
    except OSError as error:
        return f"/dev/kvm cannot be opened ({error.strerror})"
    return ""


def _kernels(own: Path | None) -> Iterator[Path]:
    installed = sorted(Path("/boot").glob("vmlinuz*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in ([own] if own else []) + installed[:1]:
        if os.access(path, os.R_OK):
            yield path


def boot(name: Name, kernel: Path, initrd: Path | None, proof: bytes, deadline: float) -> Boot:
    """Boot a kernel under one accelerator until `proof` is on its console or `deadline` seconds are over.

    Raises KvmctlError where QEMU is not installed.
    """
    emulator = _emulator()
    process = subprocess.Popen(
        _command(emulator, name, kernel, initrd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        return _watch(process, re.compile(proof), deadline)
    finally:
        process.kill()
        process.wait()


def _emulator() -> str:
    path = shutil.which(_EMULATOR)
    if not path:
        raise KvmctlError(f"{_EMULATOR} is not installed", "apt-get install qemu-system-x86")
    return path


def _command(emulator: str, name: Name, kernel: Path, initrd: Path | None) -> list[str]:
    # A guest's kernel is somebody else's program: QEMU gets libvirt's sandbox, and no device but a port.
    # The CPU is QEMU's default, which a guest has that names no model; `host` fails on more hosts.
    return [
        emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", "q35", "-accel", name, "-m", "256",
        "-kernel", str(kernel), *(("-initrd", str(initrd)) if initrd else ()),
        "-append", "console=ttyS0 panic=-1", "-serial", "stdio",
    ]  # fmt: skip


def _watch(process: subprocess.Popen[bytes], proof: re.Pattern[bytes], deadline: float) -> Boot:
    assert process.stdout is not None
    started = time.monotonic()
    said = b""
    while (left := started + deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        # Enough to find the proof whole, however the output is cut.
        if not (data := os.read(process.stdout.fileno(), 4096)):
            break
        said = said[-4096:] + data
        if proof.search(said):
            return Boot(time.monotonic() - started, _last_line(said))
    return Boot(None, _last_line(said))


def _last_line(said: bytes) -> str:
    lines = "".join(c if c.isprintable() or c == "\n" else " " for c in said.decode(errors="replace")).split("\n")
    telling = (line.strip() for line in reversed(lines) if "warning:" not in line)
    return next((line[:200] for line in telling if line), "")


def remembered() -> Verdict | None:
    """What was proved earlier for this kernel, QEMU and CPU; None where nothing was, or one of them changed."""
    try:
        record = json.loads(read_permitted(_memory()) or "null")
        if not record or record["host"] != _host():
            return None
        return Verdict("kvm" if record["name"] == "kvm" else "tcg", str(record["reason"]), proved=True)
    except (ValueError, KeyError, TypeError):
        return None


def remember(verdict: Verdict) -> None:
    """Keep a proved verdict for this kernel, QEMU and CPU. A user who may not write asks anew each time."""
    path = _memory()
    if not verdict.proved or not os.access(path.parent if path.parent.exists() else "/", os.W_OK):
        return
    make_private_directory(path.parent)
    record = {"host": _host(), "name": verdict.name, "reason": verdict.reason}
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def forget() -> None:
    """Have the next question answered by booting again."""
    _memory().unlink(missing_ok=True)


def _memory() -> Path:
    return state_directory() / "accelerator.json"


def _host() -> dict[str, object]:
    """What a verdict depends on: another of these may behave otherwise."""
    emulator = shutil.which(_EMULATOR)
    program = Path(emulator).stat() if emulator else None
    model = re.search(r"^model name\s*:\s*(.*)$", read_permitted(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return {
        "kernel": platform.release(),
        "qemu": [program.st_size, program.st_mtime_ns] if program else None,
        "cpu": model[1] if model else None,
        "kvm": KVM_DEVICE.exists(),
    }
