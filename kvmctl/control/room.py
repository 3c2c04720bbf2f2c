"""Room for guests that are about to start: the controller is asked for it, and waited for.

A guest touches nearly all of its memory while it boots. On a host that is nearly full it would take that from those
who are at work, so it is made before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kvmctl.control import remember
from kvmctl.control.hostpolicy import host_policy
from kvmctl.control.wait import until
from kvmctl.host import memory, room
from kvmctl.host.journal import boot_id
from kvmctl.hypervisor import domains
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.sample import ACTIVE
from kvmctl.model.spec import GuestSpec
from kvmctl.model.units import MIB, human_size
from kvmctl.policy.balloon import first_target
from kvmctl.policy.memory import reserve_of
from kvmctl.policy.reclaim import least_available, state
from kvmctl.xml import metadata, reclaimable, tree

LAST_TICK = 120
"""Seconds since the last tick after which none is to be expected: cron has one come every minute."""
OVERHEAD = 64 * MIB
"""What QEMU takes besides the guest's memory: 65 to 75 MiB of an emulated guest that was at work for a minute."""
WAIT = 45.0
STILL = 10.0
"""Seconds after which no more room is to be expected where there has come none for so long: a few of the ticks that
come while a host is short, and the time in which cold memory shows to be cold."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a guest takes when it starts, in bytes: `size` is all it has, `target` what its balloon may leave it for a
    beginning, None where that cannot be told."""

    size: int
    target: int | None

    def taken(self, available: int, reserve: int) -> int:
        """Bytes with so many available on a host that keeps `reserve`, QEMU's own among them."""
        return (self.low(available, reserve) or self.size) + OVERHEAD

    def low(self, available: int, reserve: int) -> int | None:
        """What its balloon is to leave it; None is all, where the host does not become short by that."""
        return None if state(available - self.size, reserve) == "high" else self.target


def is_ticking(hypervisor: Hypervisor) -> bool:
    """Whether a tick came of late, so that the next can be expected."""
    last, _note = remember.recall(hypervisor.uri)
    return last is not None and last.boot == boot_id() and time.monotonic_ns() - last.taken < LAST_TICK * 10**9


def beginning(domain: Any, policy: MemoryPolicy) -> Beginning:
    """Of a guest that is defined. Raises KvmctlError."""
    root = tree.read(domains.definition(domain))
    size, promise = reclaimable.memory_size(root) or 0, metadata.promise_in(root)
    left_alone = policy.balloon == "leave" or not promise.rebalance or bool(reclaimable.memory_fixed(root))
    # One that was saved does not boot: it goes on with all that it uses.
    told = not left_alone and bool(reclaimable.stats_period(root)) and not domains.has_saved_state(domain)
    return Beginning(size, first_target(size, promise.memory_reservation) if told else None)


def of_spec(spec: GuestSpec, policy: MemoryPolicy) -> Beginning:
    """Of a guest that is going to be defined."""
    size = spec.memory.size or 0
    told = policy.balloon != "leave" and spec.rebalance is not False and not spec.passthrough
    return Beginning(size, first_target(size, spec.memory.reservation or 0) if told else None)


def of_wanted(hypervisor: Hypervisor, specs: Sequence[GuestSpec], policy: MemoryPolicy) -> dict[str, Beginning]:
    """Of those that do not run yet and are going to, by name. Raises KvmctlError."""
    starting = {spec.name for spec in specs if spec.state in ("running", "paused")}
    off = (
        (sample.name, domain)
        for sample, domain in domains.samples_with_domains(hypervisor)
        if sample.name in starting and sample.state not in ACTIVE
    )
    defined = {name: beginning(domain, policy) for name, domain in off}
    return defined | {spec.name: of_spec(spec, policy) for spec in new(hypervisor, specs)}


def new(hypervisor: Hypervisor, specs: Iterable[GuestSpec]) -> list[GuestSpec]:
    """Those that are not defined yet and are going to run. Raises KvmctlError."""
    known = {sample.name for sample in domains.samples(hypervisor)}
    return [spec for spec in specs if spec.name not in known and spec.state in (None, "running", "paused")]


@contextmanager
def made(
    hypervisor: Hypervisor,
    beginnings: Callable[[MemoryPolicy], Mapping[str, Beginning]],
    say: Callable[[str], None],
    check: Callable[[], object],
) -> Iterator[None]:
    """Have room made for guests, by name, which are started in the block: asks the controller, where one is at work,
    for all that they may take, and waits for as long as it gets nearer to that, `WAIT` seconds at most. Whether what
    there is then suffices for a beginning, admission says. `check` raises what no room would help against, before
    anything is taken from others in vain.

    The hypervisor's lock must not be held: the tick needs it. Raises KvmctlError.
    """
    if not hypervisor.local or not is_ticking(hypervisor):
        yield
        return
    policy, now = host_policy().memory, memory.read()
    reserve, available = reserve_of(policy, now.total), memory.left_for_guests(now)
    taken = {name: one.size + OVERHEAD for name, one in beginnings(policy).items()}
    wanted = sum(taken.values())
    if not taken or available - wanted >= reserve:
        yield
        return
    check()
    say(f"making room: {human_size(wanted)} for {', '.join(taken)}, and {human_size(available)} are available")
    try:
        _ask(hypervisor, taken)
        until(_Progress(wanted + least_available(reserve)).look, bool, WAIT)
        # It is kept for them while they boot.
        _ask(hypervisor, taken)
        yield
    except BaseException:
        for name in taken:
            room.drop(hypervisor.uri, name)
        raise


class _Progress:
    """Whether it is no use to wait any longer for so many bytes."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.best, self.since = wanted, 0, time.monotonic()

    def look(self) -> bool:
        """True where there is enough, or where it has not become more for a while."""
        found, now = memory.left_for_guests(memory.read()), time.monotonic()
        if found > self.best + MIB:
            self.best, self.since = found, now
        return found >= self.wanted or now - self.since >= STILL


def _ask(hypervisor: Hypervisor, taken: Mapping[str, int]) -> None:
    for name, amount in taken.items():
        room.ask(hypervisor.uri, name, amount)


def first_bytes(hypervisor: Hypervisor, domains_: Iterable[Any], specs: Iterable[GuestSpec] = ()) -> int:
    """Bytes that these guests take when they start, on a host whose controller makes room for more as they need it; 0
    where none is at work: nothing is known then but what they may grow to. Raises KvmctlError."""
    if not hypervisor.local or not is_ticking(hypervisor):
        return 0
    policy, now = host_policy().memory, memory.read()
    found = [beginning(domain, policy) for domain in domains_] + [of_spec(spec, policy) for spec in specs]
    return sum(one.taken(memory.left_for_guests(now), reserve_of(policy, now.total)) for one in found)
