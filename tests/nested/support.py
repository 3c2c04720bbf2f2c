"""The nested host as tests use it: kvmctl in it, its devices, and guests of its own under real KVM."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.bootstrap.nested.host import E1000E_MAC, IGB_MAC, NVME, SRIOV_NVME, VIRTIO_MAC, Answer, Host
from kvmctl.bootstrap.nested.image import GUEST
from tests.conftest import Ran
from tests.support import PREFIX, Value

ASK = "/run/inside.py"
_FIND = """
for file in /sys/class/net/*/address /sys/class/nvme/*/serial; do
    [ -e "$file" ] && echo "$(cat $file) $(basename $(readlink -f ${file%/*}/device))"
done
"""
_GUEST = """
guests:
  - name: {name}
    accelerator: kvm
    cpu: {{count: 1}}
    memory: {{size: {memory}MiB}}
    boot: {{kernel: {folder}/vmlinuz, initrd: {folder}/initrd.gz, cmdline: "console=ttyS0 quiet"}}
    state: {state}
    {more}
"""
_HOSTDEV = """
<hostdev mode='subsystem' type='pci' managed='{managed}'><driver name='vfio'/><source>
<address domain='0x{0}' bus='0x{1}' slot='0x{2}' function='0x{3}'/></source></hostdev>
"""


@dataclass(frozen=True)
class Devices:
    """The addresses of the devices that are there to be given away."""

    e1000e: str
    virtio: str
    nvme: str
    sriov: str
    igb: str
    """Empty where the emulator has none."""
    own: str
    """The card by which the host is reached."""


class Nested:
    """A nested host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.sh(f"cat >{ASK}", stdin=(Path(__file__).with_name("inside.py")).read_bytes())
        found = dict(line.split() for line in self.sh(_FIND).splitlines() if not line.startswith("00:00"))
        own = self.sh("basename $(readlink -f /sys/class/net/$(ip route show default | cut -d' ' -f5)/device/..)")
        self.devices = Devices(
            found[E1000E_MAC],
            self._card(VIRTIO_MAC),
            found[NVME],
            found[SRIOV_NVME],
            found.get(IGB_MAC, ""),
            own.strip(),
        )

    def _card(self, mac: str) -> str:
        """The PCI device of a virtio card, whose interface hangs on a device on its own bus."""
        path = self.sh(f"readlink -f $(dirname $(grep -l {mac} /sys/class/net/*/address))/device/..")
        return path.strip().rpartition("/")[2]

    def try_sh(self, text: str, seconds: float = 120, stdin: bytes = b"") -> Answer:
        """A shell command in the host, however it ends."""
        return self.host.run(text, seconds, stdin)

    def sh(self, text: str, seconds: float = 120, stdin: bytes = b"") -> str:
        """What a shell command in the host prints, which must not fail."""
        answer = self.try_sh(text, seconds, stdin)
        assert answer.code == 0, f"{text!r} exits with {answer.code} in the nested host: {answer.out}{answer.err}"
        return answer.out

    def kvmctl(self, *words: object, code: int | None = 0, stdin: str = "", seconds: float = 180) -> Ran:
        """The command line of kvmctl in the host; fails unless it ends with the expected code."""
        text = " ".join(shlex.quote(str(word)) for word in words)
        answer = self.try_sh(f"kvmctl {text}", seconds, stdin.encode())
        ran = Ran(tuple(map(str, words)), answer.code, answer.out, answer.err)
        assert "Traceback" not in ran.err, ran.err
        assert code is None or ran.code == code, f"{words}: exit {ran.code}, not {code}\n{ran.out}\n{ran.err}"
        return ran

    def until(self, read: Callable[[], Value], good: Callable[[Value], bool], seconds: float, what: str) -> Value:
        """As `tests.support.until`, less often: each question is a connection."""
        deadline = time.monotonic() + seconds
        while not good(value := read()):
            assert time.monotonic() < deadline, f"{what} is not as expected after {seconds} s; last seen: {value!r}"
            time.sleep(0.5)
        return value

    def driver(self, address: str) -> str:
        """The driver of a device, as the kernel has it; empty for none."""
        return self.sh(f'basename "$(readlink /sys/bus/pci/devices/{address}/driver)"').strip()

    def disk_name(self, address: str) -> str:
        """The name in /dev of the first namespace of an NVMe controller, once the kernel has it."""
        find = f"ls -d /sys/bus/pci/devices/{address}/nvme*/nvme*/nvme*n1 2>/dev/null || true"
        path = self.until(lambda: self.sh(find).strip(), bool, 60, "the disk's name")
        # A controller of a subsystem has a path of its own to the disk, nvme0c1n1, which is no device.
        return re.sub(r"c\d+", "", path.split()[0].rpartition("/")[2])

    def override(self, address: str) -> str:
        """The driver that is ordered for a device, `(null)` for none."""
        return self.sh(f"cat /sys/bus/pci/devices/{address}/driver_override").strip()

    def rows(self) -> dict[str, dict[str, Any]]:
        """`kvmctl pci list`, by address."""
        return {row["name"]: row for row in self.kvmctl("pci", "list", "-o", "json").json()}

    def guest(
        self,
        what: str,
        *addresses: str,
        managed: bool = False,
        memory: int = 192,
        start: bool = True,
        more: str = "",
    ) -> str:
        """Make a guest with these devices, and `more` in its file; its name."""
        name = f"{PREFIX}{what}"
        state = "running" if start and not addresses else "stopped"
        text = _GUEST.format(name=name, folder=GUEST, memory=memory, more=more, state=state)
        self.kvmctl("apply", "-f", "-", stdin=text)
        for address in addresses:
            self.sh(f"virsh -q attach-device {name} /dev/stdin --config", stdin=hostdev(address, managed).encode())
        if start and addresses:
            self.kvmctl("start", name)
        return name

    def stop(self, guest: str) -> None:
        """Pull a guest's plug."""
        self.sh(f"virsh -q destroy {guest}")

    def ask(self, guest: str, command: str, seconds: float = 90) -> str:
        """What a command prints in a guest, which must not fail there."""
        words = f"$(virsh -q ttyconsole {guest}) {seconds} {shlex.quote(command)}"
        return self.sh(f"python3 -IS {ASK} {words}", seconds + 30)

    def pid(self, guest: str) -> int:
        """The process ID of a guest's QEMU."""
        return int(self.sh(f"cat /run/libvirt/qemu/{guest}.pid"))

    def tidy(self, drivers: dict[str, str]) -> None:
        """No guest of a test is left, and every device has the driver that it had."""
        left = "/etc/libvirt/qemu/*.xml /run/libvirt/qemu/*.xml /etc/udev/rules.d/70-kvmctl-*"
        self.sh(
            f'[ -z "$(ls {left} 2>/dev/null)" ] && exit; '
            f"for guest in $(virsh -q list --all --name | grep ^{PREFIX}); do virsh -q destroy $guest; "
            "virsh -q undefine $guest; done 2>/dev/null; rm -f /etc/udev/rules.d/70-kvmctl-*; true"
        )
        if self.drivers() != drivers:
            self.kvmctl("host", "restore", "--force")
            assert self.drivers() == drivers

    def drivers(self) -> dict[str, str]:
        """The driver of every device that has one."""
        # One program for all: each takes long here.
        lines = self.sh("cd /sys/bus/pci/devices; ls -l */driver").splitlines()
        return {line.split()[-3].partition("/")[0]: line.rpartition("/")[2] for line in lines}


def hostdev(address: str, managed: bool = False) -> str:
    """A device as libvirt is told to pass it to a guest."""
    return _HOSTDEV.format(*address.replace(".", ":").split(":"), managed="yes" if managed else "no")
