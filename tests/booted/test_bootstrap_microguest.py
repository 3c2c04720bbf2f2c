from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.bootstrap import microguest
from kvmctl.host import accelerator as accelerators
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

SECONDS = 60.0


def test_linux_reaches_user_space_in_the_micro_guest() -> None:
    guest = microguest.ensure()
    tried = accelerators.boot("tcg", guest.kernel, guest.initrd, microguest.READY, SECONDS)
    assert tried.seconds is not None, f"not up after {SECONDS} s; the last it said: {tried.last}"


def test_a_kernel_alone_proves_that_linux_boots() -> None:
    guest = microguest.ensure()
    tried = accelerators.boot("tcg", guest.kernel, None, accelerators.NO_ROOT, SECONDS)
    assert tried.seconds is not None, f"no proof after {SECONDS} s; the last it said: {tried.last}"


def test_what_is_no_kernel_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel" * 4096)
    tried = accelerators.boot("tcg", tmp_path / "kernel", None, accelerators.NO_ROOT, 5.0)
    assert tried.seconds is None


def test_the_verdict_rests_on_a_boot() -> None:
    guest = microguest.ensure()
    verdict = accelerators.probe(guest.kernel, guest.initrd, 5.0, microguest.READY)
    assert verdict.proved or not accelerators.KVM_DEVICE.exists(), verdict.reason


def test_a_micro_guest_that_naps_is_busy_and_idle_in_turn(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: microguest.MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
    tmp_path: Path,
) -> None:
    name = make_name("nap")
    file = tmp_path / "guest.yaml"
    file.write_text(
        f"guests:\n  - name: {name}\n    accelerator: {accelerator}\n    cpu: {{count: 2}}\n"
        f"    memory: {{size: 256MiB}}\n    boot: {{kernel: {micro.kernel}, initrd: {micro.initrd},\n"
        "           cmdline: console=ttyS0 quiet micro.spin=2 micro.nap=300:200}\n"
    )
    kvmctl("apply", "-f", file)
    line = console(Guest(hypervisor, name))
    line.ready()

    def counted() -> tuple[int, ...]:
        """Loops done by each of the two, and hundredths of a second that both CPUs were idle."""
        said = line.run("cat /run/count.1 /run/count.2; head -n 1 /proc/stat").split()
        return int(said[0]), int(said[1]), int(said[2:][4])

    first = counted()
    until(counted, lambda last: all(b >= a + 10 for a, b in zip(first, last, strict=True)), 60, "loops and idle time")
