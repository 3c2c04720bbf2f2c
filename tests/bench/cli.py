"""Start-up and listing against the bare minimum, virsh and virtomate; applying against the bare libvirt calls.

    python -m tests.bench.cli [--rounds N] [--json FILE]

Needs qemu:///system. Guests are named kvmctl-test-bench-N and are removed at the end. virtomate is installed from
the package index into a temporary environment.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.control.parallel import WORKERS
from tests.bench.timing import medians, once, table, write_json

URI = "qemu:///system"
NAME = "kvmctl-test-bench-"
BARE = f"import libvirt; libvirt.open({URI!r}).getAllDomainStats()"
BARE_APPLY = """
import sys, libvirt
from concurrent.futures import ThreadPoolExecutor
connection = libvirt.open({uri!r})
texts = open(sys.argv[1]).read().split("\\0")
def make(text):
    connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
with ThreadPoolExecutor({workers}) as pool:
    list(pool.map(make, texts))
"""


def guest_file(count: int, accelerator: str) -> str:
    """A guest file of small guests that are left paused."""
    defaults = f"accelerator: {accelerator}, cpu: {{count: 1}}, memory: {{size: 64MiB}}, state: paused"
    return f"defaults: {{{defaults}}}\nguests:\n" + "".join(f"  - name: {NAME}{number}\n" for number in range(count))


def remove_guests(connection: Any) -> None:
    """Power off and undefine the bench's own guests."""
    own = [domain for domain in connection.listAllDomains() if domain.name().startswith(NAME)]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(_remove, own))


def _remove(domain: Any) -> None:
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


@contextmanager
def defined(connection: Any, kvmctl: str, folder: Path, count: int) -> Iterator[None]:
    """That many guests, defined and off."""
    file = folder / "defined.yaml"
    file.write_text(guest_file(count, "tcg").replace("state: paused", "state: stopped"))
    once([kvmctl, "-c", URI, "apply", "-f", str(file)])
    try:
        yield
    finally:
        remove_guests(connection)


def listing(kvmctl: str, virtomate: str, rounds: int) -> dict[str, float]:
    """Medians of the commands that only read."""
    python = sys.executable
    complete = {"_KVMCTL_COMPLETE": "bash_complete", "COMP_WORDS": "kvmctl sh", "COMP_CWORD": "1"}
    return medians(
        {
            "bare minimum: import, open, getAllDomainStats": lambda: once([python, "-c", BARE]),
            "virsh list --all": lambda: once(["virsh", "-c", URI, "list", "--all"]),
            "kvmctl list": lambda: once([kvmctl, "-c", URI, "list"]),
            "kvmctl show": lambda: once([kvmctl, "-c", URI, "show", f"{NAME}0"]),
            "virtomate domain-list": lambda: once([virtomate, "-c", URI, "domain-list"]),
            "kvmctl --help": lambda: once([kvmctl, "--help"]),
            "kvmctl, completion of a command": lambda: once([kvmctl], complete),
        },
        rounds,
    )


def applying(connection: Any, kvmctl: str, folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Medians of making and starting paused guests: kvmctl, and a bare script with the XML that kvmctl made."""
    file, texts, script = folder / "paused.yaml", folder / "texts", folder / "bare.py"
    file.write_text(guest_file(count, "tcg"))
    script.write_text(BARE_APPLY.format(uri=URI, workers=WORKERS))

    def ours() -> float:
        seconds = once([kvmctl, "-c", URI, "apply", "-f", str(file)])
        own = [
            domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            for domain in connection.listAllDomains()
            if domain.name().startswith(NAME)
        ]
        assert len(own) == count
        texts.write_text("\0".join(own))
        remove_guests(connection)
        return seconds

    def bare() -> float:
        seconds = once([sys.executable, str(script), str(texts)])
        remove_guests(connection)
        return seconds

    return medians({"kvmctl apply": ours, "bare script": bare}, rounds)


def main() -> None:
    """Measure, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--guests", type=int, default=100, help="defined guests to list")
    parser.add_argument("--apply", type=int, default=50, help="paused guests to make")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    kvmctl = str(Path(sys.executable).with_name("kvmctl"))
    connection = libvirt.open(URI)
    remove_guests(connection)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, "-m", "venv", folder / "virtomate"], check=True)
        subprocess.run([folder / "virtomate/bin/pip", "install", "-q", "virtomate"], check=True)
        with defined(connection, kvmctl, folder, options.guests):
            read = listing(kvmctl, str(folder / "virtomate/bin/virtomate"), options.rounds)
        print(table(f"{options.guests} defined guests", read, next(iter(read))), flush=True)
        write_json(options.json, {"listing": read})
        made = applying(connection, kvmctl, folder, options.apply, max(3, options.rounds // 5))
        print(table(f"apply of {options.apply} new paused guests", made, "bare script"), flush=True)
    write_json(options.json, {"listing": read, "applying": made})


if __name__ == "__main__":
    main()
