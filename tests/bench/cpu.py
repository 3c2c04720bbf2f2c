"""How true shares, reservations and limits are: busy real guests under virsh's weights, kvmctl's, and its tick.

    python -m tests.bench.cpu [--scenario NAME,…] [--columns raw,static,tick] [--hosts quiet,busy] [--seconds 25]
                              [--warm-up 15] [--rounds 1] [--guests linux|firmware] [--json FILE] [-v]

Needs qemu:///system, root, and a host on which no other guest runs. Guests are named kvmctl-test-bench-N and are
removed at the end. They run Linux, emulated where it does not boot under KVM; or under KVM nothing but a loop. Each
scenario is for two cores of the host, and repeated for each two more.

    host       quiet, or busy: with one process for each two cores that wants a core
    weights    raw: shares and limit as `virsh schedinfo` sets them; static: as `kvmctl apply` leaves them;
               tick: with `kvmctl rebalance` running since the warm-up
    error      by how much a guest's part of what all guests had differs from its entitlement, of the worst guest
    shortfall  the part of a reservation that its guest did not get
    overshoot  by how much a guest exceeded its limit
    late       the part a sleeper misses of its entitlement as it is while all guests are awake, for the time that
               it is; a window that is no multiple of its period makes some per cent of that
    guests     cores that all guests used, and `total` with the busy processes; `of raw`: that against raw weights
    tick       the CPU that the tick took, in per cent of one core

Of several rounds the worst is shown, and the mean of cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kvmctl.host import cgroup, cpu
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from tests.bench.cli import NAME, URI, remove_guests
from tests.bench.columns import COLUMNS, Kvmctl, put_back, set_raw, ticking, top_weights
from tests.bench.figures import Figures, as_data, figures, guest_lines, head, row, summary
from tests.bench.measure import Target, busy_processes, target, watch
from tests.bench.scenarios import SCENARIOS, BenchGuest, guest_file, scenario
from tests.bench.systems import SYSTEMS, System
from tests.bench.timing import write_json
from tests.support import Guest

HOSTS = ("quiet", "busy")
SETTLE = 5.0
"""Seconds that new weights are given before they are measured."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be measured."""

    columns: tuple[str, ...]
    hosts: tuple[str, ...]
    seconds: float
    warm_up: float
    rounds: int
    verbose: bool


@dataclass(frozen=True, slots=True)
class Running:
    """The guests of one scenario, all at work."""

    scenario: str
    hypervisor: Hypervisor
    folder: Path
    guests: tuple[BenchGuest, ...]
    before: dict[Path, int]
    """Weights below the cgroups' root, from before the guests were made."""
    targets: tuple[Target, ...] = ()

    @property
    def file(self) -> Path:
        return self.folder / "guests.yaml"


@contextmanager
def running(name: str, hypervisor: Hypervisor, system: System, folder: Path) -> Iterator[Running]:
    """The guests of a scenario, until the block ends."""
    before = top_weights()
    guests = scenario(name, os.cpu_count() or 1)
    lab = Running(name, hypervisor, folder, guests, before)
    lab.file.write_text(guest_file(guests, partial(system.keys, folder=folder)))
    try:
        Kvmctl(folder / "made").run("apply", "-f", str(lab.file))
        for guest in guests:
            system.wait(hypervisor, guest)
        found = [target(guest.name, Guest(hypervisor, guest.name).domain.UUIDString()) for guest in guests]
        yield replace(lab, targets=tuple(found))
    finally:
        remove_guests(hypervisor.connection)


