"""What the tests of this tier share: two hosts, and a guest on one of them that counts."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import libvirt
import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.xml import metadata
from kvmctl.xml.metadata import NAMESPACE, Metadata
from tests.bench import firmware
from tests.conftest import cannot
from tests.nshost import missing
from tests.pair import Pair, PairHost, make_image, pair
from tests.support import PREFIX, Console, Guest, until

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def hosts() -> Iterator[Pair]:
    """Two hosts, for all tests of the tier: a test leaves them as they were."""
    if absent := missing("qemu-img"):
        cannot(f"it needs {', '.join(absent)}")
    if os.geteuid() != 0:
        cannot("namespaces need root")
    with pair() as made:
        yield made


@dataclass(frozen=True)
class Traveller:
    """A guest that has been booted on the first host, and counts ten times a second."""

    hosts: Pair
    name: str

    def at(self, host: PairHost) -> Any | None:
        """libvirt's handle of it on one host."""
        return host.domain(self.name)

    def places(self) -> list[PairHost]:
        """The hosts on which it runs."""
        return [host for host in (self.hosts.a, self.hosts.b) if (domain := self.at(host)) and domain.isActive()]

    def defined(self) -> list[PairHost]:
        """The hosts that have its definition."""
        return [host for host in (self.hosts.a, self.hosts.b) if (domain := self.at(host)) and domain.isPersistent()]

    def count(self) -> tuple[int, float]:
        """What it has counted to, and for how many seconds it has been up, by itself."""
        (host,) = self.places()
        with host.open() as hypervisor, Console(Guest(hypervisor, self.name)) as console:
            console.ready(30)
            number, uptime = console.run("cat /run/count.1 /proc/uptime").split()[:2]
        return int(number), float(uptime)

    def run(self, command: str) -> str:
        """Run a shell command in it."""
        (host,) = self.places()
        with host.open() as hypervisor, Console(Guest(hypervisor, self.name)) as console:
            console.ready(30)
            return console.run(command)

    def is_only(self, host: PairHost) -> bool:
        """Whether it runs on this host, and there is nothing of it on the other."""
        other = self.hosts.b if host is self.hosts.a else self.hosts.a
        domain = self.at(host)
        return bool(domain and domain.isActive() and domain.isPersistent()) and self.at(other) is None

    def _kill(self, host: PairHost) -> None:
        # libvirt asks QEMU first, and looks only after seconds whether that has ended.
        os.kill(int((host.folder / f"run/libvirt/qemu/{self.name}.pid").read_text()), signal.SIGKILL)
        until(host.running, lambda names: self.name not in names, 20, "the guests that run")

    def remove(self) -> None:
        """End it wherever it is."""
        for host in (self.hosts.a, self.hosts.b):
            domain = self.at(host)
            if domain is not None:
                if domain.isActive():
                    self._kill(host)
                if self.at(host) is not None:
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)


def path_of_disc(name: str) -> str:
    """That of a guest which has one, of its host's own."""
    return f"/var/lib/libvirt/images/{name}.iso"


def definition(hosts: Pair, micro: MicroGuest, accelerator: str, name: str, disk: str = "", **more: Any) -> str:
    """A guest of 128 MiB with one disk, on shared storage where none is named; one that is `light` has no Linux."""
    disc = ""
    if more.get("disc"):
        source = f"<source file='{path_of_disc(name)}'/><target dev='sda' bus='sata'/>"
        disc = f"<disk type='file' device='cdrom'>{source}<readonly/></disk>"
    path, light = disk or f"{hosts.shared}/{name}.qcow2", more.get("light")
    cmdline = "console=ttyS0 quiet micro.spin=1 micro.nap=5:95"
    linux = f"<kernel>{micro.kernel}</kernel><initrd>{micro.initrd}</initrd><cmdline>{cmdline}</cmdline>"
    driver = f"name='qemu' type='{'raw' if light else 'qcow2'}' cache='{more.get('cache', 'none')}'"
    return (
        f"<domain type='{'kvm' if accelerator == 'kvm' else 'qemu'}'><name>{name}</name>"
        f"<metadata><kvmctl:guest xmlns:kvmctl='{NAMESPACE}' project='travel'>"
        f"<kvmctl:cpu reservation='{more.get('reservation', 0.1)}'/>"
        "<kvmctl:label key='tier'>front</kvmctl:label></kvmctl:guest></metadata>"
        f"<memory unit='MiB'>{more.get('memory', 128)}</memory><vcpu>1</vcpu><cputune><shares>1500</shares></cputune>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{'' if light else linux}</os>"
        f"<features><acpi/></features><devices><disk type='file' device='disk'><driver {driver}/>"
        f"<source file='{path}'/><target dev='vda' bus='virtio'/></disk>{disc}"
        "<serial type='pty'/><memballoon model='virtio'/></devices></domain>"
    )


Make = Callable[..., Traveller]


