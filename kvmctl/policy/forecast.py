"""How long a live migration takes, and whether it comes to an end: the pre-copy rounds, reckoned beforehand."""

from kvmctl.model.migration import Forecast

MOST_ROUNDS = 100
MOST_THROTTLED = 99
"""Per cent by which QEMU slows a guest down at the most."""
FINEST = 2 << 20
"""Bytes a second that one changed page stands for of those that QEMU looks at, 512 of each GiB with a second between
(migration/dirtyrate.c): so much is also said of a guest of which some clock writes to its page now and then."""
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
    auto_converge: bool = False,
    post_copy: bool = False,
) -> Forecast:
    """What `memory` bytes at `bandwidth` bytes a second come to while the guest dirties `dirty_rate` of them a second.

    Each round sends what was dirtied during the one before; when what is left fits into the downtime, the guest is
    stopped and the rest sent. A guest that dirties as fast as is sent does not come to an end: the figures are those
    of a move that is ended by force then; `auto_converge` slows it down, and after `post_copy`'s one round it goes on
    at the target. `disks` are copied first, `overhead` seconds are for all the rest.
    """
    allowed = DOWNTIME if max_downtime is None else max_downtime
    rate = dirty_rate if dirty_rate and dirty_rate > FINEST else 0
    seconds, left, sent, rounds = disks / bandwidth, memory, 0, 0
    brake = _Brake() if auto_converge else None
    while left > allowed * bandwidth and rounds < MOST_ROUNDS:
        taken = left / bandwidth
        seconds, sent, rounds = seconds + taken, sent + left, rounds + 1
        before, left = left, min(memory, round(rate * taken * (brake.kept if brake else 1)))
        if brake:
            brake.round(taken, before, left)
        if post_copy or (left >= before and rounds > 1 and not (brake and brake.throttled < MOST_THROTTLED)):
            break
    converges = post_copy or left <= allowed * bandwidth
    # What is left of a guest that went on already is fetched while it runs.
    downtime = 0.0 if post_copy and left > allowed * bandwidth else left / bandwidth
    return Forecast(
        seconds=seconds + left / bandwidth + overhead,
        downtime=downtime,
        sent=sent + left + disks,
        rounds=rounds,
        converges=converges,
        memory=memory,
        dirty_rate=dirty_rate,
        bandwidth=bandwidth,
        source=source,
        throttled=brake.throttled if brake else 0,
    )


class _Brake:
    """How QEMU slows a guest down, as its migration_trigger_throttle does it: where more than half of what was sent
    was changed meanwhile, twice in a row, looked at once a second at most."""

    def __init__(self) -> None:
        self.throttled = 0
        self._seconds, self._sent, self._changed, self._strikes = 0.0, 0, 0, 0

    @property
    def kept(self) -> float:
        """The part of its time that the guest still has."""
        return 1 - self.throttled / 100

    def round(self, seconds: float, sent: int, changed: int) -> None:
        """Take in how a round went."""
        self._seconds, self._sent, self._changed = self._seconds + seconds, self._sent + sent, self._changed + changed
        if self._seconds < 1:
            return
        if self._changed > self._sent / 2:
            self._strikes += 1
        if self._strikes == 2:
            self.throttled = min(MOST_THROTTLED, self.throttled + 10) if self.throttled else 20
            self._strikes = 0
        self._seconds, self._sent, self._changed = 0.0, 0, 0
