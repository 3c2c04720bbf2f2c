"""A guest for the I/O bench: Linux with drivers for what QEMU emulates, one disk and one nic, driven by its console."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvmctl.bootstrap import microguest
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from tests.bench.cli import NAME
from tests.bench.columns import Kvmctl
from tests.support import Console, Guest, until

DISK_SIZE = 256
"""MiB of the disk, which lies in memory: the host's own disk is not measured."""
HOST_ADDRESS = "192.168.122.1"
_SECTOR = 512
_HEADERS = 42
"""Bytes of Ethernet, IP and UDP around a datagram, which traffic control counts as well."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was moved in how many seconds, and the CPU seconds that QEMU took for it."""

    operations: int
    bytes: int
    seconds: float
    cpu: float

    @property
    def iops(self) -> float:
        return self.operations / self.seconds

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory that QEMU can enter."""
    folder = Path(f"/var/lib/libvirt/{NAME}io-{os.getpid()}")
    folder.mkdir(mode=0o711)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE + 64}m,mode=711", "tmpfs", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        folder.rmdir()


class IoGuest:
    """One booted guest."""

    def __init__(self, hypervisor: Hypervisor, name: str, console: Console) -> None:
        self.guest = Guest(hypervisor, name)
        self.console = console
        self.disk = console.run("basename $(ls -d /sys/block/[sv]d? | head -n 1)").strip()
        self.pid = self.guest.pid
        found = re.search(r"<target dev='(vnet\d+)'/>", domains.live_definition(self.guest.domain))
        assert found, "the guest has no tap"
        self.tap = Path(f"/sys/class/net/{found[1]}/statistics")
        lease = until(lambda: console.run("ip -4 addr show dev eth0"), lambda seen: "inet " in seen, 60, "the lease")
        self.address = lease.partition("inet ")[2].partition("/")[0]

    def cpu(self) -> float:
        """Seconds that all threads of QEMU have run."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def disk_io(self, way: str, block: str, seconds: int, streams: int = 1) -> Done:
        """Read or write as many blocks as can be in that time, past the guest's cache, by so many programs at once."""
        begun = self.cpu()
        part = DISK_SIZE // streams
        one = f"dd if=/dev/{self.disk} of=/dev/null iflag=direct bs={block}"
        if way == "write":
            one = f"dd if=/dev/zero of=/dev/{self.disk} oflag=direct bs={block}"
        # Over and over from where the stream begins: a program that has come to its end begins again.
        count = part * ({"4k": 256, "1M": 1}[block])
        offset = "skip" if way == "read" else "seek"
        jobs = " ".join(
            f"(while :; do {one} count={count} {offset}={number * count} 2>/dev/null; done) & p{number}=$!;"
            for number in range(streams)
        )
        ends = " ".join(f"$p{number}" for number in range(streams))
        look = f"cat /sys/block/{self.disk}/stat /proc/uptime"
        text = self.console.run(f"{look}; {jobs} sleep {seconds}; {look}; kill {ends}; killall dd; true", seconds + 60)
        first, begin, last, end = [line.split() for line in text.splitlines() if line.strip()][:4]
        column = 0 if way == "read" else 4
        operations, sectors = (int(last[column + at]) - int(first[column + at]) for at in (0, 2))
        return Done(operations, sectors * _SECTOR, float(end[0]) - float(begin[0]), self.cpu() - begun)

    def receive(self, seconds: float, warm_up: float = 1.0) -> Done:
        """TCP from the host to the guest; bytes are those of whole packets, as the tap counts them."""
        with socket.create_server((HOST_ADDRESS, 0)) as server:
            port = server.getsockname()[1]
            self.console.run(f"(timeout {int(seconds + warm_up + 3)} nc {HOST_ADDRESS} {port} >/dev/null 2>&1 &)")
            server.settimeout(20)
            peer, _ = server.accept()
        with peer:
            stop = threading.Event()
            sender = threading.Thread(target=_send, args=(peer, stop))
            sender.start()
            try:
                return self._window("tx", seconds, warm_up)
            finally:
                stop.set()
                sender.join()

    def send(self, seconds: float, warm_up: float = 1.0) -> Done:
        """UDP from a generator in the guest's kernel, as fast as the nic takes it: busybox's own programs are slower
        than any nic. Nobody takes what arrives, which is counted at the tap."""
        self._generate(9, "delay 0")
        try:
            return self._window("rx", seconds, warm_up)
        finally:
            self.console.run("echo stop >/proc/net/pktgen/pgctrl")

    def _window(self, counter: str, seconds: float, warm_up: float) -> Done:
        time.sleep(warm_up)
        before, cpu, begun = self._counted(counter), self.cpu(), time.monotonic()
        time.sleep(seconds)
        after, used, taken = self._counted(counter), self.cpu() - cpu, time.monotonic() - begun
        return Done(after[0] - before[0], after[1] - before[1], taken, used)

    def _counted(self, counter: str) -> tuple[int, int]:
        packets, size = (int((self.tap / f"{counter}_{what}").read_text()) for what in ("packets", "bytes"))
        return packets, size

    def arrives(self, seconds: float, warm_up: float = 3.0) -> Done:
        """UDP from the guest as fast as it can: what comes through to the host."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            taker.bind((HOST_ADDRESS, 0))
            taker.settimeout(5)
            self._generate(taker.getsockname()[1], "ratep 8000")
            try:
                begun = time.monotonic()
                while time.monotonic() < begun + warm_up:
                    taker.recv(65536)
                cpu, start, packets, size = self.cpu(), time.monotonic(), 0, 0
                while (now := time.monotonic()) < start + seconds:
                    received = len(taker.recv(65536))
                    packets, size = packets + 1, size + received + _HEADERS
                return Done(packets, size, now - start, self.cpu() - cpu)
            finally:
                self.console.run("echo stop >/proc/net/pktgen/pgctrl")

    def _generate(self, port: int, pace: str) -> None:
        """Let the guest's kernel send datagrams to the host, until it is told to stop."""
        mac = Path("/sys/class/net/virbr0/address").read_text().strip()
        words: tuple[str, ...] = ("count 0", "pkt_size 1442", pace, f"dst {HOST_ADDRESS}", f"dst_mac {mac}")
        words = (*words, f"udp_dst_min {port}", f"udp_dst_max {port}")
        lines = [
            "echo rem_device_all >/proc/net/pktgen/kpktgend_0",
            "echo add_device eth0 >/proc/net/pktgen/kpktgend_0",
        ]
        lines += [f"echo {word} >/proc/net/pktgen/eth0" for word in words]
        self.console.run(" && ".join([*lines, "(echo start >/proc/net/pktgen/pgctrl &)"]))

    def round_trips(self, seconds: float) -> Done:
        """Echo requests that the guest answers, one after the other."""
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as echo:
            echo.settimeout(1.0)
            mine = os.getpid() & 0xFFFF
            cpu, begun, count = self.cpu(), time.monotonic(), 0
            while (now := time.monotonic()) < begun + seconds:
                header = struct.pack("!BBHHH", 8, 0, 0, mine, count & 0xFFFF) + bytes(48)
                echo.sendto(header[:2] + struct.pack("!H", _checksum(header)) + header[4:], (self.address, 0))
                wanted = struct.pack("!HH", mine, count & 0xFFFF)
                try:
                    while (reply := echo.recv(2048))[20] != 0 or reply[24:28] != wanted:
                        pass
                except TimeoutError:
                    continue
                count += 1
            return Done(count, count * 98, now - begun, self.cpu() - cpu)


