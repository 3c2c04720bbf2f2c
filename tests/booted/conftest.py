"""What several tests of booted guests begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl
from tests.hosts import PrivateHost, private_host
from tests.shorthost import Lab, booted
from tests.support import Boot, Console, Guest


@pytest.fixture
def boot(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
    tmp_path: Path,
) -> Boot:
    """Applies a guest with these keys and waits until Linux in it answers."""

    def start(keys: str, machine: str = "q35") -> tuple[Guest, Console]:
        name = make_name()
        file = tmp_path / f"{name}.yaml"
        kernel = f"kernel: {micro.kernel}, initrd: {micro.initrd}, cmdline: console=ttyS0 quiet, machine: {machine}"
        file.write_text(
            f"guests:\n  - name: {name}\n    accelerator: {accelerator}\n    boot: {{{kernel}}}\n    {keys}\n"
        )
        kvmctl("apply", "-f", file)
        guest = Guest(hypervisor, name)
        line = console(guest)
        line.ready()
        return guest, line

    return start


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    """A daemon of its own: a tick acts on all guests of one, and these are to be short of memory alone."""
    with private_host() as found:
        yield found


@pytest.fixture
def lab(
    host: PrivateHost, kvmctl: Kvmctl, micro: MicroGuest, console: Callable[[Guest], Console], tmp_path: Path
) -> Iterator[Lab]:
    """A booted guest, alone on that host."""
    with booted(host, kvmctl, micro, console, tmp_path / "host.yaml") as found:
        yield found
