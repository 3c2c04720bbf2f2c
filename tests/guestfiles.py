"""A guest file that says everything, what it means, and reading such files in tests."""

from kvmctl.model.fields import Context
from kvmctl.model.guestfile import load
from kvmctl.model.spec import (
    BootSpec,
    CloudInitSpec,
    ConsoleSpec,
    CpuSpec,
    DiskSpec,
    GuestFile,
    GuestSpec,
    MemorySpec,
    NicSpec,
    VncSpec,
)
from kvmctl.model.units import GIB, MIB

HOST = Context(base_mhz=2000.0)

FULL = """\
project: shop
defaults:
  cpu: {shares: normal, model: host-passthrough}
  memory: {sharing: true}
  console: {log: /var/log/guest.log}
guests:
  - name: web1
    description: |
      The first,
        and the best.
    labels: {role: web, env: prod}
    cpu: {count: 2, max: 4, shares: 2000, limit: 150%, reservation: 1000MHz, pin: [0-1, 3],
          emulator-pin: 0-1}
    memory: {size: 1GiB, max: 2GiB, reservation: 512MiB, shares: high, swap: no, hugepages: off}
    accelerator: auto
    boot: {kernel: /boot/vmlinuz, initrd: /boot/initrd, cmdline: "console=ttyS0", order: [disk, network],
           firmware: bios, machine: q35}
    disks:
      - {volume: web1.qcow2, pool: fast, size: 10GiB, format: qcow2, base: debian12.qcow2, bus: virtio, cache: none}
      - {path: /dev/vg0/data, bus: scsi, target: sdb, read-only: yes}
      - {device: cdrom, bus: sata}
    nics:
      - {network: default, model: virtio, mac: "52:54:00:AB:CD:EF"}
      - {bridge: br0}
      - {user: true}
    cloud-init:
      hostname: web1
      user: admin
      ssh-keys: [/root/.ssh/id_ed25519.pub, ssh-ed25519 AAAAC3Nz someone]
      network-config: /etc/kvmctl/net.yaml
    console: true
    vnc: {listen: 0.0.0.0, port: 5901}
    agent: true
    rng: on
    autostart: yes
    rebalance: no
    state: paused
  - name: web2
    console: false
    vnc: false
"""

WEB1 = GuestSpec(
    name="web1",
    description="The first,\n  and the best.\n",
    labels=(("env", "prod"), ("role", "web")),
    cpu=CpuSpec(
        count=2,
        max=4,
        shares=2000,
        limit=1.5,
        reservation=0.5,
        pin="0-1,3",
        emulator_pin="0-1",
        model="host-passthrough",
    ),
    memory=MemorySpec(GIB, 2 * GIB, 512 * MIB, "high", sharing=True, swap=False, hugepages=0),
    accelerator="auto",
    boot=BootSpec(
        "/boot/vmlinuz", "/boot/initrd", "console=ttyS0", order=("disk", "network"), firmware="bios", machine="q35"
    ),
    disks=(
        DiskSpec(None, "web1.qcow2", "fast", 10 * GIB, "qcow2", "debian12.qcow2", "virtio", cache="none"),
        DiskSpec(path="/dev/vg0/data", bus="scsi", target="sdb", read_only=True),
        DiskSpec(device="cdrom", bus="sata"),
    ),
    nics=(
        NicSpec(network="default", model="virtio", mac="52:54:00:ab:cd:ef"),
        NicSpec(bridge="br0"),
        NicSpec(user=True),
    ),
    cloud_init=CloudInitSpec(
        hostname="web1",
        user="admin",
        ssh_keys=("/root/.ssh/id_ed25519.pub", "ssh-ed25519 AAAAC3Nz someone"),
        network_config="/etc/kvmctl/net.yaml",
    ),
    console=ConsoleSpec(enabled=True, log="/var/log/guest.log"),
    vnc=VncSpec(enabled=True, listen="0.0.0.0", port=5901),
    agent=True,
    rng=True,
    autostart=True,
    rebalance=False,
    state="paused",
    project="shop",
)


def read(*texts: str | bytes) -> GuestFile:
    sources = [(f"{'abc'[i]}.yaml", text.encode() if isinstance(text, str) else text) for i, text in enumerate(texts)]
    return load(sources, HOST)


def guest(text: str) -> str:
    return f"guests: [{{name: g, {text}}}]"
