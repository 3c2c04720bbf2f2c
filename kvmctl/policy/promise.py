"""What a guest file promises a guest, as the numbers that decisions are made from."""

from kvmctl.model.promise import Promise
from kvmctl.model.spec import UNLIMITED, GuestSpec, cpu_shares, memory_shares


def promise_of(spec: GuestSpec) -> Promise:
    """The promise of a guest; what the spec leaves open is what a new guest gets."""
    cpu, memory = spec.cpu, spec.memory
    most = memory.max or memory.size or 0
    return Promise(
        cpu_shares=cpu_shares(cpu.shares, cpu.count or 1),
        cpu_limit=UNLIMITED if cpu.limit is None else cpu.limit,
        cpu_reservation=cpu.reservation or 0.0,
        memory_shares=memory_shares(memory.shares, memory.size or 0),
        memory_reservation=memory.reservation or 0,
        sharing=memory.sharing is not False,
        swap=memory.swap is not False,
        project=spec.project,
        labels=spec.labels or (),
        rebalance=spec.rebalance is not False,
        memory_max=most,
        memory_pinned=most if spec.passthrough or memory.hugepages else 0,
    )
