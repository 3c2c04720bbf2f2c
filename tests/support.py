"""Tools of the tests: waiting to a deadline, guests, and what runs inside them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from kvmctl.hypervisor import domains, storage
from kvmctl.hypervisor.connection import Hypervisor
from kvmctl.model.errors import KvmctlError, NotFoundError
from kvmctl.xml.images import images

PREFIX = "kvmctl-test-"
"""Every guest, pool and network of a test bears it, so that a killed run can be cleaned up by name."""

Value = TypeVar("Value")


def until(read: Callable[[], Value], good: Callable[[Value], bool], timeout: float, what: str = "the value") -> Value:
    """Read until it is good; fails with the last value seen."""
    deadline = time.monotonic() + timeout
    while True:
        value = read()
        if good(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} is not as expected after {timeout} s; last seen: {value!r}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Guest:
    """A guest of a test."""

    hypervisor: Hypervisor
    name: str

    @property
    def domain(self) -> Any:
        """libvirt's handle."""
        return domains.find(self.hypervisor, self.name)

    @property
    def pid(self) -> int:
        """The process ID of its QEMU."""
        from kvmctl.host.process import find_guests

        uuid = self.domain.UUIDString()
        return find_guests([uuid])[uuid]

    @property
    def cgroup(self) -> Path:
        """The guest's own directory in the cpu hierarchy."""
        from kvmctl.host import cgroup

        found = cgroup.read(self.pid)
        assert found is not None
        return found.path

    def status(self, key: str) -> str:
        """A line of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:"))

    def remove(self) -> None:
        """Power off, undefine, and delete images that lie in a test pool; a guest that is gone is fine."""
        try:
            domain = self.domain
        except NotFoundError:
            return
        paths = images(domains.definition(domain))
        with contextlib.suppress(KvmctlError):
            domains.power_off(domain)
        with contextlib.suppress(KvmctlError):
            domains.undefine(domain)
        for path in paths:
            if PREFIX in path:
                with contextlib.suppress(KvmctlError):
                    storage.delete(self.hypervisor, path)


class Console:
    """Runs commands in a booted micro guest through its serial console."""

    def __init__(self, guest: Guest) -> None:
        """Take the console's terminal from the running definition."""
        self.guest = guest
        found = re.search(r"<serial type='pty'>\s*<source path='([^']+)'", domains.live_definition(guest.domain))
        assert found, "the guest has no serial console"
        self.path = found[1]
        self.file = -1
        self.seen = b""

    def __enter__(self) -> Self:
        self.file = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self.file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.file)

    def _read(self, pattern: bytes, timeout: float) -> re.Match[bytes]:
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.seen, re.DOTALL)
            if found:
                self.seen = self.seen[found.end() :]
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{self.guest.name} has not said {pattern!r}; last: {self.seen[-500:]!r}")
            if select.select([self.file], [], [], left)[0]:
                with contextlib.suppress(BlockingIOError):
                    self.seen += os.read(self.file, 65536)

    def ready(self, timeout: float = 120) -> None:
        """Wait until the guest answers; what was asked before its init listened is lost, so ask again."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.run("true", timeout=3)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def run(self, command: str, timeout: float = 60) -> str:
        """Run a shell command in the guest; its output. Fails where it exits with anything but 0."""
        self.seen = b""
        token = os.urandom(4).hex()
        os.write(self.file, f"! echo begin-''{token}; {command}\n".encode())
        found = self._read(rb"begin-" + token.encode() + rb"\r?\n(.*?)micro-done (\d+)", timeout)
        output = found[1].decode(errors="replace").replace("\r\n", "\n")
        assert found[2] == b"0", f"{command!r} exits with {found[2]!r} in {self.guest.name}: {output}"
        return output

    def ballooned(self) -> int:
        """Bytes that the guest's balloon driver holds. MemTotal does not tell: with `autodeflate` a balloon is
        accounted as used memory."""
        pages = dict(line.split() for line in self.run("grep ^balloon_ /proc/vmstat").splitlines())
        return (int(pages["balloon_inflate"]) - int(pages["balloon_deflate"])) * 4096

    def meminfo(self, key: str) -> int:
        """A line of the guest's /proc/meminfo, in bytes."""
        return int(self.run(f"grep ^{key}: /proc/meminfo").split()[1]) * 1024


class Screen:
    """The command line on a terminal of its own, with what it shows there."""

    def __init__(self, env: dict[str, str]) -> None:
        """`env` is the environment of what is started."""
        self._env = env
        self.pid = 0
        self._code: int | None = None
        self._seen = b""
        self.terminal = -1

    @property
    def text(self) -> str:
        """Everything that was shown."""
        return self._seen.decode(errors="replace")

    def start(self, *words: str, env: dict[str, str] | None = None) -> None:
        """Run a command line of kvmctl."""
        self.run(sys.executable, "-m", "kvmctl", *words, env=env)

    def run(self, *program: str, env: dict[str, str] | None = None) -> None:
        """Run any program; what still runs is ended first."""
        self.close()
        self._seen, self._code = b"", None
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execvpe(program[0], program, self._env | {"TERM": "xterm"} | (env or {}))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.terminal, keys)

    def expect(self, text: str, timeout: float = 30) -> None:
        """Wait until the text has been shown."""
        until(self._read, lambda seen: text in seen, timeout, "the screen")

    def wait(self, timeout: float = 60) -> int:
        """The exit code of the command, once it has ended."""

        def ended() -> int | None:
            self._read()
            if self._code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
                    self._read()
            return self._code

        code = until(ended, lambda found: found is not None, timeout, f"the exit code, after {self.text!r}")
        assert code is not None
        return code

    def _read(self) -> str:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while select.select([self.terminal], [], [], 0)[0]:
                received = os.read(self.terminal, 65536)
                if not received:
                    break
                self._seen += received
        return self.text

    def close(self) -> None:
        """End the command."""
        if self.terminal < 0:
            return
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)
        self.terminal = -1


Boot = Callable[..., tuple[Guest, Console]]
"""Applies a guest with some keys, and waits until Linux in it answers: the fixture `boot` of booted tests."""