@contextmanager
def _making(hosts: Pair, micro: MicroGuest, accelerator: str) -> Iterator[Make]:
    """Guests on the first host, gone after the block with their images: booted, or `light` ones that run without a
    Linux, or off; their disk is shared, or of the host's own."""
    made: list[Traveller] = []

    def make(boot: bool = True, local: bool = False, light: bool = False, **more: Any) -> Traveller:
        name = f"{PREFIX}travel-{os.getpid()}-{next(_numbers)}"
        disk = f"/var/lib/libvirt/images/{name}.qcow2" if local else ""
        folder = hosts.a.images if local else hosts.shared
        if light:
            image = firmware.image(1, (60, 500))
            (folder / f"{name}.qcow2").write_bytes(image + os.urandom(max(0, more.get("filled", 0) - len(image))))
        else:
            make_image(folder / f"{name}.qcow2", 32 << 20)
        if more.get("disc"):
            (hosts.a.images / f"{name}.iso").write_bytes(os.urandom(1 << 20))
        traveller = Traveller(hosts, name)
        made.append(traveller)
        with hosts.a.open() as hypervisor:
            domain = hypervisor.connection.defineXML(
                definition(hosts, micro, accelerator, name, disk, light=light, **more)
            )
            domain.setAutostart(1)
            if boot:
                domain.create()
            if boot and light:
                # Firmware changes memory faster than a slow link sends it, until it has loaded the boot sector.
                until(lambda: domain.blockStats("vda")[0], lambda reads: reads > 0, 60, "the reads of its disk")
            elif boot:
                traveller.count()
        return traveller

    yield make
    for traveller in made:
        traveller.remove()
        for folder in (hosts.shared, hosts.a.images, hosts.b.images):
            for image in folder.glob(f"{traveller.name}*"):
                image.unlink()


def wait_for_job(traveller: Traveller, host: PairHost, sent: int = 1 << 20, timeout: float = 30) -> None:
    """Until the guest's memory is on its way."""
    domain = traveller.at(host)
    assert domain is not None

    def stats() -> int:
        try:
            stats = domain.jobStats(0)
            return int(stats.get("memory_processed", 0)) + int(stats.get("disk_processed", 0))
        except libvirt.libvirtError:
            return 0

    until(stats, lambda found: found > sent, timeout, "what was sent")


def weight(traveller: Traveller, host: PairHost) -> int:
    """The guest's CPU weight, as the kernel has it."""
    domain = traveller.at(host)
    assert domain is not None
    return int(domain.schedulerParameters()["cpu_shares"])


@pytest.fixture
def make_traveller(hosts: Pair, micro: MicroGuest, accelerator: str) -> Iterator[Make]:
    """Guests of one test."""
    with _making(hosts, micro, accelerator) as make:
        yield make


@pytest.fixture(scope="session")
def _booted(hosts: Pair, micro: MicroGuest, accelerator: str) -> Iterator[tuple[Make, list[Traveller]]]:
    with _making(hosts, micro, accelerator) as make:
        yield make, []


@pytest.fixture
def traveller(hosts: Pair, _booted: tuple[Make, list[Traveller]]) -> Traveller:
    """A booted guest on the first host, which many tests share: it takes longer to boot than to move."""
    make, made = _booted
    if made and made[0].is_only(hosts.b):
        domain = made[0].at(hosts.b)
        assert domain is not None
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_UNSAFE
        flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        domain.migrateToURI3(hosts.a.tcp, {}, flags)
    if not made or not made[0].is_only(hosts.a):
        made[:] = [make()]
    domain = made[0].at(hosts.a)
    assert domain is not None
    domain.setAutostart(1)
    return made[0]


def set_weight(traveller: Traveller, host: PairHost, value: int) -> None:
    """Give the running guest a weight that is not its due."""
    domain = traveller.at(host)
    assert domain is not None
    domain.setSchedulerParametersFlags({"cpu_shares": value}, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def promised(traveller: Traveller, host: PairHost) -> Metadata:
    """What kvmctl has stored of it in its definition."""
    domain = traveller.at(host)
    assert domain is not None
    found = metadata.read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    assert found.cpu_reservation, "it is not there at all"
    return found


SLOW = ("--bandwidth", "8MiB/s", "--force")
"""A move of about ten seconds, which is not to end by itself before it is cut off."""


class Moving:
    """`kvmctl migrate`, while it runs."""

    def __init__(self, hosts: Pair, traveller: Traveller, *options: str) -> None:
        self.hosts = hosts
        self.traveller = traveller
        set_weight(traveller, hosts.a, 77)
        command = [sys.executable, "-m", "kvmctl", "migrate", traveller.name, hosts.b.tcp, *SLOW, *options]
        self.log = hosts.a.folder / "moving.log"
        self.log.unlink(missing_ok=True)
        self.process = hosts.a.spawn(command, hosts.a.own(), log=self.log.name)
        wait_for_job(traveller, hosts.a)

    def ended(self, timeout: float = 60) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    @property
    def said(self) -> str:
        """What it said."""
        return self.log.read_text()


Begin = Callable[..., Moving]


@pytest.fixture
def moving(hosts: Pair) -> Iterator[Begin]:
    """Moves that have begun; what is left of their processes ends with the test."""
    begun: list[Moving] = []

    def begin(traveller: Traveller, *options: str) -> Moving:
        begun.append(Moving(hosts, traveller, *options))
        return begun[-1]

    yield begin
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
