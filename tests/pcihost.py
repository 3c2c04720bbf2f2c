"""Machines with PCI devices as files, laid out as /sys has them, and a kernel that answers what is written there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvmctl.host.pci_kernel import WRITE_SECONDS, Kernel
from kvmctl.model.errors import KvmctlError, NotFoundError, TimedOutError
from tests.trees import fill

_BUS = "sys/bus/pci"
PCI_IDS = """\
# names, of which the tests need few
8086  Intel Corporation
\t10d3  82574L Gigabit Network Connection
\t\t8086 a01f  Gigabit CT Desktop Adapter
\t1901  6th-10th Gen Core Processor PCIe Controller (x16)
10de  NVIDIA Corporation
\t10d3  Not Intel's
\t2204  GA102 [GeForce RTX 3090]
C 02  Network controller
\t00  Ethernet controller
C 03  Display controller
\t00  VGA compatible controller
\t\t00  VGA controller
\t02  3D controller
"""


def link(path: Path, target: Path) -> None:
    """A relative link, as /sys has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


class PciHost:
    """One machine below `root`."""

    def __init__(self, top: Path) -> None:
        self.root = top / "machine"
        fill(self.root / _BUS, drivers_probe="")
        (self.root / _BUS / "devices").mkdir()
        (self.root / "sys/kernel/iommu_groups").mkdir(parents=True)
        (self.root / "proc/self").mkdir(parents=True)
        self.driver("pcieport")
        self.driver("vfio-pci")
        self._mounts: list[str] = []
        self._swaps = ["Filename Type Size Used Priority"]
        self.addresses: dict[str, list[str]] = {}

    def driver(self, name: str) -> Path:
        """A driver that is loaded."""
        return fill(self.root / _BUS / "drivers" / name, bind="", unbind="")

    def device(
        self,
        address: str,
        ids: str = "8086:10d3",
        kind: str = "0200",
        driver: str | None = None,
        group: int | None = None,
        behind: Path | None = None,
        **files: object,
    ) -> Path:
        """A function, at the root of its domain or behind another; its folder below /sys/devices."""
        domain, bus, _ = address.split(":")
        top = self.root / f"sys/devices/pci{domain}:{'00' if behind is None else bus}"
        path = (behind or top) / address
        vendor, device = ids.split(":")
        known = {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": f"0x{kind}00", "numa_node": -1}
        fill(path, **known | {"driver_override": "(null)"} | files)
        link(self.root / _BUS / "devices" / address, path)
        if group is not None:
            folder = self.root / f"sys/kernel/iommu_groups/{group}"
            link(folder / "devices" / address, path)
            link(path / "iommu_group", folder)
        if driver:
            self.bind(address, driver)
        return path

    def folder(self, address: str) -> Path:
        """The folder of a device below /sys/devices."""
        return (self.root / _BUS / "devices" / address).resolve(strict=True)

    def bind(self, address: str, driver: str) -> None:
        """Let a driver have the device."""
        folder = self.driver(driver)
        link(self.folder(address) / "driver", folder)
        link(folder / address, self.folder(address))

    def unbind(self, address: str) -> None:
        """Let no driver have it."""
        driver = (self.folder(address) / "driver").readlink().name
        (self.folder(address) / "driver").unlink()
        (self.root / _BUS / "drivers" / driver / address).unlink()

    def remove(self, address: str) -> None:
        """Pull a device out."""
        folder = self.folder(address)
        if (folder / "driver").is_symlink():
            self.unbind(address)
        if (folder / "iommu_group").exists():
            (folder / "iommu_group").resolve().joinpath("devices", address).unlink()
        (self.root / _BUS / "devices" / address).unlink()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def state(self) -> dict[str, tuple[str, str]]:
        """Driver and driver_override of every device."""
        found = {}
        for path in sorted((self.root / _BUS / "devices").iterdir()):
            driver = (path / "driver").readlink().name if (path / "driver").is_symlink() else ""
            found[path.name] = (driver, (path / "driver_override").read_text().strip())
        return found

    def drivers(self, *addresses: str) -> list[str]:
        """The drivers of these devices, empty for none."""
        return [self.state()[address][0] for address in addresses]

    # Disks

    def disk(self, name: str, number: str, below: Path, partitions: Mapping[str, str] | None = None) -> Path:
        """A disk in a folder below /sys/devices, with partitions by name and number."""
        path = self._block(below / name, number)
        for part, each in (partitions or {}).items():
            fill(self._block(path / part, each), partition=1)
        return path

    def _block(self, path: Path, number: str) -> Path:
        fill(path, dev=number)
        (path / "slaves").mkdir()
        (path / "holders").mkdir()
        link(self.root / "sys/class/block" / path.name, path)
        link(self.root / "sys/dev/block" / number, path)
        fill(self.root / "dev", **{path.name: ""})
        return path

    def stacked(self, name: str, number: str, *lower: str, title: str = "") -> Path:
        """A device of dm or md on top of others."""
        path = self._block(self.root / "sys/devices/virtual/block" / name, number)
        if title:
            fill(path / "dm", name=title)
            link(self.root / "dev/mapper" / title, self.root / "dev" / name)
        for one in lower:
            below = (self.root / "sys/class/block" / one).resolve()
            link(path / "slaves" / one, below)
            link(below / "holders" / name, path)
        return path

    def mount(self, number: str, point: str, source: str, kind: str = "ext4", top: str = "/") -> None:
        """A line of mountinfo."""
        self._mounts.append(f"{22 + len(self._mounts)} 1 {number} {top} {point} rw - {kind} {source} rw")
        (self.root / "proc/self/mountinfo").write_text("\n".join(self._mounts) + "\n")

    def swap(self, path: str) -> None:
        """A line of /proc/swaps."""
        self._swaps.append(f"{path} partition 1048572 0 -2")
        (self.root / "proc/swaps").write_text("\n".join(self._swaps) + "\n")

    # Networks

    def nic(self, name: str, below: Path | None = None, *addresses: str) -> Path:
        """A network interface, virtual where it is below nothing."""
        path = (below / "net" if below else self.root / "sys/devices/virtual/net") / name
        fill(path, operstate="up")
        link(self.root / "sys/class/net" / name, path)
        if addresses:
            self.addresses[name] = list(addresses)
        return path

    def on_top(self, upper: str, *lower: str) -> None:
        """Make one interface carry another, as a bridge, a bond or a VLAN does."""
        for one in lower:
            path = self.root / "sys/class/net" / one
            link(path.resolve() / f"upper_{upper}", (self.root / "sys/class/net" / upper).resolve())

    def default_route(self, name: str) -> None:
        """The IPv4 default route."""
        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        local = f"{name}\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        fill(
            self.root / "proc/net", route=f"{head}{name}\t00000000\t010001C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n{local}"
        )

    # Processes

    def process(self, pid: int, comm: str, *files: str, cmdline: Sequence[str] = ()) -> None:
        """A process that has files open."""
        folder = fill(self.root / "proc" / str(pid), comm=comm)
        (folder / "cmdline").write_text("".join(f"{word}\0" for word in (cmdline or (comm,))))
        (folder / "fd").mkdir()
        for number, file in enumerate(("/dev/null", *files)):
            (folder / "fd" / str(number)).symlink_to(file)


