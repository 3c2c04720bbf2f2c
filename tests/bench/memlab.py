"""A small host with guests at work and one policy: guests are added, waited for, and read."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kvmctl.hypervisor.connection import Hypervisor
from tests.bench import machine, memfigures
from tests.bench.memfigures import WELL, Step
from tests.bench.memguest import RATE, SIZE, Guest, Reports, Workshop
from tests.bench.mempolicies import Policy, Settings, governed, ksmd
from tests.bench.smallhost import SmallHost, small_host

MIB = 1 << 20
WINDOW = 10.0
"""Seconds over which rates are taken."""
BOOT = 150.0
"""Seconds that a guest may take until it works."""
ROOM = (SIZE + 64) * MIB
"""Free memory at which the next guest is started without waiting for more."""
SLACK = 16 * MIB
"""By how much memory and zram may be over the budget for a moment."""


class Charge:
    """Lowers the host's limit by what zram itself takes, so that guests and zram together have the budget."""

    def __init__(self, host: SmallHost, device: str) -> None:
        self.device = device
        self._host = host
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(0.25):
            with suppress(OSError):
                self._host.set_limit(self._host.budget - self.used()[0])

    def used(self) -> tuple[int, int]:
        """Bytes that zram takes, and bytes that are swapped to it."""
        return machine.zram_used(self.device)

    @contextmanager
    def charging(self) -> Iterator[None]:
        """Until the block ends."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
            self._host.set_limit(self._host.budget)


@dataclass(slots=True)
class Lab:
    """What runs in the host now."""

    host: SmallHost
    hypervisor: Hypervisor
    workshop: Workshop
    policy: Policy
    charge: Charge | None
    verbose: bool
    guests: dict[str, tuple[Guest, Reports]] = field(default_factory=dict)
    solo: float = float(RATE)
    """Touches a second of a guest that is alone: as many as it asks for, or it is said that the machine is too slow."""

    def add(self, guest: Guest) -> str:
        """Start a guest; why the policy refuses it, else nothing."""
        reports = self.workshop.prepare(guest)
        if refused := self.policy.start(guest, self.workshop):
            return refused
        self.guests[guest.name] = (guest, reports)
        return ""

    def poll(self) -> None:
        """Take in what the guests said."""
        for _guest, reports in self.guests.values():
            reports.poll()

    def dead(self) -> tuple[str, ...]:
        """Guests that run no more."""
        running = {one.name() for one in self.hypervisor.connection.listAllDomains() if one.isActive()}
        return tuple(name for name in self.guests if name not in running)

    def wait(self, good: Callable[[], bool], seconds: float) -> bool:
        """Poll once a second until it is good; False after so many seconds, or when a guest is gone."""
        deadline = time.monotonic() + seconds
        while True:
            self.poll()
            if good():
                return True
            if time.monotonic() > deadline or self.dead():
                return False
            if said := self.policy.complaint():
                raise SystemExit(f"bench: {said}")
            if said := self.policy.disturbed():
                raise SystemExit(f"bench: {said}: these figures would not be of {self.policy.name}")
            time.sleep(0.5)

    def all_ready(self) -> bool:
        """Whether every guest works."""
        return all(reports.ready for _guest, reports in self.guests.values())

    def least(self, seconds: float = WINDOW) -> float:
        """The part of its solo rate that the worst guest kept over the last seconds."""
        end = time.monotonic()
        return min(memfigures.rate(reports.lines, end - seconds - 1, end) for _, reports in self.guests.values()) / (
            self.solo
        )

    def over(self) -> int:
        """Bytes by which memory and zram are over the budget."""
        zram = self.charge.used()[0] if self.charge else 0
        return self.host.memory().usage + zram - self.host.budget

    def settle(self, seconds: float) -> Step:
        """Wait until all guests are well and there is room for another, or for so many seconds after the newest works;
        what is so then."""
        begun, before = time.monotonic(), self._cpu()
        self.wait(self.all_ready, BOOT)
        ready = time.monotonic()

        def settled() -> bool:
            if time.monotonic() < ready + WINDOW + 2:
                return False
            return self.least() >= WELL and self.host.memory().free >= ROOM

        self.wait(settled, seconds)
        return self._step(begun, before)

    def _cpu(self) -> tuple[float, float, float | None]:
        return time.monotonic(), ksmd(), self.policy.cpu()

    def _step(self, begun: float, before: tuple[float, float, float | None]) -> Step:
        self.poll()
        now, merging, policy = self._cpu()
        memory, counters = self.host.memory(), machine.ksm_counters()
        lines = [reports.lines for _guest, reports in self.guests.values()]
        late = (ms for one in lines for ms in memfigures.worst(one, now - WINDOW, now))
        taken = None if policy is None or before[2] is None else (policy - before[2]) / (now - before[0])
        return Step(
            guests=len(self.guests),
            least=self.least() if self.all_ready() else 0.0,
            p99_ms=memfigures.percentile(late, 0.99),
            usage=memory.usage,
            free=memory.free,
            shared=counters.sharing + counters.zero,
            swapped=memory.swapped,
            zram=self.charge.used()[0] if self.charge else 0,
            balloons=sum(self.balloons().values()),
            ksmd=(merging - before[1]) / (now - before[0]),
            controller=taken,
            seconds=now - begun,
            dead=self.dead(),
            refused="" if self.over() <= SLACK else f"over the budget by {self.over() // MIB} MiB",
        )

    def balloons(self) -> dict[str, int]:
        """Bytes that each running guest's balloon leaves it."""
        found = {}
        for domain in self.hypervisor.connection.listAllDomains():
            if domain.isActive():
                found[domain.name()] = domain.info()[2] * 1024
        return found

    def say(self, text: str) -> None:
        """Tell what goes on."""
        if self.verbose:
            print(f"bench: {text}", file=sys.stderr, flush=True)


