from pathlib import Path

import pytest

from kvmctl.bootstrap import microguest
from kvmctl.host import accelerator

pytestmark = pytest.mark.booted

SECONDS = 60.0


def test_linux_reaches_user_space_in_the_micro_guest() -> None:
    guest = microguest.ensure()
    tried = accelerator.boot("tcg", guest.kernel, guest.initrd, microguest.READY, SECONDS)
    assert tried.seconds is not None, f"not up after {SECONDS} s; the last it said: {tried.last}"


def test_a_kernel_alone_proves_that_linux_boots() -> None:
    guest = microguest.ensure()
    tried = accelerator.boot("tcg", guest.kernel, None, accelerator.NO_ROOT, SECONDS)
    assert tried.seconds is not None, f"no proof after {SECONDS} s; the last it said: {tried.last}"


def test_what_is_no_kernel_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel" * 4096)
    tried = accelerator.boot("tcg", tmp_path / "kernel", None, accelerator.NO_ROOT, 5.0)
    assert tried.seconds is None


def test_the_verdict_rests_on_a_boot() -> None:
    guest = microguest.ensure()
    verdict = accelerator.probe(guest.kernel, guest.initrd, 5.0, microguest.READY)
    assert verdict.proved or not accelerator.KVM_DEVICE.exists(), verdict.reason
