"""The guests whose XML is kept in `rendered/`, and the platforms that it is made for."""

from dataclasses import replace

from kvmctl.model.platform import Platform
from kvmctl.model.spec import (
    BootSpec,
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestSpec,
    MemorySpec,
    NicSpec,
    PassedSpec,
    VncSpec,
)
from kvmctl.model.units import GIB, MIB

TCG = Platform(
    arch="x86_64",
    virt_type="qemu",
    emulator="/usr/bin/qemu-system-x86_64",
    machines=(
        ("pc-i440fx-7.2", "pc-i440fx-7.2"), ("pc", "pc-i440fx-7.2"),
        ("pc-q35-7.2", "pc-q35-7.2"), ("q35", "pc-q35-7.2"),
    ),
    cpu_modes=("host-model", "maximum"),
    cpu_models=("qemu64", "EPYC-Rome"),
    firmwares=("bios", "uefi"),
    graphics=("vnc",),
    rng=True,
    vcpus_max=288,
)  # fmt: skip
KVM = replace(TCG, virt_type="kvm", cpu_modes=("host-passthrough", "host-model", "maximum"))
TEST = Platform(arch="i686", virt_type="test", emulator="/usr/bin/test-hv")
"""libvirt's test driver, which tells next to nothing."""

IMAGES = "/var/lib/libvirt/images"
SPECS: dict[str, GuestSpec] = {
    spec.name: spec
    for spec in (
        GuestSpec("least"),
        GuestSpec("least-kvm", accelerator="kvm"),
        GuestSpec(
            "promises",
            cpu=CpuSpec(count=2, max=4, shares=2000, limit=1.5, reservation=0.5, pin="0-1", emulator_pin="0"),
            memory=MemorySpec(size=512 * MIB, max=GIB, reservation=256 * MIB, shares="high", sharing=False, swap=False),
            project="shop",
            labels=(("env", "prod"), ("role", "web & <db>")),
            rebalance=False,
            description="</description><devices/>\n  'second' \"line\" & last",
        ),
        GuestSpec("plugged", cpu=CpuSpec(count=2, max=4), accelerator="kvm"),
        GuestSpec("shares-beyond", cpu=CpuSpec(shares=300_000), memory=MemorySpec(shares=1)),
        GuestSpec(
            "kernel",
            boot=BootSpec(kernel="/boot/vmlinuz", initrd="/boot/initrd.img", cmdline='console=ttyS0 panic=-1 a="b\'c"'),
            console=ConsoleSpec(log="/var/log/libvirt/qemu/kernel-console.log"),
            agent=False,
            rng=False,
        ),
        GuestSpec(
            "installed-from-iso",
            boot=BootSpec(iso=f"{IMAGES}/debian.iso", firmware="uefi"),
            disks=(DiskSpec(path=f"{IMAGES}/root.qcow2"), DiskSpec(path="/dev/vg0/data", bus="scsi", cache="none")),
            nics=(NicSpec(network="default"),),
            vnc=VncSpec(listen="::1", port=5907),
        ),
        GuestSpec(
            "cloud",
            disks=(DiskSpec(path=f"{IMAGES}/cloud.qcow2"),),
            nics=(NicSpec(network="default", mac="52:54:00:12:34:56"),),
            cloud_init=CloudInitSpec(
                hostname="cloud1",
                user="ops",
                ssh_keys=("/root/.ssh/id_ed25519.pub",),
                seed=f"{IMAGES}/seed.iso",
                digest="1f2e",
            ),
        ),
        GuestSpec(
            "modes",
            cpu=CpuSpec(count=2, max=4),
            disks=(
                DiskSpec(path=f"{IMAGES}/a.qcow2", mode="emulated"),
                DiskSpec(path=f"{IMAGES}/b.qcow2", mode="paravirtual"),
                DiskSpec(path=f"{IMAGES}/c.qcow2", mode="paravirtual", iothread=False),
                DiskSpec(path=f"{IMAGES}/d.iso", device="cdrom", mode="paravirtual"),
            ),
            nics=(
                NicSpec(network="default", mode="emulated"),
                NicSpec(network="default", mode="paravirtual"),
                NicSpec(network="default", queues=2),
            ),
        ),
        GuestSpec(
            "passed",
            nics=(NicSpec(network="default"),),
            passthrough=(
                PassedSpec(pci="0000:03:00.0"),
                PassedSpec(mdev="4b20d080-1b54-4048-85b3-a6a62d165c01"),
                PassedSpec(pci="0000:07:10.1", vf_of="0000:07:00.0", mac="52:54:00:00:07:01", vlan=12, trust=True),
                PassedSpec(pci="0000:07:10.3", vf_of="0000:07:00.0", mac="52:54:00:00:07:02", spoof_check=False),
                PassedSpec(pci="0000:08:00.1", vf_of="0000:08:00.0"),
            ),
        ),
        GuestSpec(
            "old-modes",
            boot=BootSpec(machine="pc"),
            disks=(DiskSpec(path=f"{IMAGES}/a.qcow2", mode="emulated"),),
            nics=(NicSpec(user=True, mode="emulated"),),
        ),
        GuestSpec(
            "ceilings",
            disks=(
                DiskSpec(path=f"{IMAGES}/a.qcow2", iops=500, iops_burst=1000, burst_seconds=10, bandwidth=50 * MIB),
                DiskSpec(path=f"{IMAGES}/b.qcow2", read_iops=300, write_bandwidth=1_000_001, burst_seconds=1),
                DiskSpec(path=f"{IMAGES}/c.qcow2", bus="sata", iops=0),
            ),
            nics=(
                NicSpec(
                    network="default",
                    bandwidth_in=12_500_000,
                    bandwidth_in_peak=25_000_000,
                    bandwidth_in_burst=MIB,
                    bandwidth_out=1_000_000,
                    bandwidth_out_burst=64 * 1024,
                ),
                NicSpec(network="default", bandwidth_out=125_000),
            ),
        ),
        GuestSpec(
            "old-pc",
            cpu=CpuSpec(model="qemu64", shares="low"),
            boot=BootSpec(machine="pc", iso=f"{IMAGES}/tools.iso", order=("disk", "cdrom", "network")),
            disks=(
                DiskSpec(path=f"{IMAGES}/hd.raw", bus="ide", format="raw"),
                DiskSpec(path=f"{IMAGES}/sata.raw", bus="sata", cache="unsafe"),
            ),
            nics=(NicSpec(user=True, model="rtl8139"), NicSpec(bridge="br0", model="e1000e")),
            console=ConsoleSpec(enabled=False),
            vnc=VncSpec(),
        ),
        GuestSpec(
            "drives",
            memory=MemorySpec(hugepages=2 * MIB),
            disks=(
                DiskSpec(volume="data.qcow2", pool="fast"),
                DiskSpec(path=f"{IMAGES}/a<b>&'c'\".raw", read_only=True, target="vdc"),
                DiskSpec(path=f"{IMAGES}/scsi.qcow2", bus="scsi", cache="directsync"),
                DiskSpec(device="cdrom"),
                DiskSpec(path=f"{IMAGES}/more.iso", device="cdrom", bus="scsi"),
            ),
        ),
    )
}


def platform_of(spec: GuestSpec) -> Platform:
    """What the golden of `spec` is made for."""
    return KVM if spec.accelerator == "kvm" else TCG


def stored(spec: GuestSpec) -> GuestSpec:
    """What of a filled spec a definition holds: not how a volume is made, not what libvirt keeps elsewhere."""
    disks = tuple(
        replace(disk, size=None, base=None)
        if disk.path is None
        else replace(disk, size=None, base=None, volume=None, pool=None)
        for disk in spec.disks or ()
    )
    return replace(spec, disks=disks, autostart=None, state=None)
