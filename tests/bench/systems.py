"""What runs in the guests of the CPU bench: Linux, or where that does not boot under KVM, nothing but a loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from kvmctl.bootstrap import microguest
from kvmctl.host import accelerator
from kvmctl.hypervisor.connection import Hypervisor
from tests.bench import firmware
from tests.bench.measure import vcpu_threads, wanted
from tests.bench.scenarios import BenchGuest
from tests.support import Console, Guest, until

BOOT = 10
"""Seconds of uptime at which Linux guests begin to work: until then they do not slow down each other's start."""


class System(Protocol):
    """What runs in the guests."""

    @property
    def accelerator(self) -> str:
        """What the guests run under."""

    def keys(self, guest: BenchGuest, folder: Path) -> dict[str, Any]:
        """What a guest file says of such a guest, apart from name and CPU; files it needs are put into the folder."""

    def wait(self, hypervisor: Hypervisor, guest: BenchGuest) -> None:
        """Wait until the guest is at work."""


class Linux:
    """The micro guest, under whatever boots it here."""

    def __init__(self) -> None:
        self._micro = microguest.ensure()
        self.accelerator: str = accelerator.resolve(self._micro.kernel).name

    def keys(self, guest: BenchGuest, folder: Path) -> dict[str, Any]:
        """A kernel with parameters."""
        nap = f" micro.nap={guest.nap[0]}:{guest.nap[1]}" if guest.nap else ""
        cmdline = f"console=ttyS0 quiet micro.spin={guest.vcpus} micro.after={BOOT}{nap}"
        boot = {"kernel": str(self._micro.kernel), "initrd": str(self._micro.initrd), "cmdline": cmdline}
        return {"accelerator": self.accelerator, "memory": {"size": "256MiB"}, "boot": boot}

    def wait(self, hypervisor: Hypervisor, guest: BenchGuest) -> None:
        """Until all its loops count."""
        with Console(Guest(hypervisor, guest.name)) as line:
            line.ready()
            until(lambda: line.run("ls /run").count("count."), lambda found: found == guest.vcpus, 120, "its loops")


class Firmware:
    """A boot sector, under KVM."""

    accelerator = "kvm"

    def keys(self, guest: BenchGuest, folder: Path) -> dict[str, Any]:
        """A disk that holds it."""
        folder.chmod(0o711)
        disk = folder / f"{guest.name}.img"
        disk.write_bytes(firmware.image(guest.vcpus, guest.nap))
        disks = [{"path": str(disk), "bus": "virtio", "format": "raw"}]
        return {"accelerator": "kvm", "memory": {"size": "64MiB"}, "disks": disks}

    def wait(self, hypervisor: Hypervisor, guest: BenchGuest) -> None:
        """Until its vCPUs want the CPU for as long as they are to."""
        threads, least = vcpu_threads(Guest(hypervisor, guest.name).pid), 0.9 * guest.vcpus * guest.duty

        def wants() -> float:
            before, begun = wanted(threads), time.monotonic_ns()
            time.sleep(2)
            return (wanted(threads) - before) / (time.monotonic_ns() - begun)

        until(wants, lambda found: found >= least, 120, f"the CPU that {guest.name} wants")


SYSTEMS: dict[str, type[Linux | Firmware]] = {"linux": Linux, "firmware": Firmware}