class PlayedKernel(Kernel):
    """Does to a machine of files what the kernel does to its own when /sys is written to."""

    def __init__(self, host: PciHost, native: Mapping[str, str] | None = None) -> None:
        super().__init__(host.root)
        self.host = host
        self.native = dict(native or {address: driver for address, (driver, _) in host.state().items() if driver})
        """The driver that each device gets when its own choice is asked for."""
        self.refuses: set[tuple[str, str]] = set()
        """Driver and device that it does not take."""
        self.stuck: set[str] = set()
        """Devices that their driver does not let go of."""
        self.functions: dict[str, tuple[str, ...]] = {}
        """The addresses that each physical function's virtual ones would have."""
        self.written: list[tuple[str, str]] = []
        self.before: Callable[[int], None] = lambda _number: None
        """Called with the number of each write before it is done."""

    def write(self, path: str, value: str, seconds: float = WRITE_SECONDS) -> None:
        """Play one write."""
        self.before(len(self.written))
        self.written.append((path, value))
        if not (self.root / path).exists():
            raise NotFoundError(f"{path} is not there")
        address, name = Path(path).parts[-2:]
        if name == "driver_override":
            (self.root / path).write_text(value.strip() or "(null)")
        elif name == "sriov_drivers_autoprobe":
            (self.root / path).write_text(f"{value}\n")
        elif name == "sriov_numvfs":
            self._set_functions(address, int(value))
        elif name == "unbind":
            if value in self.stuck:
                raise TimedOutError(f"no answer within {seconds:g} s to {path}")
            self.host.unbind(value)
        elif name == "bind":
            self._attach(value, (address,))
        else:
            assert path == f"{_BUS}/drivers_probe"
            self._probe(value)

    def _probe(self, address: str) -> None:
        driver, ordered = self.host.state()[address]
        if not driver:
            self._attach(address, (ordered,) if ordered != "(null)" else (self.native.get(address, ""),))

    def _attach(self, address: str, drivers: Sequence[str]) -> None:
        for driver in drivers:
            there = driver and (self.root / _BUS / "drivers" / driver).is_dir()
            if there and (driver, address) not in self.refuses:
                self.host.bind(address, driver)

    def _set_functions(self, address: str, count: int) -> None:
        folder = self.host.folder(address)
        now = int((folder / "sriov_numvfs").read_text())
        if now and count and now != count:
            raise KvmctlError("Device or resource busy")
        for number, function in enumerate(self.functions[address][:now] if not count else ()):
            (folder / f"virtfn{number}").unlink()
            self.host.remove(function)
        for number, function in enumerate(self.functions[address][:count] if not now else ()):
            made = self.host.device(function, "8086:10ed", "0200", group=100 + number, behind=folder.parent)
            link(made / "physfn", folder)
            link(folder / f"virtfn{number}", made)
        (folder / "sriov_numvfs").write_text(f"{count}\n")


