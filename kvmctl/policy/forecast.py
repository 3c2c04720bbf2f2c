"""How long a live migration takes, and whether it comes to an end: the pre-copy rounds, reckoned beforehand."""

from kvmctl.model.migration import Forecast

MOST_ROUNDS = 100
DOWNTIME = 0.3
"""Seconds that QEMU lets a guest stand at the switch-over where nobody says otherwise."""


def forecast(
    memory: int,
    dirty_rate: int | None,
    bandwidth: int,
    max_downtime: float | None,
    disks: int = 0,
    overhead: float = 0.0,
    source: str = "assumed",
) -> Forecast:
    """What `memory` bytes at `bandwidth` bytes a second come to while the guest dirties `dirty_rate` of them a second.

    Each round sends what was dirtied during the one before; when what is left fits into the downtime, the guest is
    stopped and the rest sent. A guest that dirties as fast as is sent does not come to an end: the figures are those
    of a move that is ended by force then. `disks` are copied first, `overhead` seconds are for all the rest.
    """
    allowed = DOWNTIME if max_downtime is None else max_downtime
    rate = dirty_rate or 0
    seconds, left, sent, rounds = disks / bandwidth, memory, 0, 0
    while left > allowed * bandwidth and rounds < MOST_ROUNDS:
        taken = left / bandwidth
        seconds, sent, rounds = seconds + taken, sent + left, rounds + 1
        dirtied = min(memory, round(rate * taken))
        if dirtied >= left and rounds > 1:
            left = dirtied
            break
        left = dirtied
    converges = left <= allowed * bandwidth
    downtime = left / bandwidth
    return Forecast(
        seconds=seconds + downtime + overhead,
        downtime=downtime,
        sent=sent + left + disks,
        rounds=rounds,
        converges=converges,
        memory=memory,
        dirty_rate=dirty_rate,
        bandwidth=bandwidth,
        source=source,
    )
