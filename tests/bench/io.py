"""What an emulated disk and nic cost against paravirtual ones, and how true the ceilings of these are.

    python -m tests.bench.io [--seconds 8] [--rounds 1] [--json FILE] [--parts modes,ceilings]

Needs qemu:///system with its network `default`, root, and a host on which no other guest runs. One guest at a time,
kvmctl-test-bench-MODE, removed at the end: q35, one vCPU, a disk of 256 MiB in the host's memory and a nic on a bridge.
Emulated are SATA and e1000e; paravirtual virtio-blk with a thread of its own and virtio-net.

    read, write   `dd` past the guest's cache: 1 MiB blocks for the rate, 4 KiB for operations, by one program and by
                  four at once
    nic           TCP from the host, datagrams of the guest's kernel to it, and echo requests one after the other
    CPU           of QEMU, all threads, in milliseconds per MiB moved, or microseconds per operation
    ratio         paravirtual against emulated; above 1 it is more
    ceilings      what is set live by `kvmctl set` against what comes through after it: of the disk as the guest
                  counts, of the nic in bytes of whole packets; error in per cent

Of several rounds the median is shown.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvmctl.bootstrap import microguest
from kvmctl.host import accelerator, cpu, traffic
from kvmctl.hypervisor.connection import Hypervisor, open_hypervisor
from kvmctl.model.units import MIB
from tests.bench.cli import URI, remove_guests
from tests.bench.columns import Kvmctl
from tests.bench.cpu import chosen, refuse_company
from tests.bench.ioguest import Done, IoGuest, booted, memory_folder
from tests.bench.timing import write_json

MODES = ("emulated", "paravirtual")
PARTS = ("modes", "ceilings")
ALLOWED = 5.0
"""Per cent that a ceiling may be off."""
SETTLE = 2
"""Seconds of use before a ceiling is measured: what was saved up is used up then."""

Measures = Mapping[str, float]


def measure(guest: IoGuest, seconds: int) -> dict[str, float]:
    """Everything of one guest once, by what stands in the table."""
    found: dict[str, float] = {}
    for way in ("read", "write"):
        big = guest.disk_io(way, "1M", seconds)
        found |= {f"disk {way} MiB/s": big.rate / MIB, f"disk {way} CPU ms/MiB": _per_mib(big)}
        for streams in (1, 4):
            small = guest.disk_io(way, "4k", seconds, streams)
            found |= {
                f"disk {way} 4k x{streams} iops": small.iops,
                f"disk {way} 4k x{streams} CPU us/op": _per_op(small),
            }
    for way, move in (("receive", guest.receive), ("send", guest.send)):
        moved = move(seconds)
        found |= {f"nic {way} MiB/s": moved.rate / MIB, f"nic {way} CPU ms/MiB": _per_mib(moved)}
    echoes = guest.round_trips(seconds)
    return found | {"nic round trips/s": echoes.iops, "nic round trip CPU us": _per_op(echoes)}


def _per_mib(done: Done) -> float:
    return 1000 * done.cpu * MIB / max(1, done.bytes)


def _per_op(done: Done) -> float:
    return 1_000_000 * done.cpu / max(1, done.operations)


Read = Callable[[IoGuest, int], float]
_MAC = "52:54:00:1d:0b:e0"


def _disk(way: str, block: str, what: str) -> Read:
    return lambda guest, seconds: float(getattr(guest.disk_io(way, block, seconds), what))


CEILINGS: Sequence[tuple[str, str, float, str, Read]] = (
    ("iops", "disks.vda.iops", 200, "200", _disk("read", "4k", "iops")),
    ("iops, of writing", "disks.vda.write-iops", 150, "150", _disk("write", "4k", "iops")),
    ("bandwidth", "disks.vda.bandwidth", 8 * MIB, "8MiB/s", _disk("read", "4k", "rate")),
    ("bandwidth, large blocks", "disks.vda.read-bandwidth", 4 * MIB, "4MiB/s", _disk("read", "1M", "rate")),
    ("bandwidth, of writing", "disks.vda.write-bandwidth", 2 * MIB, "2MiB/s", _disk("write", "4k", "rate")),
    ("nic in, 8 Mbit", f"nics.{_MAC}.bandwidth.in", 1e6, "8Mbit", lambda guest, s: guest.receive(s, SETTLE).rate),
    ("nic in, 40 Mbit", f"nics.{_MAC}.bandwidth.in", 5e6, "40Mbit", lambda guest, s: guest.receive(s, SETTLE).rate),
    ("nic out, 8 Mbit", f"nics.{_MAC}.bandwidth.out", 1e6, "8Mbit", lambda guest, s: guest.arrives(s).rate),
    ("nic out, 40 Mbit", f"nics.{_MAC}.bandwidth.out", 5e6, "40Mbit", lambda guest, s: guest.arrives(s).rate),
)
"""What is limited, the field, the ceiling as a number and as it is written, and how what comes through is read."""


def ceilings(guest: IoGuest, kvmctl: Kvmctl, seconds: int) -> list[dict[str, Any]]:
    """Each ceiling set, used, measured and taken away again."""
    found = []
    for what, field, wanted, written, read in CEILINGS:
        if why := field.startswith("nics") and traffic.missing(field.rpartition(".")[2]):
            print(f"{what:<32} not measured: this kernel cannot ({why})", flush=True)
            continue
        kvmctl.run("set", guest.guest.name, f"{field}={written}")
        if field.startswith("disks"):
            read(guest, SETTLE)
        got = read(guest, seconds)
        kvmctl.run("set", guest.guest.name, f"{field}=unlimited")
        error = 100 * (got / wanted - 1)
        found.append({"ceiling": what, "wanted": wanted, "got": got, "error_percent": error})
        print(f"{what:<32} {wanted:>12.0f} {got:>12.0f} {error:>+7.1f} %", flush=True)
    return found


def show(found: Mapping[str, Sequence[Measures]]) -> dict[str, dict[str, float]]:
    """Print the table of ratios; its figures."""
    print(f"{'':<32} {'emulated':>12} {'paravirtual':>12} {'ratio':>8}")
    table = {}
    for name in found[MODES[0]][0]:
        emulated, paravirtual = (statistics.median(one[name] for one in found[mode]) for mode in MODES)
        ratio = paravirtual / emulated if emulated else float("nan")
        table[name] = {"emulated": emulated, "paravirtual": paravirtual, "ratio": ratio}
        print(f"{name:<32} {emulated:>12.1f} {paravirtual:>12.1f} {ratio:>8.2f}")
    return table


def about(hypervisor: Hypervisor, kind: str) -> dict[str, Any]:
    """The host that the figures are of."""
    return {
        "cpu": cpu.read().model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "libvirt": hypervisor.connection.getLibVersion(),
        "qemu": hypervisor.connection.getVersion(),
        "accelerator": kind,
    }


def main() -> None:
    """Measure, print the tables, write the figures; exit 1 where a ceiling is off by more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parts", type=partial(chosen, possible=PARTS), default=PARTS, metavar="NAME,…")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    # As Ctrl-C does: everything is put back.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("bench: terminated"))
    kind = accelerator.resolve(microguest.ensure().kernel).name
    measured: dict[str, list[Measures]] = {mode: [] for mode in MODES}
    document: dict[str, Any] = {"seconds": options.seconds, "rounds": options.rounds}
    with open_hypervisor(URI) as hypervisor, memory_folder() as folder:
        refuse_company(hypervisor.connection)
        remove_guests(hypervisor.connection)
        document["host"] = about(hypervisor, kind)
        for _ in range(options.rounds if "modes" in options.parts else 0):
            for mode in MODES:
                print(f"bench: {mode}", file=sys.stderr, flush=True)
                with booted(hypervisor, folder, mode, kind) as guest:
                    measured[mode].append(measure(guest, options.seconds))
        if "modes" in options.parts:
            document["modes"] = show(measured)
            write_json(options.json, document)
        if "ceilings" in options.parts:
            print(f"{'ceiling':<32} {'wanted':>12} {'got':>12} {'error':>9}")
            with tempfile.TemporaryDirectory() as state, booted(hypervisor, folder, MODES[1], kind) as guest:
                document["ceilings"] = ceilings(guest, Kvmctl(Path(state)), options.seconds)
            write_json(options.json, document)
    worst = max((abs(one["error_percent"]) for one in document.get("ceilings", ())), default=0.0)
    if worst > ALLOWED:
        raise SystemExit(f"bench: a ceiling is off by {worst:.1f} %, more than {ALLOWED:g} %")


if __name__ == "__main__":
    main()
