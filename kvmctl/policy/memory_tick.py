"""What one tick does about memory: from what was observed to balloons, KSM's aim and what is swapped. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kvmctl.model.change import Change
from kvmctl.model.host_sample import HostSample, Snapshot
from kvmctl.model.hostpolicy import MemoryPolicy
from kvmctl.model.reclaim import HASTE, SHORT, PageOut, ReclaimGuest, ReclaimMemory, ReclaimPlan
from kvmctl.model.sample import BalloonSample, GuestSample
from kvmctl.model.units import human_size
from kvmctl.policy import balloon, driver, reclaim, sharing, swapping
from kvmctl.policy.balloon import BalloonClaim
from kvmctl.policy.memory import REPORT_SECONDS, due_size, reserve_of
from kvmctl.policy.swapping import Candidate, Swapping

MOST_DOUBLED = 2
"""How often what is taken is doubled while the host stays short."""
MOST_HOST_FAULTS = 400.0
"""Major faults a second of a guest's process from which it is left alone: what was swapped is being used."""
LONGEST_UNMERGED = 120.0
"""Seconds for which a guest is kept from swap until KSM has looked at it twice: on a large host a pass takes long."""
LONGEST = 120.0
"""Seconds between two looks after which counters say nothing about now."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One running guest whose memory can be told about: `claim` None is one whose balloon is left alone, for the
    reason `why`."""

    guest: GuestSample
    claim: BalloonClaim | None
    lean: tuple[BalloonClaim, ...]
    """The same without its page cache, and then with a lean margin too; empty where there is none."""
    why: str
    pressed: bool
    thrashes: bool
    memory: ReclaimGuest
    stuck: bool = False
    """Whether its balloon does not follow: nothing that it is told to take counts as freed."""


def decide(now: Snapshot, before: ReclaimMemory | None, policy: MemoryPolicy) -> ReclaimPlan:
    """What has to be done so that the host does not run out of memory, and no guest has less than it needs."""
    host = now.host
    guests = [guest for guest in now.guests if guest.state == "running" and guest.promise is not None]
    if host is None or host.memory_total <= 0:
        return ReclaimPlan(None, (), None, (), (), (), None)
    host = replace(host, memory_available=least_of(host))
    if before is not None and before.boot != now.boot:
        before = None
    reserve = reserve_of(policy, host.memory_total)
    found = reclaim.state(host.memory_available, reserve, reclaim.state_named(before.state if before else None))
    seconds = (now.taken - before.taken) / 1e9 if before else 0.0
    seconds = seconds if 0 < seconds <= LONGEST else 0.0
    seen = [_look(guest, now, before, seconds) for guest in guests]
    acting = reclaim.with_room(found, host.memory_available, host.room_asked, reserve)
    short = _Short(acting, host, reserve, before.short if before and seconds else 0)
    balloons, missing = _balloons(seen, short, now.taken) if policy.balloon == "manage" else ((), short.due)
    stalled = _stalled(host, before, seconds)
    swapped = _swapping(seen, balloons, short, missing, stalled, policy, now)
    memory = ReclaimMemory(
        taken=now.taken,
        boot=now.boot,
        state=found,
        stalled=host.memory_stalled,
        short=short.before + 1 if acting in SHORT else 0,
        guests={one.guest.uuid: _remembered(one, balloons, now.taken) for one in seen},
    )
    memory, aim = sharing.decide(now, before, memory, policy)
    scores = tuple(_scores(guests))
    notes = tuple(_notes(seen, found, missing, swapped.why_not))
    alert = short.state in SHORT or any(one.claim and one.claim.actual < one.claim.size for one in seen)
    reports = tuple(_reports(guests)) if policy.balloon == "manage" else ()
    splits = _splits(guests) if policy.balloon == "manage" and short.state in SHORT else ()
    return ReclaimPlan(found, balloons, aim, scores, swapped.pageouts, notes, memory, alert, reports, splits)


def least_of(host: HostSample) -> int:
    """Bytes that guests can still have: of the host, and of what their common control group may have."""
    bound = host.guests_available
    return host.memory_available if bound is None else min(host.memory_available, bound)


