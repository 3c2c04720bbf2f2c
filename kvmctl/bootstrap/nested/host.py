"""Boots the nested host from its image, without libvirt, and runs commands in it by ssh on a port of the loopback.

It has an IOMMU that remaps interrupts, and behind root ports of their own, so that each is a group of its own: an
e1000e card, a virtio card, an NVMe disk, an NVMe disk with virtual functions, and where the emulator knows it an igb
card with virtual functions. The chipset's functions share one.
"""

import io
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kvmctl.bootstrap.environment import CHECKOUT
from kvmctl.bootstrap.nested.image import PLACE, Image, using
from kvmctl.bootstrap.progress import run
from kvmctl.model.errors import KvmctlError, TimedOutError

MEMORY_MIB = 4096
BOOT_SECONDS = 240.0
COMMAND_SECONDS = 120.0
_ALIVE_SECONDS = 60.0
_WITH_IGB = 8
"""The first version of QEMU that has a network card with virtual functions."""
PROCESSORS = 1
"""With two and guests in it, QEMU 7.2 lets the host panic, and 10.0 loses a processor's timer now and then."""
_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 panic=-1 intel_iommu=on iommu=pt quiet net.ifnames=0 systemd.show_status=0"
)
E1000E_MAC, VIRTIO_MAC, IGB_MAC = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"
GATEWAY = "10.77.1.2"
"""What answers to ping on the e1000e card's network."""
NVME, SRIOV_NVME = "plain0", "sriov0"
"""The serial numbers of the two NVMe disks."""
MARKS = {NVME: b"NVME-PLAIN-MAGIC\n", SRIOV_NVME: b"NVME-SRIOV-MAGIC\n"}
"""How each of them begins."""
_DISK_BYTES = 64 << 20
_FOLDER = "kvmctl-nested"
"""How the names of the hosts' folders begin; the number of the process that made it follows."""
_ILL = re.compile(r"detected stalls? on|self-detected stall|soft lockup|Kernel panic")
"""What its kernel says on the console when the emulated machine has lost an interrupt, or worse."""
EXIT_HOST_DIED = 75
"""How pytest ends where a nested host died of itself, and no test failed: EX_TEMPFAIL of sysexits.h."""


class HostDiedError(KvmctlError):
    """The nested host itself is gone or hangs: nothing is known of what was tried in it."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU, and where it finds its firmware if not in its usual place."""

    program: str
    data: Path | None
    version: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command in the host ended."""

    code: int
    out: str
    err: str


def emulator(image: Image) -> Emulator:
    """The newer QEMU beside the image, else this machine's own. Raises KvmctlError without one."""
    if image.emulator is None:
        return _emulator("qemu-system-x86_64", None)
    return _emulator(str(image.emulator), image.folder / "qemu/usr/share/qemu")


def _emulator(program: str, data: Path | None) -> Emulator:
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", run([program, "--version"]))
    number = tuple(map(int, found.groups())) if found else (0,)
    return Emulator(program, data, ".".join(map(str, number)))


def _devices(folder: Path, version: str) -> list[str]:
    words = []
    for number in range(1, 6):
        words += ["-device", f"pcie-root-port,id=rp{number},chassis={number},slot={number}"]
    for number, (serial, mark) in enumerate(MARKS.items()):
        path = folder / f"{serial}.raw"
        with path.open("wb") as file:
            file.truncate(_DISK_BYTES)
            file.write(mark)
        words += ["-drive", f"file={path},if=none,id=x{number},format=raw,cache=unsafe"]
    functions = "sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,sriov_max_vq_per_vf=2,sriov_max_vi_per_vf=1"
    for word in (
        f"-netdev user,id=n1,net=10.77.1.0/24,host={GATEWAY}",
        f"-device e1000e,netdev=n1,bus=rp1,mac={E1000E_MAC}",
        "-netdev user,id=n2,net=10.77.2.0/24",
        f"-device virtio-net-pci,netdev=n2,bus=rp2,mac={VIRTIO_MAC},iommu_platform=on,disable-legacy=on",
        f"-device nvme,serial={NVME},drive=x0,bus=rp3",
        "-device nvme-subsys,id=ss0",
        f"-device nvme,serial={SRIOV_NVME},subsys=ss0,bus=rp4,{functions}",
        "-device nvme-ns,drive=x1,nsid=1",
    ):
        words += word.split()
    if int(version.partition(".")[0]) >= _WITH_IGB:
        words += f"-netdev user,id=n3,net=10.77.3.0/24 -device igb,netdev=n3,bus=rp5,mac={IGB_MAC}".split()
    return words


def command(image: Image, found: Emulator, folder: Path, port: int, remapping: bool = True) -> list[str]:
    """The command line of QEMU; it keeps what it writes in `folder`, and makes the devices' files there."""
    switch = "on" if remapping else "off"
    return [
        # It holds gigabytes: it is not to outlive whoever booted it, even one that was killed.
        "setpriv", "--pdeathsig", "KILL", found.program, *(("-L", str(found.data)) if found.data else ()),
        "-name", "kvmctl-nested", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", f"q35,kernel-irqchip={'split' if remapping else 'on'}", "-accel", "tcg,thread=multi",
        "-cpu", "max,-vgif", "-smp", str(PROCESSORS), "-m", str(MEMORY_MIB),
        "-device", f"intel-iommu,intremap={switch},caching-mode=on,aw-bits=48",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", _COMMAND_LINE,
        "-drive", f"file={folder / 'disk.qcow2'},if=none,id=d0,format=qcow2,cache=unsafe",
        "-device", "virtio-blk-pci,drive=d0",
        "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=n0",
        "-device", "virtio-rng-pci", *_devices(folder, found.version), "-serial", f"file:{folder / 'console.log'}",
    ]  # fmt: skip


