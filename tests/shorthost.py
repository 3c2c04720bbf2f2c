"""A host that a policy makes short of memory, with one booted guest, for tests of what a tick does then."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvmctl.bootstrap.microguest import MicroGuest
from kvmctl.host import memory
from kvmctl.hypervisor import domains
from kvmctl.model.units import MIB
from tests.conftest import Kvmctl
from tests.hosts import PrivateHost
from tests.support import Console, Guest, until

NAME = "squeezed"


class Lab:
    """One booted guest, and ticks under a policy."""

    def __init__(self, kvmctl: Kvmctl, host: PrivateHost, policy: Path, guest: Guest, line: Console) -> None:
        self.kvmctl, self.host, self.policy, self.guest, self.line = kvmctl, host, policy, guest, line

    @property
    def env(self) -> dict[str, str]:
        """What has a command line follow the policy."""
        return {"KVMCTL_HOST_FILE": str(self.policy)}

    def policy_is(self, text: str) -> None:
        """Replace the policy."""
        self.policy.write_text(f"memory: {{{text}}}\n")

    def short(self, part: float = 0.8, rest: str = "") -> None:
        """From now on the host has only that part available of what it is to keep."""
        reserve = round(memory.read().available / part) // MIB
        self.policy_is(f"reserve: {reserve}MiB, overcommit: 10000%, cover: 0%, sharing: leave{rest}")

    def run(self, *words: str, code: int | None = 0, stdin: str = "") -> Any:
        """The document that a command line prints."""
        return self.kvmctl("-c", self.host.uri, "-o", "json", *words, code=code, stdin=stdin, env=self.env).json()

    def tick(self) -> dict[str, Any]:
        """What the tick did with the guest, by field."""
        return {row["field"]: row for row in self.run("rebalance") if row["name"] == self.guest.name}

    def fresh(self) -> dict[str, Any]:
        """The guest's line of the ledger, once its driver has reported."""

        def line() -> dict[str, Any]:
            found: dict[str, Any] = self.run("memory")["guests"][0]
            return found

        return until(line, lambda found: found["usable"] is not None, 90, "the guest's own figures")


def guest_file(folder: Path, name: str, more: str = "") -> str:
    """A guest file of one micro guest whose kernel lies in the folder."""
    return (
        f"guests:\n  - name: {name}\n    accelerator: tcg\n    cpu: {{count: 1}}\n"
        f"    memory: {{size: 384MiB, reservation: 160MiB}}\n{more}"
        f"    boot: {{kernel: {folder}/k, initrd: {folder}/i, cmdline: 'console=ttyS0 quiet'}}\n"
    )


@contextmanager
def booted(
    host: PrivateHost,
    kvmctl: Kvmctl,
    micro: MicroGuest,
    console: Callable[[Guest], Console],
    policy: Path,
    edit: Callable[[str], str] = lambda definition: definition,
) -> Iterator[Lab]:
    """The guest, up and answering, with its definition `edit`ed before its first start; gone after the block."""
    policy.write_text("memory: {overcommit: 10000%, cover: 0%, sharing: leave, swap: leave}\n")
    # Files of its own: this daemon runs QEMU as another user than the machine's, which knows whose its files are.
    for path, name in ((micro.kernel, "k"), (micro.initrd, "i")):
        shutil.copy(path, host.folder / name)
    env = {"KVMCTL_HOST_FILE": str(policy)}
    text = guest_file(host.folder, NAME, "    state: stopped\n")
    kvmctl("-c", host.uri, "apply", "-f", "-", stdin=text, env=env)
    with host.open() as hypervisor:
        guest = Guest(hypervisor, NAME)
        try:
            domains.define(hypervisor, NAME, edit(domains.definition(guest.domain)))
            kvmctl("-c", host.uri, "start", NAME, env=env)
            line = console(guest)
            line.ready()
            yield Lab(kvmctl, host, policy, guest, line)
        finally:
            kvmctl("-c", host.uri, "host", "restore", code=None)
            guest.remove()
