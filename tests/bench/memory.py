"""How many guests fit into the same memory, and how they fare there: policies side by side on a small host.

    python -m tests.bench.memory [--scenario density,release,soak]
                                 [--policies none,ksm-default,ksmtuned,mom,proxmox,kvmctl]
                                 [--mix standard,homogeneous,diverse] [--swap none,zram] [--limit 3GiB] [--most 24]
                                 [--settle 60] [--first 1] [--minutes 10] [--every 5] [--host-file FILE] [--low MiB]
                                 [--mom PATH] [--reporting] [--json FILE] [-v]

Needs root, gcc, libc6-dev and the Debian package lxcfs (its service need not run), and a machine on which nobody else
uses KSM or swap. Each run makes a host in a namespace with so much memory, and guests of 512 MiB in it whose memory
holds a hot part (touched at random, 20000 times a second), cold, identical and zero parts, and page cache. Half of each
page is random. All policies have the same guests, the same swap and the same host; zram's own memory is charged to it.
Only guests of Proxmox and kvmctl report free pages, as these make them; with --reporting everybody's do.

    density   guests are added one by one, each given --settle seconds, until one of all is below 95 % of its solo rate,
              or is killed, or the policy refuses the next. MiB/guest: what the host has used of its memory for each
    release   four guests that need little and have filled the rest with page cache, and a process that takes all the
              memory that is free: seconds until the guests have given it a third of theirs. relief: the hot part of a
              squeezed guest grows to three times its size; seconds until it is well again
    soak      guests of 150 % of the memory, whose hot parts change at random: kills, and the longest that one was
              below 90 % of its solo rate on end
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kvmctl.model.units import parse_size
from tests import support
from tests.bench.cpu import chosen
from tests.bench.memfigures import (
    DENSITY_HEAD,
    WELL,
    Step,
    density_row,
    longest_below,
    most,
    number,
    percent,
    percentile,
    table,
    well_again,
    worst,
)
from tests.bench.memguest import MIXES, RATE, SIZE, Guest, random_phases
from tests.bench.memlab import BOOT, MIB, WINDOW, Lab, hogging, lab
from tests.bench.mempolicies import HOST_FILE, LOW, POLICIES, Settings
from tests.bench.timing import write_json
from tests.support import Console

SCENARIOS = ("density", "release", "soak")
SWAPS = ("none", "zram")
RELEASED = 1 / 3
RELEASE_GUESTS = 4
SHORT = 0.04
"""The part of its memory that a host which is short has free."""
RELEASE_SECONDS = RELIEF_SECONDS = 150.0
GROWN = 3
"""How many times as large the hot part is that grows."""
SOAK = 1.5
"""Guests' sizes in a soak, against the host's memory."""
SOAK_WELL = 0.90
SOAK_SIZES = (48, 96, 144)
"""MiB of the hot parts in a soak."""


@dataclass(frozen=True, slots=True)
class Release:
    """Seconds; None: not within the time. `released` is the part of guest memory that was released at its end."""

    seconds: float | None
    released: float
    relief: float | None
    worst_ms: float | None
    dead: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Soak:
    """`below` is the longest that a guest was below 90 % of its solo rate on end, in seconds, by guest."""

    guests: int
    seconds: float
    dead: tuple[str, ...]
    oom_kills: int
    below: dict[str, float]
    p99_ms: float | None
    refused: str = ""


def density(place: Lab, mix: str, options: argparse.Namespace) -> list[Step]:
    """Add guests until one is not well."""
    steps: list[Step] = []
    for count in range(1, options.most + 1):
        begun = time.monotonic()
        refused = place.add(Guest(count, MIXES[mix]))
        if refused:
            steps.append(_refused(count, refused, time.monotonic() - begun))
        elif count < options.first and place.wait(place.all_ready, BOOT):
            continue
        else:
            steps.append(place.settle(options.settle))
        if count == 1 and not refused:
            _check_solo(steps[0])
        place.say(f"{place.policy.name}, {mix}: {_line(steps[-1])}")
        if not steps[-1].good:
            break
    return steps


def _check_solo(step: Step) -> None:
    if not step.good:
        raise SystemExit(f"bench: a guest alone does {percent(step.least)} of the {RATE} touches a second it asks for")


def _refused(count: int, reason: str, seconds: float) -> Step:
    return Step(count, 0.0, None, 0, 0, 0, 0, 0, 0, 0.0, None, seconds, refused=reason)


def _line(step: Step) -> str:
    return (
        f"{step.guests} guests, worst {percent(step.least)}, p99 {number(step.p99_ms)} ms, free {step.free // MIB}, "
        f"shared {step.shared // MIB}, swapped {step.swapped // MIB}, zram {step.zram // MIB}, "
        f"balloons {step.balloons // MIB} MiB, ksmd {percent(step.ksmd)}, controller {percent(step.controller)}, "
        f"{step.seconds:.0f} s {' '.join(step.dead)} {step.refused}"
    )


def release(place: Lab) -> Release:
    """The host runs short; then a squeezed guest wants more."""
    for count in range(1, RELEASE_GUESTS + 1):
        if refused := place.add(Guest(count, MIXES["light"])):
            raise SystemExit(f"bench: {refused}")
    if not place.wait(place.all_ready, BOOT):
        raise SystemExit(f"bench: guests do not come up; gone: {', '.join(place.dead()) or 'none'}")
    place.wait(lambda: False, WINDOW)
    wanted = RELEASED * sum(place.balloons().values())
    with ExitStack() as stack:
        line = stack.enter_context(Console(support.Guest(place.hypervisor, next(iter(place.guests)))))
        line.ready()
        hog = stack.enter_context(hogging(place.host, SHORT))
        place.wait(lambda: place.host.memory().free < (SHORT + 0.01) * place.host.budget, 60)
        begun, before = time.monotonic(), hog.held()
        enough = place.wait(lambda: hog.held() - before >= wanted, RELEASE_SECONDS)
        seconds = time.monotonic() - begun if enough else None
        part = (hog.held() - before) / wanted * RELEASED
        place.say(f"{place.policy.name}: released {percent(part)}, balloons {place.balloons()}")
        relief = _relief(place, line)
    late = [ms for _, reports in place.guests.values() for ms in worst(reports.lines, begun, time.monotonic())]
    return Release(seconds, part, relief, max(late, default=None), place.dead())


def _relief(place: Lab, line: Console) -> float | None:
    guest, reports = next(iter(place.guests.values()))
    started = len(reports.lines)
    os.write(line.file, f"! echo {GROWN * guest.mix.hot} >/run/hot\n".encode())

    def found() -> float | None:
        return well_again(reports.lines[started - 1 :], WELL * place.solo)

    place.wait(lambda: len(reports.lines) > started + 8 and found() is not None, RELIEF_SECONDS)
    return found()


def soak(place: Lab, mix: str, options: argparse.Namespace) -> Soak:
    """Hot parts grow and shrink at random."""
    count, seconds = round(SOAK * options.limit / (SIZE * MIB)), round(60 * options.minutes)
    for number_ in range(1, count + 1):
        guest = Guest(number_, MIXES[mix], random_phases(number_, seconds + 600, SOAK_SIZES))
        if refused := place.add(guest):
            return Soak(number_ - 1, 0.0, place.dead(), place.host.oom_kills(), {}, None, refused)
        place.say(f"soak of {place.policy.name}: {_line(place.settle(min(20.0, options.settle)))}")
        if dead := place.dead():
            return Soak(number_, 0.0, dead, place.host.oom_kills(), {}, None, "killed while guests were added")
    begun = time.monotonic()
    place.wait(lambda: False, seconds)
    end = time.monotonic()
    lines = {name: reports.lines for name, (_guest, reports) in place.guests.items()}
    return Soak(
        guests=count,
        seconds=end - begun,
        dead=place.dead(),
        oom_kills=place.host.oom_kills(),
        below={name: longest_below(one, SOAK_WELL * place.solo, begun, end) for name, one in lines.items()},
        p99_ms=percentile((ms for one in lines.values() for ms in worst(one, begun, end)), 0.99),
    )


class Run:
    """Everything that is measured in one run, and the tables of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        policy = options.host_file.read_text() if options.host_file else HOST_FILE
        self.settings = Settings(options.every, policy, options.mom, options.low, options.reporting, options.verbose)
        self.document: dict[str, Any] = {"host": about(options), "density": [], "release": [], "soak": []}

    def densities(self) -> None:
        """A table for each mix and kind of swap."""
        for mix in self.options.mix:
            for swap in self.options.swap:
                rows, none = [], None
                for policy in self.options.policies:
                    with lab(self.options.limit, swap == "zram", policy, self.settings) as place:
                        steps = density(place, mix, self.options)
                    best = most(steps)
                    none = (best.guests if best else 0) if policy == "none" else none
                    rows.append(density_row((mix, swap, policy), steps, none))
                    self._keep("density", {"mix": mix, "swap": swap, "policy": policy}, list(map(asdict, steps)))
                print(table(DENSITY_HEAD, rows), flush=True)

    def releases(self) -> None:
        """One table."""
        rows = []
        for swap in self.options.swap:
            for policy in self.options.policies:
                # What a guest was never given cannot be freed.
                with lab(self.options.limit, swap == "zram", policy, replace(self.settings, low=0)) as place:
                    found = release(place)
                rows.append((swap, policy, number(found.seconds), percent(found.released), number(found.relief),
                             number(found.worst_ms, 0), " ".join(found.dead) or "-"))  # fmt: skip
                self._keep("release", {"swap": swap, "policy": policy}, asdict(found))
        head = ("swap", "policy", "third freed in s", "freed", "relief s", "worst ms", "killed")
        print(table(head, rows), flush=True)

    def soaks(self) -> None:
        """One table."""
        rows = []
        for swap in self.options.swap:
            for policy in self.options.policies:
                with lab(self.options.limit, swap == "zram", policy, self.settings) as place:
                    found = soak(place, self.options.mix[0], self.options)
                rows.append((self.options.mix[0], swap, policy, str(found.guests), number(found.seconds, 0),
                             str(len(found.dead)), number(max(found.below.values(), default=None)),
                             number(found.p99_ms, 0), found.refused or "-"))  # fmt: skip
                self._keep("soak", {"mix": self.options.mix[0], "swap": swap, "policy": policy}, asdict(found))
        head = ("mix", "swap", "policy", "guests", "seconds", "killed", "below 90 % s", "p99 ms", "why not")
        print(table(head, rows), flush=True)

    def _keep(self, scenario: str, key: dict[str, str], found: Any) -> None:
        self.document[scenario].append({"key": key, "found": found})
        write_json(self.options.json, self.document)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of."""
    names = ("limit", "settle", "minutes", "every", "low", "most", "reporting")
    return {"kernel": platform.release(), "guest_mib": SIZE, "rate": RATE} | {
        name: getattr(options, name) for name in names
    }


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(name: str, possible: Iterable[str], default: tuple[str, ...]) -> None:
        known = tuple(possible)
        parser.add_argument(f"--{name}", type=partial(chosen, possible=known), default=default, metavar="NAME,…")

    several("scenario", SCENARIOS, SCENARIOS)
    several("policies", POLICIES, POLICIES)
    several("mix", MIXES, ("standard", "homogeneous", "diverse"))
    several("swap", SWAPS, SWAPS)
    parser.add_argument("--limit", type=parse_size, default=parse_size("3GiB"), help="the host's memory")
    parser.add_argument("--most", type=int, default=24, help="guests that are tried at most")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds for each step of a density at most")
    parser.add_argument("--first", type=int, default=1, help="guests from which on a density is measured")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a soak")
    parser.add_argument("--every", type=int, default=5, help="seconds between two ticks of kvmctl")
    parser.add_argument("--host-file", type=Path, metavar="FILE", help="kvmctl's host policy")
    parser.add_argument("--low", type=int, default=LOW, help="MiB that kvmctl's guests start with; 0: all")
    parser.add_argument("--reporting", action="store_true", help="everybody's guests report free pages")
    parser.add_argument("--mom", type=Path, metavar="PATH", help="a checkout of MoM, to run itself and not its law")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell each step as it comes")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print the tables, write the figures as they come."""
    options = read_options()
    # As Ctrl-C does: everything is put back.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("bench: terminated"))
    run = Run(options)
    todo = {"density": run.densities, "release": run.releases, "soak": run.soaks}
    for name in options.scenario:
        todo[name]()


if __name__ == "__main__":
    main()