def _send(peer: socket.socket, stop: threading.Event) -> None:
    data = bytes(1 << 18)
    peer.settimeout(0.5)
    while not stop.is_set():
        try:
            peer.send(data)
        except TimeoutError:
            continue
        except OSError:
            return


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


@contextmanager
def booted(hypervisor: Hypervisor, folder: Path, mode: str, accelerator: str) -> Iterator[IoGuest]:
    """A guest whose disk and nic are in that mode, until the block ends."""
    micro = microguest.ensure(flavour=microguest.FULL)
    name, image, file = f"{NAME}{mode}", folder / "disk.raw", folder / f"{mode}.yaml"
    with image.open("wb") as disk:
        # Written, so that memory is there before it is measured.
        for _ in range(DISK_SIZE):
            disk.write(os.urandom(1 << 20))
    image.chmod(0o666)
    file.write_text(
        f"guests:\n- name: {name}\n  accelerator: {accelerator}\n  cpu: {{count: 1}}\n  memory: {{size: 512MiB}}\n"
        f"  boot: {{kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet mitigations=off}}\n"
        f"  disks: [{{path: {image}, format: raw, mode: {mode}, cache: writeback}}]\n"
        f"  nics: [{{network: default, mode: {mode}, mac: '52:54:00:1d:0b:e0'}}]\n"
    )
    Kvmctl(folder / "state").run("apply", "-f", str(file))
    guest = Guest(hypervisor, name)
    try:
        with Console(guest) as console:
            console.ready()
            yield IoGuest(hypervisor, name, console)
    finally:
        guest.remove()
