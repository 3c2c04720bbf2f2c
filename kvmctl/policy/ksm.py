"""What kernel same-page merging saves, and why it saves no more. Source: the kernel's
Documentation/admin-guide/mm/ksm.rst."""

from collections.abc import Collection, Iterator, Sequence
from math import ceil

from kvmctl.model.host_sample import KsmSample
from kvmctl.model.sample import GuestSample
from kvmctl.model.units import human_size

PAGE = 4096
RMAP_ITEM = 64
"""Bytes the kernel keeps for every page it has looked at."""

LEAST_PAGES, MOST_PAGES = 500, 30_000
"""What the kernel's advisor keeps pages_to_scan between."""
OLD_PART = 0.7
MOST_PART = 0.95
"""The part of a core that ksmd can use with any sleep between its rounds."""
PAGE_SECONDS = 5e-6
"""Seconds of CPU that ksmd takes for a page while there is something to merge: a core at 2000 pages each 10 ms, as
measured with six guests of 512 MiB."""

SLOW_PASS = 200.0
"""Seconds: what the kernel's own advisor aims at for one pass over all memory, while nothing is urgent."""


def saved(ksm: KsmSample) -> int:
    """Bytes of memory that would be needed besides, were nothing merged."""
    return (ksm.pages_sharing + (ksm.ksm_zero_pages or 0)) * PAGE


def profit(ksm: KsmSample) -> int:
    """Bytes saved less bytes of bookkeeping: the kernel's `general_profit`, by its formula where it has no such file.

    Negative where merging costs more memory than it saves.
    """
    if ksm.general_profit is not None:
        return ksm.general_profit
    looked_at = ksm.pages_sharing + ksm.pages_shared + ksm.pages_unshared + ksm.pages_volatile
    return saved(ksm) - looked_at * RMAP_ITEM


def pass_seconds(ksm: KsmSample, mergeable: int) -> float:
    """Seconds that one pass over `mergeable` bytes sleeps at the present rate: no pass is faster."""
    return mergeable / PAGE / max(1, ksm.pages_to_scan) * ksm.sleep_millisecs / 1000


def scan_rate(
    present: int, mergeable: int, seconds: int, sleep_millisecs: int, cores: float, *, at_once: bool = False
) -> int:
    """Pages to scan in each round, so that one pass over `mergeable` bytes takes about so many seconds and no more
    than `cores`: the law of the kernel's advisor (Documentation/admin-guide/mm/ksm.rst), for kernels without one.

    Smoothed as there, three parts of what is new to seven of `present`, between the same bounds; or `at_once`, and then
    in steps of `LEAST_PAGES`, so that it is not written anew at each look.
    """
    rounds = max(1.0, seconds * 1000 / sleep_millisecs)
    due = mergeable / PAGE / rounds
    smooth = ceil(due / LEAST_PAGES) * LEAST_PAGES if at_once else OLD_PART * present + (1 - OLD_PART) * due
    part = min(cores, MOST_PART)
    most = part / (1 - part) * sleep_millisecs / 1000 / PAGE_SECONDS
    return max(1, round(min(MOST_PAGES, max(LEAST_PAGES, smooth), most)))


def explain(
    ksm: KsmSample, guests: Sequence[GuestSample], nodes: int = 1, hugepages: Collection[str] = ()
) -> tuple[str, ...]:
    """Sentences for the user: what KSM saves, then everything that keeps it from saving more.

    `guests` are the running ones with their promises, `nodes` the host's NUMA nodes, and `hugepages` the names
    of guests whose memory is on huge pages.
    """
    reasons = (*_switches(ksm, nodes), *_guests(guests, hugepages), *_progress(ksm, guests, hugepages))
    if not saved(ksm):
        return ("KSM saves nothing", *(reasons or ("all memory was looked at: no two pages in it are equal",)))
    pages = ksm.pages_shared + ksm.pages_sharing
    gain = f"KSM saves {human_size(saved(ksm))}: {pages} pages are kept as {ksm.pages_shared}"
    return (gain, *reasons)


def _switches(ksm: KsmSample, nodes: int) -> Iterator[str]:
    if ksm.run == 0:
        yield "it is off (run is 0): kvmctl ksm enable"
    if ksm.run == 2:
        yield "it is told to undo all merging (run is 2): kvmctl ksm enable"
    if ksm.merge_across_nodes == 0 and nodes > 1:
        text = f"pages merge only within each of the {nodes} NUMA nodes (merge_across_nodes is 0)"
        yield f"{text}: kvmctl ksm enable --merge-across-nodes"


def _guests(guests: Sequence[GuestSample], hugepages: Collection[str]) -> Iterator[str]:
    if not guests:
        yield "no guest is running"
        return
    private = [guest.name for guest in guests if guest.promise and not guest.promise.sharing]
    if len(private) == len(guests):
        yield "no running guest shares its memory: kvmctl set GUEST memory.sharing=true"
    elif private:
        yield f"{_names(private)} {_does(private)} not share memory (memory.sharing is false)"
    huge = [guest.name for guest in guests if guest.name in hugepages]
    if huge:
        yield f"the memory of {_names(huge)} is on huge pages, which never merge"


def _progress(ksm: KsmSample, guests: Sequence[GuestSample], hugepages: Collection[str]) -> Iterator[str]:
    mergeable = sum(_resident(guest) for guest in guests if _may_merge(guest, hugepages))
    if ksm.run != 1 or not mergeable:
        return
    if ksm.full_scans == 0:
        yield "the first pass over the guests' memory is not over (full_scans is 0)"
    seconds = pass_seconds(ksm, mergeable)
    if seconds > SLOW_PASS:
        yield (
            f"one pass over {human_size(mergeable)} takes at least {seconds:.0f} s at "
            f"{ksm.pages_to_scan} pages every {ksm.sleep_millisecs} ms"
        )
    if profit(ksm) < 0:
        yield f"its bookkeeping takes {human_size(-profit(ksm))} more than it saves (general_profit is negative)"


def _may_merge(guest: GuestSample, hugepages: Collection[str]) -> bool:
    return guest.promise is not None and guest.promise.sharing and guest.name not in hugepages


def _resident(guest: GuestSample) -> int:
    return guest.balloon.rss or guest.balloon.current or 0


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _does(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"
