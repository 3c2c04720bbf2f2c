"""What one tick of `kvmctl rebalance` costs with many paused guests, against one bare getAllDomainStats.

    python -m tests.bench.tick [--guests 100,300] [--rounds 10] [--json FILE]

Needs qemu:///system, root, and memory: 40 MB for each guest. Guests are named kvmctl-test-bench-N and are removed at
the end. Two comparisons:

    in one process   the ticks of a running `rebalance --for`, as it tells with -v, against the same call made again
                     and again on one connection; the first of each, which looks everything up, is left out
    whole commands   `kvmctl rebalance`, which finds nothing to do, against `python -c` with import, open and the call
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt

from tests.bench.cli import BARE, URI, guest_file, remove_guests
from tests.bench.columns import Kvmctl
from tests.bench.timing import medians, once, quiet_env, table, write_json

AGAIN = f"""
import sys, time, libvirt
connection = libvirt.open({URI!r})
for _number in range(int(sys.argv[1])):
    begun = time.perf_counter()
    connection.getAllDomainStats()
    print(time.perf_counter() - begun)
    time.sleep(1)
"""
TOLD = re.compile(r"^(?:\S+ )?tick: .* ([0-9.]+) s$", re.MULTILINE)
"""What a tick says of itself, in seconds."""


def in_one_process(kvmctl: Kvmctl, rounds: int) -> dict[str, float]:
    """Medians of ticks and of bare calls, one a second, in processes that run one after the other."""
    bare = _output([sys.executable, "-c", AGAIN, str(rounds + 1)]).stdout.split()
    ran = _output(kvmctl.command("-v", "rebalance", "--for", f"{rounds}s", "--every", "1s"), kvmctl.env)
    ticks = TOLD.findall(ran.stderr)
    if len(ticks) < 2:
        raise SystemExit(f"kvmctl -v rebalance has not told what its ticks took:\n{ran.stderr}")
    found = {"getAllDomainStats": bare, "a tick": ticks}
    return {name: statistics.median(map(float, seconds[1:])) for name, seconds in found.items()}


def whole_commands(kvmctl: Kvmctl, rounds: int) -> dict[str, float]:
    """Medians of commands from start to end."""
    return medians(
        {
            "python: import, open, getAllDomainStats": lambda: once([sys.executable, "-c", BARE]),
            "kvmctl rebalance": lambda: once(kvmctl.command("rebalance"), kvmctl.env),
        },
        rounds,
    )


def _output(command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=env or quiet_env(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done


def measure(folder: Path, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Both comparisons with that many paused guests; those of a smaller number are kept."""
    kvmctl, file = Kvmctl(folder / "state"), folder / "paused.yaml"
    file.write_text(guest_file(count, "tcg"))
    kvmctl.run("apply", "-f", str(file))
    kvmctl.run("rebalance")
    found = {"in one process": in_one_process(kvmctl, rounds), "whole commands": whole_commands(kvmctl, rounds)}
    for title, seconds in found.items():
        print(table(f"{count} paused guests, {title}", seconds, next(iter(seconds))), flush=True)
    return found


def main() -> None:
    """Measure, print the tables, write the figures as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", default="100,300", metavar="N,…")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    connection = libvirt.open(URI)
    remove_guests(connection)
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for count in sorted(map(int, options.guests.split(","))):
                found[str(count)] = measure(Path(folder), count, options.rounds)
                write_json(options.json, found)
            Kvmctl(Path(folder) / "state").run("host", "restore")
    finally:
        remove_guests(connection)


if __name__ == "__main__":
    main()
