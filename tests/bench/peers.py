"""The laws by which other open programs share a host's memory, written anew from what they publish, each as a loop to
be run inside a host:

    python -m tests.bench.peers ksmtuned|mom|proxmox [--uri URI] [-v]

Where a law leaves something open, the peer gets the better of it: ksmtuned sees libvirt's guests, which Debian's does
not; guests of Proxmox have a floor, without which it leaves them alone.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.machine import ksm_counters, set_ksm

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class HostView:
    """Bytes. `free` is what could be had at once, caches included."""

    total: int
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free


@dataclass(frozen=True, slots=True)
class GuestView:
    """Bytes. `balloon` is what the guest has now, `unused` what of it is free; None: its driver says nothing."""

    name: str
    size: int
    balloon: int
    unused: int | None


@dataclass(frozen=True, slots=True)
class Scan:
    """What KSM is told to do: `pages` are scanned, then it sleeps for so many milliseconds."""

    run: bool
    pages: int
    sleep: int


Targets = dict[str, int]
"""Bytes that guests are told to have, by name."""

SCAN_LEAST, SCAN_MOST, SCAN_BOOST, SCAN_DECAY = 64, 1250, 300, -50
SCAN_SLEEP = 10
"""Milliseconds on a host of 16 GiB; smaller ones sleep longer."""


def _paced(short: bool, pages: int, total: int) -> Scan:
    pages = min(SCAN_MOST, max(SCAN_LEAST, pages + (SCAN_BOOST if short else SCAN_DECAY)))
    return Scan(True, pages, max(SCAN_SLEEP, SCAN_SLEEP * 16 * _GIB // total))


def ksmtuned(host: HostView, committed: int, pages: int) -> Scan:
    """ksmtuned's: `committed` bytes are the guests' virtual sizes, `pages` what it had the kernel scan so far.

    Its threshold is 20 % of memory, 2 GiB at least; it stops while everything committed leaves more than that.
    """
    threshold = max(host.total * 20 // 100, 2 * _GIB)
    if committed + threshold < host.total and host.free > threshold:
        return Scan(False, pages, SCAN_SLEEP)
    return _paced(host.free < threshold, pages, host.total)


MOM_PRESSURE, MOM_CRITICAL = 0.20, 0.05
MOM_GUEST_FREE = 0.20
MOM_CHANGE, MOM_LEAST_CHANGE = 0.05, 0.0025


def mom_ksm(host: HostView, committed: int, pages: int) -> Scan:
    """MoM's rules for KSM: as ksmtuned's, with 20 % of memory as threshold."""
    threshold = int(host.total * MOM_PRESSURE)
    if committed + threshold < host.total and host.free > threshold:
        return Scan(False, pages, SCAN_SLEEP)
    return _paced(host.free < threshold, pages, host.total)


def mom(host: HostView, guests: Sequence[GuestView], averages: Mapping[str, float], floor: int = 0) -> Targets:
    """MoM's rules for balloons. `host.free` is an average, and `averages` are those of what each guest uses, in bytes.

    A guest may be taken down to the lesser of what it needs and its `floor`, and plain libvirt guests have none.
    """
    free = host.free / host.total
    targets: Targets = {}
    for guest in guests:
        if guest.name not in averages:
            continue
        spare = MOM_GUEST_FREE * min(1.0, free / MOM_PRESSURE) if free > MOM_CRITICAL else free - 0.05
        least = min(floor, averages[guest.name] + spare * guest.balloon)
        if free < MOM_PRESSURE:
            wanted = max(least, guest.balloon * (1 - MOM_CHANGE))
            due = wanted <= guest.balloon
        else:
            wanted = max(least, min(guest.size, guest.balloon * (1 + MOM_CHANGE)))
            due = guest.balloon < guest.size
        if due and abs(wanted - guest.balloon) > MOM_LEAST_CHANGE * guest.balloon:
            targets[guest.name] = int(wanted)
    return targets


PROXMOX_USE = 0.80
PROXMOX_CHANGE = 100 * _MIB
PROXMOX_DEAD = 10 * _MIB


def proxmox(host: HostView, guests: Sequence[GuestView], floor: int) -> Targets:
    """Proxmox's, of guests of equal shares that may all be taken down to `floor` bytes.

    Towards 80 % of the host in use; it takes from guests with free memory first, from all where there are none, and
    gives to those without first. What is above the floors is to be equal.
    """
    goal = int(host.total * PROXMOX_USE - host.used)
    if abs(goal) <= PROXMOX_DEAD:
        return {}
    easy = [one for one in guests if (one.unused or 0) > floor // 4 and one.balloon >= floor]
    tight = [one for one in guests if one not in easy]
    for group in (tight if goal > 0 else easy, list(guests)):
        if targets := _level(goal, group, floor):
            return targets
    return {}


def _level(goal: int, guests: Sequence[GuestView], floor: int) -> Targets:
    """Change the sum by `goal`, no guest by more than 100 MiB, towards equal parts above the floor."""
    targets: Targets = {}
    rest, done = goal, set[str]()
    while rest and len(done) < len(guests):
        left = [one for one in guests if one.name not in done]
        before = sum(targets.get(one.name, one.balloon) - floor for one in left)
        part, changed = (before + rest) // len(left), 0
        for one in left:
            desired = min(one.size, max(floor, floor + part))
            if goal > 0 and desired > one.balloon:
                new = min(desired, one.balloon + PROXMOX_CHANGE)
            elif desired < one.balloon:
                new = max(desired, one.balloon - PROXMOX_CHANGE)
            else:
                done.add(one.name)
                continue
            changed += new - targets.get(one.name, one.balloon)
            targets[one.name] = new
        if not changed:
            break
        rest -= changed
    return targets


@dataclass(slots=True)
class Loop:
    """What a law is given, and what becomes of its decisions."""

    connection: Any
    verbose: bool = False
    pages: int = 0
    _averages: dict[str, list[int]] = field(default_factory=dict)

    def average(self, key: str, value: int, samples: int = 10) -> float:
        """The mean of the last readings."""
        kept = self._averages.setdefault(key, [])
        kept.append(value)
        del kept[:-samples]
        return sum(kept) / len(kept)

    def host(self) -> HostView:
        """This host, as its /proc/meminfo has it."""
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
        free = sum(int(found[key]) for key in ("MemFree", "Buffers", "Cached"))
        return HostView(int(found["MemTotal"]) * 1024, free * 1024)

    def guests(self) -> list[GuestView]:
        """Those that run; statistics older than 10 s are as good as none."""
        import libvirt

        views = []
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING
        for domain, stats in self.connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_BALLOON, flags):
            unused = stats.get("balloon.unused")
            fresh = time.time() - stats.get("balloon.last-update", 0) <= 10
            current, size = stats["balloon.current"] * 1024, stats["balloon.maximum"] * 1024
            known = unused * 1024 if fresh and unused is not None else None
            views.append(GuestView(domain.name(), size, current, known))
        return views

    def committed(self) -> int:
        """Virtual sizes of the guests' processes, in bytes."""
        total = 0
        for status in Path("/run/libvirt/qemu").glob("*.pid"):
            pid = status.read_text().strip()
            found = re.search(r"^VmSize:\s+(\d+) kB$", _text(Path("/proc") / pid / "status"), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
        return total

    def balloon(self, targets: Targets) -> None:
        """Tell guests what to have."""
        import libvirt

        for name, size in targets.items():
            try:
                self.connection.lookupByName(name).setMemoryFlags(size // 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                print(f"{name}: {error}", flush=True)
        if self.verbose and targets:
            print("targets", {name: size // _MIB for name, size in targets.items()}, flush=True)

    def scan(self, law: Callable[[HostView, int, int], Scan], host: HostView) -> None:
        """Tell KSM what to do."""
        found = law(host, self.committed(), self.pages)
        self.pages = found.pages
        if found.run:
            set_ksm({"pages_to_scan": str(found.pages), "sleep_millisecs": str(found.sleep), "run": "1"})
        elif ksm_counters().run:
            set_ksm({"run": "0"})
        if self.verbose:
            print(f"free {host.free // _MIB} of {host.total // _MIB} MiB, {found}", flush=True)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


KSMTUNED_SECONDS, MOM_SECONDS, PROXMOX_SECONDS = 60.0, 10.0, 10.0
PROXMOX_FLOOR = 320 * _MIB
"""About what the guests of the standard mix need: the best that the one who sets it can do for a guest of 512 MiB."""


def run_ksmtuned(loop: Loop) -> None:
    """Without end."""
    while True:
        loop.scan(ksmtuned, loop.host())
        time.sleep(KSMTUNED_SECONDS)


def run_mom(loop: Loop) -> None:
    """Looks every 5 s, decides every 10 s over averages of 50 s."""
    while True:
        for _look in range(2):
            host, guests = loop.host(), loop.guests()
            averaged = HostView(host.total, int(loop.average("", host.free)))
            used = {
                one.name: loop.average(one.name, one.balloon - one.unused) for one in guests if one.unused is not None
            }
            time.sleep(MOM_SECONDS / 2)
        loop.balloon(mom(averaged, guests, used))
        loop.scan(mom_ksm, averaged)


def run_proxmox(loop: Loop, floor: int = PROXMOX_FLOOR) -> None:
    """Balloons every 10 s, and its ksmtuned every 60 s."""
    tuned = 0.0
    while True:
        host = loop.host()
        loop.balloon(proxmox(host, [one for one in loop.guests() if one.unused is not None], floor))
        if time.monotonic() - tuned >= KSMTUNED_SECONDS:
            loop.scan(ksmtuned, host)
            tuned = time.monotonic()
        time.sleep(PROXMOX_SECONDS)


LAWS: dict[str, Callable[[Loop], None]] = {"ksmtuned": run_ksmtuned, "mom": run_mom, "proxmox": run_proxmox}


def main() -> None:
    """Run one law until it is ended."""
    import libvirt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("law", choices=LAWS)
    parser.add_argument("--uri", default="qemu:///system")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    LAWS[options.law](Loop(libvirt.open(options.uri), options.verbose))


if __name__ == "__main__":
    main()
