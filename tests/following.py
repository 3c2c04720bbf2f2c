"""A `kvmctl events` that runs beside the test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support import until

WORLD = """
import os, sys, threading
from kvmctl.cli.main import run
from kvmctl.hypervisor.connection import open_hypervisor

world = open_hypervisor("test:///default").connection

def act():
    while line := os.read(0, 65536).decode():
        for word in line.splitlines():
            eval(word, {"world": world, "test": world.lookupByName("test")})

threading.Thread(target=act, daemon=True).start()
run(["-c", "test:///default", "events", *sys.argv[1:]])
"""
"""The test driver's guests live in one process, so this one both follows them and does what it reads from stdin."""


class Follower:
    """Its output goes to files, so that nothing is seen that it has not written out."""

    def __init__(
        self, folder: Path, env: dict[str, str], *words: str, world: bool = False, to: IO[bytes] | None = None
    ) -> None:
        """Follow with these options, and write to `to` if given; `world`: the test driver's guests, by `WORLD`."""
        self._out, self._err = folder / "events.out", folder / "events.err"
        program = ("-c", WORLD) if world else ("-m", "kvmctl", "events")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *words], stdin=subprocess.PIPE, stdout=to or out, stderr=err, env=env
            )

    def __enter__(self) -> Self:
        until(lambda: self.err, lambda text: "following" in text or self.process.poll() is not None, 60, "its notes")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def out(self) -> str:
        """stdout so far, but for a line that is not complete."""
        whole, newline, _part = self._out.read_text().rpartition("\n")
        return whole + newline

    @property
    def err(self) -> str:
        """stderr so far."""
        return self._err.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        return [json.loads(line) for line in self.out.splitlines()]

    def tell(self, line: str) -> None:
        """Have the world do something."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def expect(self, *events: str) -> list[dict[str, Any]]:
        """The JSON lines, once the last has told of the last of these events; they are these and no others."""
        until(lambda: self.events, lambda told: len(told) >= len(events), 60, f"the events {events}")
        told = self.events
        assert tuple(event["event"] for event in told) == events
        return told

    def find(self, event: str, detail: str | None = None) -> dict[str, Any]:
        """The first JSON line of this event, once it has come."""

        def read() -> list[dict[str, Any]]:
            return [told for told in self.events if told["event"] == event and detail in (None, told["detail"])]

        return until(read, bool, 60, f"the event {event} among {self.out}")[0]

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit code after this signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=60)
