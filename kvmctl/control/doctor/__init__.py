"""`host doctor`: every check with its result, its cause and the next command. Made for a host on which
something is broken, so one broken part never keeps the others from being examined."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvmctl.control.doctor import connection, kernel, parent, policy, schedule, storage
from kvmctl.control.doctor.check import Check, attempt
from kvmctl.hypervisor import host
from kvmctl.hypervisor.capabilities import qemu_user
from kvmctl.hypervisor.connection import Hypervisor


def examine(uri: str, connect_to: Callable[[], Hypervisor]) -> Iterator[Check]:
    """All checks of the hypervisor that `connect_to` connects to, known as `uri` until it has answered."""
    opened = connection.connect(uri, connect_to)
    yield from attempt("connection", lambda: connection.checks(opened))
    user = qemu_user(opened.capabilities) if opened.capabilities else None
    if opened.local:
        yield from kernel.checks(user, _version(opened.hypervisor))
        yield from attempt("policy", lambda: [policy.check()])
        yield from attempt(parent.NAME, lambda: parent.checks(opened.hypervisor))
        yield from attempt(schedule.NAME, schedule.checks)
    else:
        yield Check("host", "unknown", f"{opened.uri} is not on this machine, so its kernel cannot be examined")
    hypervisor = opened.hypervisor
    if hypervisor:
        yield from attempt("pools", lambda: storage.pools(hypervisor, user))
        yield from attempt("networks", lambda: storage.networks(hypervisor))
    else:
        yield Check("pools", "unknown", "pools and networks cannot be examined without a connection")
    yield from attempt("unfinished", lambda: storage.leftovers(opened.uri))


def _version(hypervisor: Hypervisor | None) -> tuple[int, ...] | None:
    """libvirt's version as numbers; None where it did not answer."""
    if hypervisor is None:
        return None
    text = host.versions(hypervisor).daemon
    return tuple(map(int, text.split("."))) if text != "unknown" else None
