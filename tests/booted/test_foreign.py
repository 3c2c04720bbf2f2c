"""A running Linux guest that kvmctl did not make, and what virsh does to it behind kvmctl's back."""

from __future__ import annotations

from collections.abc import Callable

import libvirt
import pytest

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.hypervisor import domains, live
from kvmctl.hypervisor.connection import Hypervisor
from tests.conftest import Kvmctl
from tests.support import Console, Guest, until

pytestmark = pytest.mark.booted

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
DEFINITION = """
<domain type="{type}">
  <name>{name}</name>
  <memory unit="MiB">256</memory>
  <vcpu>2</vcpu>
  <os>
    <type machine="pc">hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 quiet</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <serial type="pty"/>
    <sound model="ac97"/>
    <rng model="virtio"><rate bytes="1024" period="1000"/><backend model="random">/dev/urandom</backend></rng>
  </devices>
</domain>
"""


def test_it_is_changed_mended_and_rebooted(
    kvmctl: Kvmctl,
    make_name: Callable[..., str],
    hypervisor: Hypervisor,
    micro: MicroGuest,
    accelerator: str,
    console: Callable[[Guest], Console],
) -> None:
    guest = Guest(hypervisor, make_name("fa"))
    kind = {"kvm": "kvm", "tcg": "qemu"}[accelerator]
    text = DEFINITION.format(type=kind, name=guest.name, kernel=micro.kernel, initrd=micro.initrd)
    hypervisor.connection.defineXML(text)
    kvmctl("start", guest.name)
    line = console(guest)
    line.ready()
    spec = kvmctl("spec", guest.name).out
    definition = domains.definition(guest.domain)
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []

    guest.domain.setSchedulerParametersFlags({"global_quota": 30000}, LIVE)
    guest.domain.setMemoryFlags(192 << 10, LIVE)
    until(line.ballooned, lambda size: size == 64 << 20, 60, "the balloon")
    # A balloon is the controller's to move, so what virsh made of it is no difference.
    mended = kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json()
    assert [(one["field"], one["result"]) for one in mended] == [("cpu.limit", "changed")]
    assert live.limit(guest.domain) == float("inf")
    assert kvmctl("-o", "json", "apply", "-f", "-", stdin=spec).json() == []
    assert domains.definition(guest.domain) == definition

    kvmctl("set", guest.name, "memory.size=224MiB")
    until(line.ballooned, lambda size: size == 32 << 20, 60, "the balloon")
    kvmctl("reboot", guest.name, "--force")
    line.ready()
    assert "changed" in kvmctl("stop", guest.name).out
