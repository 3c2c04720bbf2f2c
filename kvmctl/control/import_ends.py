"""How an import ends that fails late, or was killed: the guest may be defined by then, and its files are its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress

from kvmctl.host.journal import Intent
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError
from kvmctl.model.wording import argument
from kvmctl.xml.identity import Identity


class Undo(ExitStack):
    """What is to be undone. `kept` tells that the rest of it must not be now, and stays in the journal."""

    kept = False

    def keep(self) -> None:
        """Undo nothing more."""
        self.pop_all()
        self.kept = True


def undefine(hypervisor: Hypervisor, own: Identity, undo: Undo, warn: Callable[[str], None]) -> None:
    """Take the guest away. Where it cannot be said that it is gone, as when libvirtd is, its files stay."""
    gone = False
    try:
        with suppress(KvmctlError):
            if domains.has_uuid(hypervisor, own.uuid):
                domain = domains.find(hypervisor, own.name)
                with suppress(KvmctlError):
                    domains.power_off(domain)
                domains.undefine(domain)
            gone = not domains.has_uuid(hypervisor, own.uuid)
    finally:
        if not gone:
            undo.keep()
            warn(
                f"guest {own.name} may be defined by now, so its files stay; the next kvmctl import looks at them again"
            )


def tell(hypervisor: Hypervisor, intent: Intent, warn: Callable[[str], None]) -> None:
    """Say what has become of a guest that was defined, and not started as it was to be."""
    domain, begins = domains.by_uuid(hypervisor, intent.key), intent.data.get("begins")
    if domain is None or not begins or domains.state(domain) not in ("stopped", "crashed"):
        return
    name = argument(domain.name())
    if begins == "memory":
        warn(
            f"an import of guest {domain.name()} was cut off before it went on from its memory, which is gone here: "
            f"started now it would boot anew. kvmctl delete {name} and import it again"
        )
    else:
        warn(f"an import of guest {domain.name()} was cut off before it was started: kvmctl start {name}")
