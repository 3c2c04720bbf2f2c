"""`vagrant up` as its README tells, one machine and two: everything under names of its own, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.support import PREFIX

pytestmark = pytest.mark.vagrant

FOLDER = Path(__file__).parents[2] / "vagrant"
UP_SECONDS, SSH_SECONDS, DESTROY_SECONDS = 420, 180, 120


class Vagrant:
    """Vagrant with a home of its own, and machines whose names are a test's."""

    def __init__(self, home: Path, pool: str, hosts: int) -> None:
        self.environment = os.environ | {
            "VAGRANT_HOME": str(home),
            "VAGRANT_DOTFILE_PATH": str(home / "dotfile"),
            "KVMCTL_HOSTS": str(hosts),
            "KVMCTL_POOL": pool,
            "KVMCTL_PREFIX": f"{PREFIX}vagrant-{os.getpid()}-",
        }

    def run(self, *words: str, seconds: int) -> str:
        """What a command of Vagrant says, which must not fail. How long it took is seen with `-s`."""
        begun = time.monotonic()
        done = subprocess.run(
            ["vagrant", *words],
            cwd=FOLDER,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        print(f"\nvagrant {' '.join(words)}: {time.monotonic() - begun:.0f} s")
        assert done.returncode == 0, f"vagrant {' '.join(words)} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    def ssh(self, host: str, command: str) -> str:
        return self.run("ssh", host, "-c", command, seconds=SSH_SECONDS)


@pytest.fixture
def vagrant(request: pytest.FixtureRequest, pool: tuple[str, Path]) -> Iterator[Vagrant]:
    if not shutil.which("vagrant"):
        cannot("vagrant is not installed")
    built = subprocess.run([sys.executable, "build.py"], cwd=FOLDER, capture_output=True, text=True, check=False)
    if built.returncode:
        cannot(built.stderr)
    # Not below a folder of root alone: QEMU reads the box there.
    home = Path(tempfile.mkdtemp(prefix="kvmctl-vagrant-", dir="/var/lib"))
    home.chmod(0o755)
    found = Vagrant(home, pool[0], getattr(request, "param", 1))
    try:
        yield found
    finally:
        found.run("destroy", "-f", seconds=DESTROY_SECONDS)
        shutil.rmtree(home)


def domains() -> str:
    return subprocess.check_output(["virsh", "-q", "list", "--all", "--name"], text=True)


def test_a_host_comes_up_shows_its_devices_and_is_destroyed(vagrant: Vagrant) -> None:
    vagrant.run("up", seconds=UP_SECONDS)
    said = vagrant.ssh("host1", "sudo kvmctl pci list")
    assert "82574L" in said
    assert "0 of 4 VFs" in said
    assert "KVM" in vagrant.ssh("host1", "sudo kvmctl host show")
    vagrant.run("destroy", "-f", seconds=DESTROY_SECONDS)
    assert vagrant.environment["KVMCTL_PREFIX"] not in domains()


@pytest.mark.parametrize("vagrant", [2], indirect=True)
def test_one_variable_makes_two_hosts_that_reach_each_other(vagrant: Vagrant) -> None:
    status = vagrant.run("status", seconds=SSH_SECONDS)
    assert status.count("not created") == 2
    vagrant.run("up", seconds=2 * UP_SECONDS)
    for host, other in (("host1", "192.168.57.12"), ("host2", "192.168.57.11")):
        assert host in vagrant.ssh(host, "hostname; sudo virsh -q version >/dev/null")
        # The box has no ping.
        assert "SSH-2.0" in vagrant.ssh(host, f"timeout 20 head -c 7 <>/dev/tcp/{other}/22")
