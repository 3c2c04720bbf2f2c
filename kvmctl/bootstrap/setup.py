"""Everything a checkout needs on this machine before kvmctl or its tests can run."""

import os
from dataclasses import dataclass, replace

from kvmctl.bootstrap import certificates, daemons, defaults, device, environment, microguest, packages, state
from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.bootstrap.progress import say, step
from kvmctl.host import accelerator
from kvmctl.host.accelerator import Verdict
from kvmctl.model.errors import UnreachableError


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found or made."""

    guest: MicroGuest
    accelerator: Verdict
    network: bool
    """Whether libvirt's default network is up."""


def check_root() -> None:
    """Raise UnreachableError unless this is root."""
    if os.geteuid() != 0:
        raise UnreachableError(
            "this has to run as root: it installs Debian packages and uses the system's libvirt",
            "run it again with sudo, or as root",
        )


def prepare(tests: bool = False, vagrant: bool = False) -> Machine:
    """Install what is missing, for the `tests` and `vagrant` too, start libvirt, build the micro guest and find the
    accelerator by booting it. What is there already takes no time. Raises KvmctlError with what is missing."""
    check_root()
    if missing := packages.missing(tests, vagrant):
        state.update(lambda known: replace(known, packages=tuple(dict.fromkeys((*known.packages, *missing)))))
        packages.install(missing)
    environment.ensure()
    device.ensure()
    certificates.ensure()
    daemons.ensure()
    defaults.ensure_pool()
    network = defaults.ensure_network()
    guest = microguest.ensure()
    return Machine(guest, _accelerator(guest), network)


def _accelerator(guest: MicroGuest) -> Verdict:
    verdict = accelerator.remembered()
    if verdict is None:
        with step("Booting the micro guest to see whether KVM works here"):
            verdict = accelerator.probe(guest.kernel, guest.initrd, proof=microguest.READY)
        accelerator.remember(verdict)
    if verdict.name == "kvm":
        say(f"guests run under KVM: {verdict.reason}")
    else:
        say(f"guests are emulated (TCG), about ten times slower than with KVM: {verdict.reason}")
    return verdict