def measure(lab: Running, host: str, column: str, settings: Settings) -> Figures:
    """One window. Everything that a former column left is undone first, and what this one did is at its end."""
    kvmctl = Kvmctl(Path(tempfile.mkdtemp(dir=lab.folder)))
    cores = os.cpu_count() or 1
    try:
        set_raw(lab.hypervisor.connection, lab.guests, lab.targets)
        if column != "raw":
            kvmctl.run("apply", "-f", str(lab.file))
        with ExitStack() as stack:
            busy = stack.enter_context(busy_processes(max(1, cores // 2) if host == "busy" else 0))
            tick = None
            if column == "tick":
                tick = stack.enter_context(ticking(kvmctl, settings.warm_up + 2 * settings.seconds))
            time.sleep(settings.warm_up if tick else SETTLE)
            window = watch(lab.targets, busy, settings.seconds)
    finally:
        put_back(kvmctl, lab.before, lab.targets[0].version)
    key = (lab.scenario, host, column)
    return figures(key, lab.guests, window, tick.cores if tick else None)


def run(lab: Running, settings: Settings) -> list[list[Figures]]:
    """All windows of a scenario: a list of rounds for each kind of host and column."""
    kinds = list(itertools.product(settings.hosts, settings.columns))
    found: dict[tuple[str, str], list[Figures]] = {kind: [] for kind in kinds}
    for number in range(settings.rounds):
        for host, column in kinds:
            print(f"bench: {lab.scenario}, {host}, {column}, round {number + 1}", file=sys.stderr, flush=True)
            found[host, column].append(measure(lab, host, column, settings))
            if settings.verbose:
                print("\n".join(guest_lines(found[host, column][-1])), file=sys.stderr, flush=True)
    return list(found.values())


def show(found: Sequence[Sequence[Figures]]) -> None:
    """Print the lines of a scenario."""
    raw = {rounds[0].key[1]: rounds for rounds in found if rounds[0].key[2] == "raw"}
    for rounds in found:
        print(row(summary(rounds, raw.get(rounds[0].key[1], ()))), flush=True)


def about(hypervisor: Hypervisor, system: System) -> dict[str, Any]:
    """The host that the figures are of."""
    autogroup = Path("/proc/sys/kernel/sched_autogroup_enabled")
    return {
        "cpu": cpu.read().model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "cgroup_version": cgroup.version(),
        "libvirt": hypervisor.connection.getLibVersion(),
        "qemu": hypervisor.connection.getVersion(),
        "accelerator": system.accelerator,
        "autogroup": autogroup.exists() and autogroup.read_text().strip() == "1",
    }


def refuse_company(connection: Any) -> None:
    """Guests of others would take part in what is measured."""
    others = [domain.name() for domain in connection.listAllDomains() if domain.isActive()]
    if others := sorted(name for name in others if not name.startswith(NAME)):
        raise SystemExit(f"other guests are running, and would be measured too: stop {', '.join(others)}")


def chosen(text: str, possible: Iterable[str]) -> tuple[str, ...]:
    """The words of an option, in the order in which they are measured. Raises ArgumentTypeError."""
    words, known = text.split(","), tuple(possible)
    if unknown := set(words) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return tuple(word for word in known if word in words)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, possible in (("scenario", SCENARIOS), ("columns", COLUMNS), ("hosts", HOSTS)):
        parser.add_argument(
            f"--{name}", type=partial(chosen, possible=possible), default=tuple(possible), metavar="NAME,…"
        )
    parser.add_argument("--guests", choices=SYSTEMS, default="linux")
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--warm-up", type=float, default=15.0, help="seconds that the tick runs before the window")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what each guest got, as it comes")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write the figures as they come."""
    options = read_options()
    # As Ctrl-C does: everything is put back.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("bench: terminated"))
    names = ("columns", "hosts", "seconds", "warm_up", "rounds", "verbose")
    settings = Settings(**{name: getattr(options, name) for name in names})
    system: System = SYSTEMS[options.guests]()
    with open_hypervisor(URI) as hypervisor:
        refuse_company(hypervisor.connection)
        remove_guests(hypervisor.connection)
        document: dict[str, Any] = {"host": about(hypervisor, system), "settings": asdict(settings), "windows": []}
        print(head(), flush=True)
        for name in options.scenario:
            with tempfile.TemporaryDirectory() as folder, running(name, hypervisor, system, Path(folder)) as lab:
                found = run(lab, settings)
            show(found)
            document["windows"] += [as_data(one) for rounds in found for one in rounds]
            write_json(options.json, document)


if __name__ == "__main__":
    main()
