"""Two hosts in namespaces with a cable between them, for guests to move from one to the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt

from tests.libvirtd import new_folder
from tests.nshost import NamespaceHost
from tests.support import PREFIX

NAME = f"{PREFIX}pair-"
_LIBVIRTD = """
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
host_uuid = "{uuid}"
keepalive_interval = 1
keepalive_count = 3
"""
_QEMU = """
migration_address = "{address}"
migration_host = "{address}"
keepalive_interval = 1
keepalive_count = 3
migrate_tls_x509_cert_dir = "/etc/libvirt/pki"
"""
"""A cut cable is found after 4 s instead of 30."""


class PairHost(NamespaceHost):
    """One of the two."""

    arguments = ("--listen",)

    def __init__(self, folder: Path, letter: str, address: str) -> None:
        settings = {"address": address, "uuid": str(uuid4())}
        hostname = f"{PREFIX}{letter}"
        super().__init__(folder, hostname, _LIBVIRTD.format_map(settings), _QEMU.format_map(settings))
        self.address = address
        self.tcp = f"qemu+tcp://{address}/system"
        """Its URI, as the other host has to write it."""
        self.cable = False
        """Whether one is plugged in."""
        self.certificates = folder / "etc/pki"
        """What its QEMU encrypts moves with; there are none."""
        self.certificates.mkdir(mode=0o755)

    def plug(self, other: PairHost) -> None:
        """A cable from this one to the other, between devices `eth0`."""
        command = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid)]
        done = self.run(command)
        assert done.returncode == 0, done.stderr
        for host in (self, other):
            host.run(["ip", "address", "add", f"{host.address}/24", "dev", "eth0"])
            host.link("up")

    def link(self, state: str) -> None:
        """Make this end of the cable `up` or `down`."""
        done = self.run(["ip", "link", "set", "eth0", state])
        assert done.returncode == 0, done.stderr

    def start_daemon(self) -> None:
        """As every host's, once it has the address to listen on."""
        if self.cable:
            super().start_daemon()

    def domain(self, name: str) -> Any | None:
        """libvirt's handle of a guest, on a connection of its own; None where there is no such guest."""
        connection = libvirt.open(self.uri)
        with suppress(libvirt.libvirtError):
            return connection.lookupByName(name)
        return None

    def kvmctl(self, *words: object, code: int | None = 0, env: dict[str, str] | None = None) -> Any:
        """Run the command line in this host; fails unless it ends with the expected code."""
        done = self.run([sys.executable, "-m", "kvmctl", *map(str, words)], self.own(env), timeout=120)
        assert "Traceback" not in done.stderr or "--debug" in words, done.stderr
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def own(self, env: dict[str, str] | None = None) -> dict[str, str]:
        """An environment in which kvmctl keeps its state and its policy to this host."""
        state = self.folder / "state"
        own = {"KVMCTL_STATE_DIR": str(state), "KVMCTL_HOST_FILE": str(state / "host.yaml")}
        return own | {"KVMCTL_HOSTS_FILE": str(state / "hosts.yaml")} | (env or {})


@dataclass(frozen=True)
class Pair:
    """Both, and a folder that both see under the same name."""

    a: PairHost
    b: PairHost
    shared: Path


@contextmanager
def pair() -> Iterator[Pair]:
    """Two started hosts, gone after the block. What killed runs have left goes first."""
    hosts: list[PairHost] = []
    shared = new_folder(f"{PREFIX}shared-", shutil.rmtree)
    try:
        for letter, address in (("a", "10.99.0.1"), ("b", "10.99.0.2")):
            hosts.append(PairHost(new_folder(NAME, PairHost.remove), letter, address))
            hosts[-1].start()
        hosts[0].plug(hosts[1])
        for host in hosts:
            host.cable = True
            host.start_daemon()
            host.make_pool("default", "/var/lib/libvirt/images")
            host.make_pool("shared", str(shared))
        yield Pair(hosts[0], hosts[1], shared)
    finally:
        for host in hosts:
            host.close()
        shutil.rmtree(shared)


def make_image(path: Path, size: int, form: str = "qcow2") -> None:
    """An image of so many bytes that nothing has been written to."""
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(path), str(size)], check=True)
    path.chmod(0o644)
