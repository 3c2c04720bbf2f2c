"""What moving guests costs: `kvmctl migrate` and `virsh migrate` of the same guest in turn, forecasts against what
happened, and guests that leave a host one by one and together.

    python -m tests.bench.migrate [--rounds N] [--guests N] [--json FILE]

Makes two hosts in namespaces with a cable between them, and micro guests of 128 MiB. About three minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import libvirt

from kvmctl.bootstrap import microguest, orphans
from kvmctl.host import accelerator
from tests.bench.timing import write_json
from tests.pair import Pair, PairHost, make_image, pair
from tests.support import PREFIX, Console, Guest

REST = 3.0
"""Seconds that the guest has been on a host before it is moved again: one that has just arrived changes less of its
memory, since its emulated CPU has to translate its code first, and so its downtime is less."""
_LEARNING = 2
LIMITS = (16, 48)
"""MiB a second of the moves that forecasts are checked by, beside those without a limit."""


@dataclass
class Figures:
    """Seconds."""

    virsh: list[float] = field(default_factory=list)
    virsh_downtime: list[float] = field(default_factory=list)
    kvmctl: list[float] = field(default_factory=list)
    """The move itself, as kvmctl tells it."""
    kvmctl_command: list[float] = field(default_factory=list)
    """The whole command, with preflight and a second in which is measured what the guest changes."""
    kvmctl_downtime: list[float] = field(default_factory=list)
    check: list[float] = field(default_factory=list)
    """The whole of `kvmctl migrate --check`."""
    start: list[float] = field(default_factory=list)
    """`kvmctl --version`: what every command costs before it does anything."""
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    drained: dict[str, float] = field(default_factory=dict)


class Bench:
    """Guests that go from one host to the other and back."""

    def __init__(self, hosts: Pair) -> None:
        self.hosts = hosts
        self.figures = Figures()
        micro = microguest.ensure()
        self._kind = "kvm" if accelerator.resolve(micro.kernel).name == "kvm" else "qemu"
        self._micro = micro

    def boot(self, number: int) -> str:
        """Start a guest on the first host, and wait until it answers."""
        name = f"{PREFIX}bench-{number}"
        make_image(self.hosts.shared / f"{name}.qcow2", 32 << 20)
        text = (
            f"<domain type='{self._kind}'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{self._micro.kernel}</kernel>"
            f"<initrd>{self._micro.initrd}</initrd><cmdline>console=ttyS0 quiet micro.spin=1 micro.nap=5:95</cmdline>"
            "</os><features><acpi/></features><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='qcow2' cache='none'/><source file='{self.hosts.shared}/{name}.qcow2'/>"
            "<target dev='vda' bus='virtio'/></disk><serial type='pty'/><memballoon model='virtio'/></devices></domain>"
        )
        with self.hosts.a.open() as hypervisor:
            hypervisor.connection.defineXML(text).create()
            with Console(Guest(hypervisor, name)) as console:
                console.ready()
        return name

    def virsh(self, name: str, here: PairHost, there: PairHost) -> None:
        """Move a guest as virsh does it, with all that kvmctl asks for too."""
        flags = ("--live", "--p2p", "--persistent", "--undefinesource", "--unsafe")
        begun = time.perf_counter()
        done = here.run(["virsh", "-c", "qemu:///system", "migrate", *flags, name, there.tcp])
        self.figures.virsh.append(time.perf_counter() - begun)
        if done.returncode:
            raise SystemExit(f"virsh migrate: {done.stderr}")
        stats = there.domain(name).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)  # type: ignore[union-attr]
        self.figures.virsh_downtime.append(stats["downtime"] / 1000)

    def kvmctl(self, name: str, here: PairHost, there: PairHost, *options: str) -> tuple[dict[str, Any], float]:
        """Move a guest; what kvmctl says of it, and the seconds of the whole command."""
        begun = time.perf_counter()
        done = here.kvmctl("-o", "json", "migrate", name, there.tcp, *options)
        return json.loads(done.stdout)[0], time.perf_counter() - begun

    def compare(self, name: str, rounds: int) -> None:
        """Move a guest there by one and back by the other, in turn; before that each host learns how fast that is."""
        hosts = self.hosts
        for number in range(rounds + _LEARNING):
            if number == _LEARNING:
                self.figures = Figures()
            # Each goes in both directions equally often.
            ends = (hosts.a, hosts.b)
            first, second = (self._virsh, self._kvmctl) if number % 2 else (self._kvmctl, self._virsh)
            for move, (here, there) in ((first, ends), (second, ends[::-1])):
                time.sleep(REST)
                move(name, here, there)
            self._time(self.figures.check, ["migrate", name, hosts.b.tcp, "--check"])
            self._time(self.figures.start, ["--version"])

    def _virsh(self, name: str, here: PairHost, there: PairHost) -> None:
        self.virsh(name, here, there)

    def _kvmctl(self, name: str, here: PairHost, there: PairHost) -> None:
        row, seconds = self.kvmctl(name, here, there)
        self.figures.kvmctl.append(row["seconds"])
        self.figures.kvmctl_command.append(seconds)
        self.figures.kvmctl_downtime.append(row["downtime"])
        self._keep(row, None)

    def _time(self, figures: list[float], words: Sequence[str]) -> None:
        begun = time.perf_counter()
        self.hosts.a.kvmctl(*words)
        figures.append(time.perf_counter() - begun)

    def _keep(self, row: dict[str, Any], limit: int | None) -> None:
        kept = {key: row[key] for key in ("expected_seconds", "seconds", "expected_downtime", "downtime", "sent")}
        self.figures.forecasts.append({"limit": limit, **kept})

    def forecast(self, name: str) -> None:
        """Moves at limited speed, there and back."""
        for limit in LIMITS:
            for here, there in ((self.hosts.a, self.hosts.b), (self.hosts.b, self.hosts.a)):
                row, _seconds = self.kvmctl(name, here, there, "--bandwidth", f"{limit}MiB/s")
                self._keep(row, limit)

    def drain(self, names: Sequence[str]) -> None:
        """All guests leave one by one, come back together, and leave again in fours."""
        ways = (("1", self.hosts.a, self.hosts.b), (str(len(names)), self.hosts.b, self.hosts.a))
        for jobs, here, there in (*ways, ("4", self.hosts.a, self.hosts.b)):
            begun = time.perf_counter()
            here.kvmctl("migrate", *names, there.tcp, "--jobs", jobs)
            self.figures.drained[jobs] = time.perf_counter() - begun


def report(found: Figures) -> str:
    """A table for people."""
    virsh, move, downtime = (statistics.median(values) for values in (found.virsh, found.kvmctl, found.virsh_downtime))
    whole, check, start = (statistics.median(one) for one in (found.kvmctl_command, found.check, found.start))
    ours = statistics.median(found.kvmctl_downtime)
    lines = [
        f"{'':<44} {'median':>9}  ratio",
        f"{'virsh migrate':<44} {virsh * 1000:7.0f}ms   1.00",
        f"{'kvmctl migrate, the move':<44} {move * 1000:7.0f}ms  {move / virsh:5.2f}",
        f"{'kvmctl migrate, the whole command':<44} {whole * 1000:7.0f}ms  {whole / virsh:5.2f}",
        f"{'downtime, virsh':<44} {downtime * 1000:7.0f}ms   1.00",
        f"{'downtime, kvmctl':<44} {ours * 1000:7.0f}ms  {ours / downtime:5.2f}",
        f"{'kvmctl migrate --check':<44} {check * 1000:7.0f}ms",
        f"{'  of it, to start':<44} {start * 1000:7.0f}ms",
        "",
        f"{'limit':<10} {'expected':>9} {'real':>9}  error",
    ]
    for one in found.forecasts:
        limit = f"{one['limit']} MiB/s" if one["limit"] else "none"
        error = one["expected_seconds"] / one["seconds"] - 1
        lines.append(f"{limit:<10} {one['expected_seconds']:8.2f}s {one['seconds']:8.2f}s  {error:+.0%}")
    lines.append("")
    alone = found.drained["1"]
    lines += [
        f"drained, {jobs:>2} at a time: {seconds:6.1f}s  {seconds / alone:5.2f}"
        for jobs, seconds in found.drained.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description="kvmctl migrate against virsh migrate, forecasts, and a drained host")
    parser.add_argument("--rounds", type=int, default=4, help="of the comparison, beside one that warms up")
    parser.add_argument("--guests", type=int, default=8, help="that leave a host")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    # A move ends once somebody has waited for the QEMU at the source.
    orphans.wait_for_them()
    with pair() as hosts:
        bench = Bench(hosts)
        first = bench.boot(0)
        bench.compare(first, options.rounds)
        bench.forecast(first)
        print("bench: compared", file=sys.stderr, flush=True)
        names = [first, *(bench.boot(number) for number in range(1, options.guests))]
        bench.drain(names)
        print(report(bench.figures))
        write_json(options.json, asdict(bench.figures))


if __name__ == "__main__":
    main()
