"""The policies that the memory bench compares: what each does to the host and to its guests' starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvmctl.hypervisor import domains
from kvmctl.model.errors import KvmctlError
from tests.bench import machine
from tests.bench.memguest import SIZE, Guest, Workshop
from tests.bench.smallhost import SmallHost

POLICIES = ("none", "ksm-default", "ksmtuned", "mom", "proxmox", "kvmctl")
HOST_FILE = "memory: {overcommit: 10000%, cover: 0%}\n"
"""kvmctl's host policy: its defaults, but no ceiling to overcommit, and nothing has to stand behind what is merged and
ballooned away: how far it goes is what is measured."""
LOW = 0
"""MiB that a guest is started with where the policy gives it more as it needs it."""
REPORTING = ("proxmox", "kvmctl")
"""Whose guests report free pages, as their own tools make them: guests of virt-install and of oVirt do not."""
_URI = "qemu:///system"


@dataclass(frozen=True, slots=True)
class Settings:
    """How policies are run."""

    every: int = 5
    """Seconds between two looks of kvmctl's."""
    host_file: str = HOST_FILE
    mom: Path | None = None
    """Where MoM itself is; else its law is run."""
    low: int = LOW
    reporting: bool = False
    """Whether everybody's guests report free pages."""
    verbose: bool = False


class Policy:
    """One policy at work in a host."""

    def __init__(self, name: str, host: SmallHost, settings: Settings) -> None:
        self.name = name
        self.host = host
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.log = f"{name}.log"
        self.low = settings.low if name == "kvmctl" and 0 < settings.low < SIZE else None
        self._state = host.folder / "state"

    @property
    def _net(self) -> bool:
        return self.settings.reporting or self.name in REPORTING

    @property
    def _env(self) -> Mapping[str, str]:
        return {"KVMCTL_STATE_DIR": str(self._state), "KVMCTL_HOST_FILE": str(self._state / "host.yaml")}

    def _kvmctl(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).with_name("kvmctl")), "--yes", "-c", _URI, *words]

    def begin(self) -> None:
        """Start what it runs."""
        if self.name == "ksm-default":
            machine.set_ksm(machine.KSM_DEFAULTS | {"run": "1"})
        elif self.name == "kvmctl":
            (self._state / "host.yaml").write_text(self.settings.host_file)
            detail = ["-v"] if self.settings.verbose else []
            command = self._kvmctl(*detail, "rebalance", "--for", "3600s", "--every", f"{self.settings.every}s")
            self.process = self.host.spawn(command, self._env, self.log)
        elif self.name == "mom" and self.settings.mom:
            folder = self.settings.mom
            command = ["python3", str(folder / "momd"), "-c", str(folder / "doc/mom-balloon+ksm.conf")]
            self.process = self.host.spawn(command, None, self.log)
        elif self.name != "none":
            command = [sys.executable, "-m", "tests.bench.peers", self.name, *(["-v"] if self.settings.verbose else [])]
            self.process = self.host.spawn(command, None, self.log)

    def start(self, guest: Guest, workshop: Workshop) -> str:
        """Define and start a guest; why the policy refuses it, else nothing."""
        with self.host.open() as hypervisor:
            made = hypervisor.connection.defineXML(workshop.xml(guest, self.low, self._net))
            if self.name != "kvmctl":
                made.create()
                return ""
        done = self.host.run(self._kvmctl("start", guest.name), self._env)
        if done.returncode == 5:
            return "refused: " + " ".join(done.stderr.split())[:200]
        if done.returncode:
            raise SystemExit(f"kvmctl start {guest.name}: exit {done.returncode}\n{done.stderr}")
        return ""

    def complaint(self) -> str:
        """What it said last, where it has ended though it should not have."""
        if self.process is None or self.process.poll() is None:
            return ""
        said = (self.host.folder / self.log).read_text(errors="replace")[-600:]
        return f"{self.name} ended with {self.process.returncode}: {said}"

    def disturbed(self) -> str:
        """What somebody else has done to KSM, where this policy leaves it alone."""
        run = {"none": 0, "ksm-default": 1}.get(self.name)
        found = machine.ksm_counters().run
        return "" if run in (None, found) else f"somebody else has set KSM to run={found}"

    def cpu(self) -> float | None:
        """Seconds of CPU that its process took so far."""
        return None if self.process is None else cpu_seconds(self.process.pid)

    def end(self) -> None:
        """End its process, and undo what it did to the host."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.name == "kvmctl":
            self.host.run(self._kvmctl("host", "restore"), self._env)
        machine.reset_ksm(self.host.folder)


@contextmanager
def governed(name: str, host: SmallHost, settings: Settings) -> Iterator[Policy]:
    """A policy at work, on a host on which nothing is merged; the guests that it was given are gone afterwards."""
    machine.reset_ksm(host.folder)
    policy = Policy(name, host, settings)
    try:
        policy.begin()
        yield policy
    finally:
        try:
            remove_guests(host)
        finally:
            policy.end()


def remove_guests(host: SmallHost) -> None:
    """Power off and undefine all guests of a host."""
    with host.open() as hypervisor:
        for domain in hypervisor.connection.listAllDomains():
            for act in (domains.power_off, domains.undefine):
                try:
                    act(domain)
                except KvmctlError as error:
                    if act is domains.undefine:
                        print(f"bench: {domain.name()}: {error.message}", file=sys.stderr)


def cpu_seconds(pid: int) -> float | None:
    """Seconds of CPU that a process took so far; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / 100


def ksmd() -> float:
    """Seconds of CPU that ksmd took so far."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "comm").read_text().strip() == "ksmd":
                    return cpu_seconds(int(folder.name)) or 0.0
            except OSError:
                continue
    return 0.0