@contextmanager
def lab(budget: int, swap: bool, policy: str, settings: Settings) -> Iterator[Lab]:
    """A small host of so many bytes, with zram swap or none, under a policy."""
    with small_host(budget) as host:
        charge = Charge(host, machine.add_zram(host.folder, 2 * budget)) if swap else None
        with host.open() as hypervisor, governed(policy, host, settings) as at_work:
            found = Lab(host, hypervisor, Workshop(_folder(host)), at_work, charge, settings.verbose)
            if charge is None:
                yield found
            else:
                with charge.charging():
                    yield found


def _folder(host: SmallHost) -> Path:
    folder = host.folder / "guests"
    folder.mkdir(mode=0o755)
    return folder


HOG = """
import sys, time
part, file = float(sys.argv[1]), sys.argv[2]
held, chunk = [], 8 << 20
def figure(name):
    with open("/sys/fs/cgroup/memory/memory." + name) as text:
        return int(text.read())
while True:
    limit = figure("limit_in_bytes")
    if limit - figure("usage_in_bytes") - chunk > part * limit:
        held.append(bytearray(chunk))
        for at in range(0, chunk, 4096):
            held[-1][at] = 1
    else:
        time.sleep(0.05)
    with open(file, "w") as text:
        text.write(str(len(held) * chunk))
"""
"""Takes whatever memory is free in its host but a part of it, and says how much it holds."""


class Hog:
    """A process in the host that leaves `part` of its memory free, and takes all that becomes free beyond that."""

    def __init__(self, host: SmallHost, part: float) -> None:
        self._file = host.folder / "hog"
        self.process = host.spawn([sys.executable, "-c", HOG, str(part), str(self._file)], log="hog.log")

    def held(self) -> int:
        """Bytes."""
        try:
            return int(self._file.read_text() or 0)
        except FileNotFoundError:
            return 0


@contextmanager
def hogging(host: SmallHost, part: float) -> Iterator[Hog]:
    """A hog, which gives all back at the end of the block."""
    hog = Hog(host, part)
    try:
        yield hog
    finally:
        hog.process.kill()
        hog.process.wait()