@dataclass(frozen=True, slots=True)
class _Short:
    """How short of memory the host is, `state` with what guests that are about to start will take."""

    state: str
    host: HostSample
    reserve: int
    before: int
    """How many looks in a row it was short before this one."""

    @property
    def free(self) -> int:
        """Bytes that are available and not asked for."""
        return self.host.memory_available - self.host.room_asked

    @property
    def due(self) -> int:
        """Bytes that are missing."""
        return reclaim.deficit(self.free, self.reserve) if self.state in SHORT else 0

    @property
    def pressing(self) -> int:
        """Bytes for which page cache is not spared either: more each time where what balloons took has not sufficed."""
        return self.due << min(self.before, MOST_DOUBLED)

    @property
    def goal(self) -> int:
        """Bytes that balloons are to take: twice that, as somebody takes it meanwhile."""
        return 2 * self.pressing

    @property
    def why(self) -> str:
        """For the user."""
        if self.host.room_asked:
            return f"the host is in the state {self.state} with what is about to start"
        return f"the host is in the state {self.state}"


def _look(guest: GuestSample, now: Snapshot, before: ReclaimMemory | None, seconds: float) -> _Seen:
    old = before.guests.get(guest.uuid) if before else None
    if old is not None and old.run != guest.run:
        old = None
    stats = guest.balloon
    faults = None if stats.major_fault is None else stats.major_fault + (stats.swap_in or 0) // 4096
    host_faults = guest.process.major_faults if guest.process else None
    memory = replace(old or ReclaimGuest(guest.run or 0), faults=faults, host_faults=host_faults)
    if memory.since is None:
        memory = replace(memory, since=now.taken, scans=_scans(now))
    rate = _rate(old.faults if old else None, faults, seconds)
    host_rate = _rate(old.host_faults if old else None, host_faults, seconds)
    thrashes = host_rate is not None and host_rate > MOST_HOST_FAULTS
    if stats.current is not None:
        memory = driver.followed(memory, stats.current, now.taken)
    why = driver.left_alone(guest, now.clock)
    if why:
        return _Seen(guest, None, (), why, pressed=False, thrashes=thrashes, memory=memory)
    assert stats.current is not None
    assert stats.usable is not None
    size = due_size(guest)
    memory, said_of = _said(memory, old, stats, now.clock - seconds + 1 if seconds else None)
    claim = _claim(guest, size, said_of, keep_cache=True)
    lean = tuple(_claim(guest, size, said_of, keep_cache=False, lean=few) for few in (False, True))
    pressed = stats.current < size and balloon.is_pressed(size, stats.usable, rate)
    return _Seen(guest, claim, lean, "", pressed, thrashes, memory, driver.is_stuck(memory, now.taken))


def _said(
    memory: ReclaimGuest, old: ReclaimGuest | None, stats: BalloonSample, last: float | None
) -> tuple[ReclaimGuest, int]:
    """What is remembered with what its driver last said, and the balloon that was said of: while it is filled, that is
    more than it leaves now. `last` is the time of the last look in seconds, None where there was none of late."""
    assert stats.current is not None
    said_of = stats.current
    if old is not None and last is not None and stats.last_update is not None and stats.last_update <= last:
        same = old.said == stats.last_update
        said_of = max(said_of, old.actual or 0, (old.said_of or 0) if same else 0)
    return replace(memory, said=stats.last_update, said_of=said_of), said_of


def _scans(now: Snapshot) -> int:
    return now.host.ksm.full_scans if now.host and now.host.ksm else 0


def _claim(guest: GuestSample, size: int, said_of: int, *, keep_cache: bool, lean: bool = False) -> BalloonClaim:
    stats, promise = guest.balloon, guest.promise
    assert promise is not None
    assert stats.current is not None
    assert stats.usable is not None
    used = balloon.need(said_of, stats.usable, stats.disk_caches or 0, keep_cache)
    floor = max(promise.memory_reservation, used + balloon.margin(size, lean))
    return BalloonClaim(guest.name, promise.memory_shares, floor, stats.current, size, used)


def _rate(old: int | None, new: int | None, seconds: float) -> float | None:
    return None if old is None or new is None or not seconds or new < old else (new - old) / seconds