# The machines


def desktop(top: Path) -> PciHost:
    """A card with its audio function in one group, a lone NIC, and the chipset with the root disk in another group.

    01:00.0 and .1 are a GPU; 02:00.0 is free; 00:1f.* hold / on LVM on a SATA disk; 03:00.0 has no driver.
    """
    host = PciHost(top)
    host.device("0000:00:00.0", "8086:191f", "0600", group=0)
    gpu = host.device("0000:00:01.0", "8086:1901", "0604", "pcieport", group=1)
    host.device("0000:01:00.0", "10de:2204", "0300", "nouveau", 1, gpu, boot_vga=0, numa_node=0)
    host.device("0000:01:00.1", "10de:1aef", "0403", "snd_hda_intel", 1, gpu)
    port = host.device("0000:00:1c.0", "8086:a110", "0604", "pcieport", group=5)
    nic = host.device("0000:02:00.0", "8086:10d3", "0200", "e1000e", 6, port)
    host.nic("enp2s0", nic)
    host.device("0000:03:00.0", "8086:1234", "0880", None, 7, port)
    host.device("0000:00:1f.0", "8086:a143", "0601", group=9)
    sata = host.device("0000:00:1f.2", "8086:a102", "0106", "ahci", 9)
    host.device("0000:00:1f.4", "8086:a123", "0c05", "i801_smbus", 9)
    host.disk("sda", "8:0", sata / "ata1/host0/target0:0:0/0:0:0:0/block", {"sda1": "8:1", "sda2": "8:2"})
    host.stacked("dm-0", "254:0", "sda2", title="vg-root")
    host.stacked("dm-1", "254:1", "sda2", title="vg-swap")
    host.mount("254:0", "/", "/dev/mapper/vg-root")
    host.mount("8:1", "/boot", "/dev/sda1")
    host.swap("/dev/dm-1")
    return host


def server(top: Path) -> PciHost:
    """Two ports of one NIC in one group, the first with the default route; NVMe behind VMD; a console; a PF.

    05:00.0 and .1 are the NIC; 10000:01:00.0 is the NVMe with /srv on LVM; 06:00.0 is the BMC's VGA; 07:00.0 has
    SR-IOV with eight functions that are not contiguous.
    """
    host = PciHost(top)
    first = host.device("0000:05:00.0", "8086:1521", "0200", "igb", 20)
    second = host.device("0000:05:00.1", "8086:1521", "0200", "igb", 20)
    host.nic("eno1", first, "192.0.2.10")
    host.nic("eno2", second)
    host.default_route("eno1")
    vmd = host.device("0000:00:0e.0", "8086:467f", "0104", "vmd", 21)
    port = host.device("10000:00:06.0", "8086:a74d", "0604", "pcieport", behind=vmd / "pci10000:00")
    nvme = host.device("10000:01:00.0", "144d:a80a", "0108", "nvme", behind=port)
    host.disk("nvme0n1", "259:0", nvme / "nvme/nvme0", {"nvme0n1p1": "259:1"})
    host.stacked("dm-0", "254:0", "nvme0n1p1", title="vg-srv")
    host.mount("254:0", "/srv", "/dev/mapper/vg-srv")
    host.device("0000:06:00.0", "1a03:2000", "0300", "ast", 22, boot_vga=1)
    host.device("0000:07:00.0", "8086:1572", "0200", "i40e", 23, sriov_totalvfs=8, sriov_numvfs=0, numa_node=1)
    return host


FUNCTIONS = ("0000:07:02.0", "0000:07:02.1", "0000:07:10.0", "0000:07:10.4", "0000:08:00.0")


def server_kernel(host: PciHost) -> PlayedKernel:
    """The kernel of `server`."""
    kernel = PlayedKernel(host)
    kernel.functions["0000:07:00.0"] = FUNCTIONS
    return kernel


def virtual(top: Path) -> PciHost:
    """A guest itself, without an IOMMU: everything is virtio."""
    host = PciHost(top)
    disk = host.device("0000:00:02.0", "1af4:1042", "0180", "virtio-pci")
    nic = host.device("0000:00:03.0", "1af4:1041", "0200", "virtio-pci")
    host.disk("vda", "254:0", disk / "virtio1/block")
    host.nic("eth0", nic / "virtio2", "192.0.2.2")
    host.mount("254:0", "/", "/dev/vda")
    cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu hypervisor svm\n"
    fill(host.root / "proc", cpuinfo=cpuinfo)
    return host