class Host:
    """A nested host that runs, until `close`."""

    def __init__(self, image: Image, folder: Path, remapping: bool = True) -> None:
        """Boot it, with what it writes in `folder`, and copy kvmctl into it. Raises HostDiedError."""
        self.image, self.folder = image, folder
        self.emulator = emulator(image)
        self.port = _free_port()
        backing = ["-f", "qcow2", "-b", str(image.disk), "-F", "qcow2"]
        run(["qemu-img", "create", "-q", *backing, str(folder / "disk.qcow2")])
        words = command(image, self.emulator, folder, self.port, remapping)
        with (folder / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait()
            self.copy_kvmctl()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            self._check_process()
            with suppress(TimedOutError):
                if self._ssh("true", 30).code == 0:
                    return
            time.sleep(0.5)
        raise HostDiedError(f"the nested host has not let anybody in within {BOOT_SECONDS:g} s{self._last_words()}")

    def _check_process(self) -> None:
        if self.process.poll() is not None:
            raise HostDiedError(f"the nested host has ended with {self.process.returncode}{self._last_words()}")

    def _last_words(self) -> str:
        said = b""
        for name in ("qemu.log", "console.log"):
            with suppress(OSError):
                said += (self.folder / name).read_bytes()[-2000:]
        return f"; it said last:\n{said.decode(errors='replace')}" if said else ""

    def ssh(self) -> list[str]:
        """The program that runs a command in the host, with its options."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "ControlMaster": "auto",
            "ControlPath": self.folder / "ssh",
            "ControlPersist": "600",
            "HostKeyAlias": "nested",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "UserKnownHostsFile": self.image.known_hosts,
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", *words, "-i", str(self.image.key), "-p", str(self.port), "root@127.0.0.1"]

    def _ssh(self, text: str, seconds: float, stdin: bytes = b"") -> Answer:
        # In files: the connection that stays open would keep pipes open as well.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                done = subprocess.run(
                    [*self.ssh(), text], input=stdin, stdout=out, stderr=err, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise TimedOutError(f"`{text}` has not ended within {seconds:g} s in the nested host") from error
            return Answer(done.returncode, _read(out), _read(err))

    def run(self, text: str, seconds: float = COMMAND_SECONDS, stdin: bytes = b"") -> Answer:
        """Run a shell command. Raises TimedOutError, or HostDiedError where it is the host that does not answer."""
        self._check_process()
        try:
            answer = self._ssh(text, seconds, stdin)
        except TimedOutError:
            self.check_alive()
            raise
        if answer.code == 255:  # as a rule ssh's own failure
            self.check_alive()
        return answer

    def illness(self) -> str:
        """What its kernel has said that means that the machine does not work any more, if it has."""
        with suppress(OSError):
            for line in (self.folder / "console.log").read_text(errors="replace").splitlines():
                if _ILL.search(line):
                    return line.strip()
        return ""

    def check_alive(self) -> None:
        """Raise HostDiedError unless it still answers, and its kernel has not said that it is ill."""
        self._check_process()
        if said := self.illness():
            raise HostDiedError(f"the nested host hangs; its kernel says: {said}")
        with suppress(TimedOutError):
            if self._ssh("true", _ALIVE_SECONDS).code == 0:
                return
        self._check_process()
        raise HostDiedError(f"the nested host does not answer any more{self._last_words()}")

    def copy_kvmctl(self) -> None:
        """Copy kvmctl as it is in this checkout into the host. Raises KvmctlError."""
        answer = self.run(f"rm -rf {PLACE}/* && tar -xz -C {PLACE}", stdin=packed())
        if answer.code:
            raise KvmctlError(f"kvmctl could not be copied into the nested host: {answer.err}")

    def close(self) -> None:
        """End it, as by pulling the plug."""
        with suppress(KvmctlError):  # the connection that was kept open, if it is
            run([*self.ssh(), "-O", "exit"], timeout=10)
        self.process.kill()
        self.process.wait()
        for name in ("disk.qcow2", *(f"{serial}.raw" for serial in MARKS)):
            (self.folder / name).unlink(missing_ok=True)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def packed() -> bytes:
    """kvmctl with its templates, as a compressed tar archive."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as archive:
        for name in ("kvmctl", "templates"):
            archive.add(CHECKOUT / name, name, filter=_wanted)
    return made.getvalue()


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def remove_leftovers() -> None:
    """Remove the folders of hosts whose maker was killed; the host itself has ended with it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}-*"):
        maker = re.match(rf"{_FOLDER}-(\d+)-", folder.name)
        if maker and not Path("/proc", maker[1]).exists() and folder.lstat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def booted(image: Image, remapping: bool = True) -> Iterator[Host]:
    """A nested host, and its folder, for as long as the block runs."""
    remove_leftovers()
    # The path of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}-{os.getpid()}-"))
    try:
        with using(image):
            host = Host(image, folder, remapping)
            try:
                yield host
            finally:
                host.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