def _balloons(seen: Sequence[_Seen], short: _Short, taken: int) -> tuple[tuple[Change, ...], int]:
    """The balloons to move; and how many bytes are still missing with all of them where they are to be."""
    claims = {one.guest.name: one.claim for one in seen if one.claim}
    pressed = [one.claim for one in seen if one.claim and one.pressed]
    owed = {claim.name: claim for one in seen if (claim := _owed(one))}
    idle = [
        one
        for one in seen
        if one.claim and one.memory.calm_until <= taken and not one.pressed and one.guest.name not in owed
    ]
    last = max(0, short.host.memory_available - reclaim.least_available(short.reserve))
    behind = [*pressed, *owed.values()]
    wanted = sum(claim.size - claim.actual for claim in behind)
    targets = balloon.grown(behind, min(wanted, last)) if behind else {}
    missing = max(0, wanted - last)
    what = "gets what there is" if missing else "gets all back"
    reasons = dict.fromkeys(targets, f"it is short of memory, and {what}")
    reasons |= dict.fromkeys(owed, "so much is reserved for it")
    told = {one.guest.name: one.memory.target for one in seen if one.guest.name in targets}
    if short.state in SHORT or missing:
        smaller, needs, freed = _smaller([one for one in idle if not one.stuck], short, missing)
        missing = max(0, short.due + missing - freed)
        reasons |= {name: _why_smaller(claims[name], needs[name], short.why, idle) for name in smaller}
        targets |= smaller
    elif room := reclaim.surplus(short.free - min(wanted, last), short.reserve):
        squeezed = {claim.name: claim for one in seen if (claim := _squeezed(one)) and claim.name not in targets}
        larger = balloon.grown(list(squeezed.values()), room if short.state == "high" else room // 2)
        reasons |= dict.fromkeys(larger, f"{short.why}, and it is to have more")
        claims, targets = claims | squeezed, targets | larger
    changes = tuple(
        Change(name, "memory.balloon", claims[name].actual, target, reason=reasons[name])
        for name, target in sorted(targets.items())
        if _is_worth(claims[name], target, told.get(name)) or name in owed
    )
    return changes, missing


def _owed(one: _Seen) -> BalloonClaim | None:
    """A claim to its reservation of a guest that has less by us, or was told to: it was raised meanwhile."""
    if one.claim is None or one.pressed or one.guest.promise is None or not one.guest.balloon_moved:
        return None
    reserved = min(one.guest.promise.memory_reservation, one.claim.size)
    told = one.claim.actual if one.memory.target is None else min(one.claim.actual, one.memory.target)
    if told >= reserved:
        return None
    return replace(one.claim, size=max(reserved, one.claim.actual))


def _squeezed(one: _Seen) -> BalloonClaim | None:
    """A claim to all that it is to have of a guest from which a tick, or its start, took some; also where nothing can
    be told about it any more."""
    guest, actual = one.guest, one.guest.balloon.current
    if not guest.balloon_moved or one.pressed or actual is None or actual >= due_size(guest):
        return None
    if one.claim is not None or guest.promise is None:
        return one.claim
    return None if driver.impossible(guest.balloon) else BalloonClaim(
        guest.name, guest.promise.memory_shares, actual, actual, due_size(guest), actual
    )  # fmt: skip


def _smaller(idle: Sequence[_Seen], short: _Short, others: int) -> tuple[dict[str, int], dict[str, int], int]:
    """Targets by name, what each then counts as needing, and the bytes that they free, with so many that `others` are
    to have: page cache goes only where nothing else suffices, and most of the margin only where the host is in the
    state `hard` even so."""
    targets: dict[str, int] = {}
    needs: dict[str, int] = {}
    freed = 0
    known = [(one.claim, *one.lean) for one in idle if one.claim]
    for claims in list(zip(*known, strict=True))[: 3 if short.state in HASTE else 2]:
        targets = balloon.coarse(claims, balloon.shrunk(claims, short.goal + others))
        needs = {claim.name: claim.need for claim in claims}
        freed = sum(claim.actual - targets[claim.name] for claim in claims)
        if freed >= short.pressing + others:
            break
    return targets, needs, freed


def _is_worth(claim: BalloonClaim, target: int, told: int | None) -> bool:
    """Whether to tell the guest; where it is to have more, also if it was `told` to give more than it has by now."""
    on_its_way = told is not None and target > told
    return on_its_way or abs(target - claim.actual) >= balloon.FINEST or (target == claim.size != claim.actual)


def _why_smaller(claim: BalloonClaim, need: int, why: str, idle: Sequence[_Seen]) -> str:
    lowest = min((one.claim for one in idle if one.claim), key=balloon.price, default=claim)
    rank = "the lowest claim on what it holds" if lowest.name == claim.name else "a low claim on what it holds"
    return f"{why}; it uses {human_size(need)} and has {rank}"


def _stalled(host: HostSample, before: ReclaimMemory | None, seconds: float) -> float | None:
    """The part of the time since the last look for which some task waited for memory."""
    if before is None or before.stalled is None or host.memory_stalled is None or not seconds:
        return None
    return max(0.0, host.memory_stalled - before.stalled) / seconds


def _swapping(
    seen: Sequence[_Seen],
    balloons: Sequence[Change],
    short: _Short,
    missing: int,
    stalled: float | None,
    policy: MemoryPolicy,
    now: Snapshot,
) -> Swapping:
    if policy.swap != "manage":
        return Swapping(why_not="the host's policy has swap: leave" if missing else "")
    told = {change.guest: change.new for change in balloons if isinstance(change.new, int)}
    candidates = [
        Candidate(one.guest, one.thrashes, _filling(one, told.get(one.guest.name)), _is_unmerged(one, now, policy))
        for one in seen
    ]
    return swapping.decide(candidates, short.state, short.why, short.host, missing, stalled)


def _is_unmerged(one: _Seen, now: Snapshot, policy: MemoryPolicy) -> bool:
    """Whether KSM is about to merge what it finds in this guest: it merges nothing that is in swap, ever."""
    found = now.host.ksm if now.host else None
    shares = one.guest.promise is not None and one.guest.promise.sharing and policy.sharing != "leave"
    if not shares or found is None or found.run != 1 or one.memory.since is None:
        return False
    young = now.taken - one.memory.since < LONGEST_UNMERGED * 1e9
    return young and 0 <= found.full_scans - one.memory.scans < sharing.SETTLED_SCANS


def _filling(one: _Seen, told: int | None) -> int:
    """Bytes that a guest's balloon is still to take."""
    target = one.memory.target if told is None else told
    actual = one.guest.balloon.current
    return 0 if target is None or actual is None or one.stuck else max(0, actual - target)


def _scores(guests: Sequence[GuestSample]) -> Iterator[Change]:
    """Whom the kernel is to kill first when memory has run out all the same: who has the fewest shares for its size."""
    for guest in guests:
        present = guest.process.oom_score_adj if guest.process else None
        assert guest.promise is not None
        if present is None or not guest.promise.rebalance or not guest.memory_size:
            continue
        due = reclaim.oom_score(guest.promise.memory_shares, guest.memory_size)
        if present != due:
            yield Change(guest.name, "memory.oom-score", present, due, reason="as its shares of memory say")


def _reports(guests: Sequence[GuestSample]) -> Iterator[Change]:
    """Whose balloon driver is to report, because nobody has told it to: nothing is known of such a guest."""
    for guest in guests:
        assert guest.promise is not None
        if guest.has_balloon and not guest.stats_period and guest.promise.rebalance and not guest.memory_fixed:
            reason = "so that it is known what it uses: its definition has no period"
            yield Change(guest.name, "memory.reports", 0, REPORT_SECONDS, reason=reason)


def _splits(guests: Sequence[GuestSample]) -> tuple[tuple[int, int], ...]:
    return tuple(
        (guest.process.pid, guest.balloon.maximum)
        for guest in guests
        if guest.process and guest.balloon.maximum and guest.promise and guest.promise.rebalance
        if not guest.memory_fixed and guest.has_balloon
    )


def _remembered(one: _Seen, balloons: Sequence[Change], taken: int) -> ReclaimGuest:
    memory = one.memory
    for change in balloons:
        if change.guest == one.guest.name and isinstance(change.new, int):
            memory = driver.told(memory, change.new, taken)
    if not (one.pressed or one.thrashes) or memory.calm_until > taken:
        return memory
    calm = balloon.calm(memory.calm)
    return replace(memory, calm=calm, calm_until=taken + round(calm * 1e9))


_HINTS: Mapping[str, str] = {
    "there is no swap": "kvmctl swap enable, or stop or move a guest",
    "swap is full": "kvmctl swap enable --file PATH SIZE, or stop or move a guest",
}


def _notes(seen: Sequence[_Seen], state: str, missing: int, why_not: str) -> list[str]:
    if state not in SHORT:
        return []
    notes = [f"{one.guest.name}: its memory counts whole, {one.why}" for one in seen if one.claim is None]
    notes += [
        f"{one.guest.name}: its balloon does not follow, it has stood still for more than {driver.STUCK_SECONDS:.0f} s"
        for one in seen
        if one.stuck and one.claim
    ]
    if missing and why_not:
        notes.append(
            f"the host is in the state {state} and {human_size(missing)} are missing beyond what balloons give, and "
            f"{why_not}: {_HINTS.get(why_not, 'stop or move a guest')}"
        )
    return notes


def guest_changes(plan: ReclaimPlan) -> tuple[Change, ...]:
    """What would be changed of guests: that is known without their host."""
    return (*plan.reports, *plan.balloons, *plan.scores, *(swap_change(one) for one in plan.pageouts))


def swap_change(one: PageOut) -> Change:
    """The change that a page-out is at most."""
    return Change(one.guest, "memory.swapped", one.swapped, one.swapped + one.amount, reason=one.reason)
